"""lab.packages and lab.resolve: from apt sources and package lists to the packages of a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.config import LabError, parse_config
from lab.packages import Deb, Source, fetched_megabytes, find_source, parse_sources
from lab.resolve import PackageIndex, natural_key, newest_match, resolve_kernel, resolve_libraries

CLOUD_61 = r"linux-image-6\.1\.0-[0-9]+-cloud-amd64-dbg"


def stanza(name: str, version: str = "1-1", **more: str) -> str:
    fields = {"Package": name, "Version": version, "Architecture": "amd64", "Size": "7", **more}
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def index(*stanzas: str) -> PackageIndex:
    return PackageIndex("\n".join(stanzas))


def test_numbers_in_names_sort_as_numbers():
    names = ["a-6.1.0-9", "a-6.1.0-50", "a-6.1.0-47", "a-6.12.0-1"]
    assert sorted(names, key=natural_key) == ["a-6.1.0-9", "a-6.1.0-47", "a-6.1.0-50", "a-6.12.0-1"]


def test_newest_match_takes_whole_names_only():
    names = [
        "linux-image-6.1.0-9-cloud-amd64-dbg",
        "linux-image-6.1.0-50-cloud-amd64-dbg",
        "linux-image-6.1.0-60-cloud-amd64-dbg-extra",
        "linux-image-6.1.0-70-cloud-amd64",
        "linux-image-6.10.0-1-cloud-amd64-dbg",
    ]
    assert newest_match(CLOUD_61, names) == "linux-image-6.1.0-50-cloud-amd64-dbg"
    with pytest.raises(LabError, match="no package matches"):
        newest_match(CLOUD_61, names[2:])


def test_a_kernel_whose_image_package_holds_everything():
    packages = index(
        stanza("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1"),
        stanza("linux-image-6.1.0-50-cloud-amd64-dbg", "6.1.176-1"),
        stanza("linux-image-6.1.0-47-cloud-amd64-dbg", "6.1.170-1"),
    )
    kernel = resolve_kernel(CLOUD_61, packages)
    assert [deb.name for deb in kernel.image] == ["linux-image-6.1.0-50-cloud-amd64"]
    assert kernel.debug.name == "linux-image-6.1.0-50-cloud-amd64-dbg"
    assert (kernel.release, kernel.series) == ("6.1.0-50-cloud-amd64", "6.1")
    assert kernel.folder == "6.1.0-50-cloud-amd64_6.1.176-1"


def test_a_kernel_split_into_binary_and_modules():
    release = "7.2.13+deb14-cloud-amd64"
    names = [f"linux-image-{release}-dbg", f"linux-image-{release}", f"linux-binary-{release}"]
    packages = index(*(stanza(name, "7.2.13-1") for name in [*names, f"linux-modules-{release}"]))
    kernel = resolve_kernel(r"linux-image-[0-9.]+\+deb[0-9]+-cloud-amd64-dbg", packages)
    assert [deb.name for deb in kernel.image] == [f"linux-binary-{release}", f"linux-modules-{release}"]
    assert kernel.series == "7.2"


def test_a_debug_package_without_its_image_is_an_error():
    with pytest.raises(LabError, match="no package linux-image-"):
        resolve_kernel(CLOUD_61, index(stanza("linux-image-6.1.0-50-cloud-amd64-dbg")))


def test_libraries_are_followed_and_nothing_else():
    packages = index(
        stanza("tool", Depends="libone (>= 2), debconf, libmissing | libtwo, zlib1g:any"),
        stanza("libone", Depends="libthree"),
        stanza("libtwo"),
        stanza("libthree", Depends="libone, tool"),
        stanza("zlib1g"),
        stanza("debconf"),
    )
    assert [deb.name for deb in resolve_libraries(["tool"], packages)] == [
        "libone",
        "libthree",
        "tool",
        "zlib1g",
    ]


def test_of_two_versions_the_newer_counts():
    packages = index(stanza("a", "1.9-1"), stanza("a", "1.10-1"), stanza("a", "1.2-1"))
    assert packages.deb("a").version == "1.10-1"


def test_epochs_are_escaped_in_file_names():
    assert (
        Deb("busybox-static", "1:1.35.0-4", "amd64", 1).file_name == "busybox-static_1%3a1.35.0-4_amd64.deb"
    )


def test_one_line_sources():
    text = """
