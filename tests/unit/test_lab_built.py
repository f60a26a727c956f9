"""Kernels and busybox that the lab builds: names, keys, options, and where their sources come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab import built
from lab.__main__ import host_packages
from lab.built import BUILD_PACKAGES, built_kernel, make_options, not_honoured, run_make, wanted_config
from lab.busybox import OPTIONS, userland_dir, with_options
from lab.config import LAB_DIR, Guest, LabError, load_config, parse_config
from lab.kernels import kernel_dir
from lab.matrix import row_key
from lab.packages import Deb, Source
from lab.resolve import PackageIndex, resolve_source
from lab.sources import SourceApt, ensure_linux, sources_dir
from tests.unit.test_lab_packages import CONFIG

SOURCE = Deb("linux-source-6.1", "6.1.176-1", "all", 1)
BUILT = [guest for guest in load_config().guests if guest.fragments]


def guest_named(name: str) -> Guest:
    return next(guest for guest in BUILT if guest.name == name)


# ---- kernels.toml ---------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", BUILT, ids=lambda guest: guest.name)
def test_a_guest_that_is_built_has_all_that_takes(guest: Guest):
    assert guest.arch.kernel_arch
    assert guest.arch.kernel_image
    assert guest.arch.compiler.endswith("-gcc")
    for name in guest.fragments:
        assert (LAB_DIR / "configs" / f"{name}.config").is_file()
    lines = [line for line in wanted_config(guest).splitlines() if line and not line.startswith("#")]
    assert all(line.startswith("CONFIG_") and "=" in line for line in lines)
    assert len({line.split("=")[0] for line in lines}) == len(lines), "an option in two fragments"


def test_nothing_that_is_built_is_in_the_sets_of_every_run():
    assert BUILT
    for row in load_config().rows:
        if row.guest.fragments:
            assert row.sets == ("matrix",), row.name


def test_source_and_config_go_together():
    text = CONFIG.replace('package = "k"', 'source = "linux-source-1"')
    with pytest.raises(LabError, match="go together"):
        parse_config(text)
    guest = parse_config(text.replace('cpu = "max"', 'cpu = "max"\nconfig = ["a", "b"]')).guests[0]
    assert guest.package == "linux-source-1"
    assert guest.fragments == ("a", "b")


def test_tools_to_build_are_asked_for_only_where_something_is_built():
    assert not {"flex", "bison"} & set(host_packages(load_config().select("ci", [])))
    wanted = host_packages(load_config().select(None, ["mips.machine"]))
    assert {*BUILD_PACKAGES, "gcc-mips-linux-gnu", "qemu-system-mips"} <= set(wanted)


# ---- names and keys -------------------------------------------------------------------------------


def test_a_built_kernel_is_named_after_its_source_and_its_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KDUMP_ELFTOOL_LAB", str(tmp_path))
    kernel = built_kernel(guest_named("a64-va39"), SOURCE)
    assert kernel.release == "6.1.176-lab-a64-va39"
    assert kernel.series == "6.1"
    assert kernel_dir(kernel).parent == tmp_path / "kernels"
    assert kernel_dir(kernel).name.startswith("6.1.176-lab-a64-va39_6.1.176-1_")
    with pytest.raises(LabError, match="no version of Linux"):
        built_kernel(guest_named("a64-va39"), replace(SOURCE, version="rolling"))


def test_recipe_and_source_are_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    guest = guest_named("a64-va39")
    row = next(row for row in load_config().rows if row.guest == guest)
    kernel = built_kernel(guest, SOURCE)
    kernels = [
        kernel,
        built_kernel(guest, replace(SOURCE, version="6.1.177-1")),
        built_kernel(replace(guest, fragments=guest.fragments[:-1]), SOURCE),
        built_kernel(replace(guest, arch=replace(guest.arch, compiler="other-gcc")), SOURCE),
    ]
    (tmp_path / "configs").mkdir()
    for name in guest.fragments:
        text = (LAB_DIR / "configs" / f"{name}.config").read_text()
        (tmp_path / "configs" / f"{name}.config").write_text(text.replace("CONFIG_KALLSYMS_ALL=y\n", ""))
    monkeypatch.setattr(built, "LAB_DIR", tmp_path)
    kernels.append(built_kernel(guest, SOURCE))
    assert len({each.folder for each in kernels}) == len(kernels)
    assert len({row_key(row, each, (), "s") for each in kernels}) == len(kernels)


def test_busybox_is_built_anew_for_another_compiler_or_version():
    arch = guest_named("mips").arch
    package = Deb("busybox", "1:1.35.0-4", "source", 0)
    folders = {
        userland_dir(arch, package),
        userland_dir(replace(arch, compiler="other-gcc"), package),
        userland_dir(arch, replace(package, version="1:1.36.0-1")),
    }
    assert len(folders) == 3


# ---- options --------------------------------------------------------------------------------------


def test_options_that_were_not_honoured_are_named():
    config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\n"
    assert not_honoured("# why\nCONFIG_A=y\n", config) == []
    assert not_honoured("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n", config) == ["CONFIG_B=y", "CONFIG_C=y"]


def test_busybox_options_replace_what_was_there():
    config = "# CONFIG_CAT is not set\n# CONFIG_CATV is not set\nCONFIG_LS=n\nCONFIG_SH=y"
    text = with_options(config, "# these\nCONFIG_CAT=y\nCONFIG_LS=y\n")
    assert text.splitlines() == [
        "# CONFIG_CATV is not set",
        "CONFIG_SH=y",
        "# these",
        "CONFIG_CAT=y",
        "CONFIG_LS=y",
    ]


def test_busybox_has_what_init_runs():
    options = OPTIONS.read_text()
    for applet in ("ash", "mount", "insmod", "mkfifo", "dd", "grep", "mke2fs", "poweroff", "yes", "wc"):
        assert f"CONFIG_{applet.upper()}=y\n" in options


def test_paths_of_this_machine_are_mapped_away():
    arch = guest_named("mips").arch
    options = make_options(arch, Path("/some/sources"), Path("/some/build"))
    assert {"ARCH=mips", "CROSS_COMPILE=mips-linux-gnu-", "O=/some/build"} <= set(options)
    assert any(
        "-ffile-prefix-map=/some/sources/= " in word for word in options if word.startswith("KCFLAGS=")
    )


def test_a_failed_build_shows_the_end_of_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = tmp_path / "make"
    make.write_text(
        '#!/bin/sh\nread -r line\necho "answer <$line>"\nseq 100\necho "no such header"\nexit 2\n'
    )
    make.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(LabError, match="no such header") as error:
        run_make(["all"], tmp_path / "log", answers=b"yes\n")
    assert "answer" not in str(error.value)
    assert (tmp_path / "log").read_text().startswith("answer <yes>\n")


# ---- sources --------------------------------------------------------------------------------------


def test_the_source_package_of_a_binary_one():
    index = PackageIndex(
        "Package: one\nVersion: 1-2+b1\nSource: whole (1:1-2)\n\n"
        "Package: two\nVersion: 3-4\nSource: whole\n\n"
        "Package: three\nVersion: 5-6\n"
    )
    assert resolve_source("one", index) == Deb("whole", "1:1-2", "source", 0)
    assert resolve_source("two", index) == Deb("whole", "3-4", "source", 0)
    assert resolve_source("three", index) == Deb("three", "5-6", "source", 0)


@pytest.mark.parametrize("options", [(), ("signed-by=/k.gpg",)])
def test_source_packages_come_from_the_same_archive(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lab.sources.find_source", lambda: Source("http://one.example/debian", options))
    words = SourceApt(load_config(), "bookworm").sources_text().split()
    assert words[0] == "deb-src"
    assert words[-3:] == ["http://one.example/debian", "bookworm", "main"]
    assert words[1:-3] == [f"[{' '.join(options)}]"] * bool(options)


def test_linux_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KDUMP_ELFTOOL_LAB", str(tmp_path))

    class NoApt:
        def download(self, packages: list[Deb]) -> list[Path]:
            raise AssertionError(packages)

    sources_dir(SOURCE).mkdir(parents=True)
    assert ensure_linux(SOURCE, NoApt()) == sources_dir(SOURCE)  # type: ignore[arg-type]