# deb http://commented.example/debian trixie main
deb-src http://source.example/debian trixie main
deb [arch=amd64 signed-by=/key.gpg trusted=yes] http://one.example/debian trixie main
deb http://two.example/debian sid main contrib
"""
    first, second = parse_sources(text, deb822=False)
    assert first.source == Source("http://one.example/debian", ("signed-by=/key.gpg", "trusted=yes"))
    assert (first.suites, second.suites) == (("trixie",), ("sid",))
    assert second.source == Source("http://two.example/debian")


def test_deb822_sources():
    text = """Types: deb deb-src
# a comment inside
URIs: http://one.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/one.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm

Types: deb
URIs: http://inline.example/debian
Suites: sid
Trusted: yes
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
"""
    first, second = parse_sources(text, deb822=True)
    assert first.source == Source("http://one.example/debian", ("signed-by=/usr/share/keyrings/one.gpg",))
    assert first.suites == ("bookworm", "bookworm-updates")
    assert second.source == Source("http://inline.example/debian", ("trusted=yes",))


def write_sources(folder: Path, text: str) -> Path:
    (folder / "sources.list.d").mkdir(parents=True)
    (folder / "sources.list.d" / "some.list").write_text(text)
    return folder


def test_the_debian_archive_is_found_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LAB_MIRROR", raising=False)
    text = """deb http://vendor.example/apt nodistro main
deb http://security.example/debian-security bookworm-security main
deb http://debian.example/debian bookworm main
"""
    assert find_source(write_sources(tmp_path, text)).uri == "http://debian.example/debian"


def test_lab_mirror_beats_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAB_MIRROR", "http://chosen.example/debian")
    folder = write_sources(tmp_path, "deb http://debian.example/debian bookworm main\n")
    assert find_source(folder) == Source("http://chosen.example/debian")


def test_a_machine_without_debian_is_told_of_lab_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LAB_MIRROR", raising=False)
    folder = write_sources(tmp_path, "deb http://other.example/ubuntu noble main\n")
    with pytest.raises(LabError, match="LAB_MIRROR"):
        find_source(folder)


def test_what_apt_fetched():
    assert fetched_megabytes("Get:1 x\nFetched 37.9 MB in 4s (10.3 MB/s)\n") == 37.9
    assert fetched_megabytes("Fetched 559 kB in 2s (1 kB/s)\n") == 0.559
    assert fetched_megabytes("Reading package lists...\n") == 0.0


CONFIG = """
[cache]
lists_max_age_hours = 1
[arch.x]
debian = "x"
compiler = "cc"
qemu = "qemu-x"
machine = ["-machine", "m"]
disk = "disk"
console = "c0"
port = "c1"
[userland]
suite = "old"
packages = ["p"]
[modules]
disk = ["d"]
work = ["w"]
[defaults]
cpus = 2
memory = "1M"
modules = []
cmdline = ""
[scenario.kdump]
memory = "2M"
crashkernel = "1M"
[scenario.live]
[root.new]
packages = ["gdb"]
[guest.g]
about = "a guest"
arch = "x"
suite = "s"
package = "k"
known = ["1.0"]
cpu = "max"
levels = 4
kaslr = true
rows.live = { sets = ["matrix"] }
rows.kdump = { sets = ["ci", "matrix"], memory = "3M" }
"""


def test_rows_take_own_values_then_the_scenarios_then_the_defaults():
    rows = {row.name: row for row in parse_config(CONFIG).rows}
    assert rows["g.kdump"].memory == "3M"
    assert rows["g.kdump"].crashkernel == "1M"
    assert rows["g.live"].memory == "1M"
    assert rows["g.live"].crashkernel is None


def test_rows_are_selected_by_set_and_pattern_smallest_set_first():
    config = parse_config(CONFIG)
    assert [row.name for row in config.select(None, [])] == ["g.kdump", "g.live"]
    assert [row.name for row in config.select("ci", [])] == ["g.kdump"]
    assert [row.name for row in config.select(None, ["*.live", "nothing"])] == ["g.live"]
    assert config.select("ci", ["*.live"]) == []


def test_an_unknown_set_is_refused():
    with pytest.raises(LabError, match="no such set: cj"):
        parse_config(CONFIG.replace('"ci"', '"cj"'))
