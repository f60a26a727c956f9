"""Where a vmlinux is looked for, which one is taken, and what a dump's release cannot do to paths."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from kdump_elftool.arch.x86_64 import ARCH
from kdump_elftool.errors import IdentityError, KdumpError
from kdump_elftool.jobs import debug_files
from kdump_elftool.jobs.debug_files import Search
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.plain.module_index import safe_release
from tests.builders.dwarf import elf_file

ID = bytes(range(20))
OTHER = b"\xee" * 20
RELEASE = "6.1.0-50-cloud-amd64"
DEBUG = {".debug_info": b"x"}
MISREAD = b"\x14\0\0\0\x03\0\0\0GNU\0" + ID[:8]


def info(build_id: bytes | None = ID, release: str | None = RELEASE) -> VmcoreInfo:
    lines = [f"OSRELEASE={release}"] if release is not None else []
    lines += [f"BUILD-ID={build_id.hex()}"] if build_id is not None else []
    return parse("\n".join(lines).encode("latin-1"))


def image(build_id: bytes | None = ID, *, types: bool = True, machine: int = 62) -> bytes:
    return elf_file(
        DEBUG if types else {}, {"_stext": 0xFFFFFFFF81000000}, build_id=build_id, machine=machine
    )


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def search(tmp_path, monkeypatch, caplog):
    # a command that ran before may have its own logging
    monkeypatch.setattr(logging.getLogger("kdump_elftool"), "propagate", True)
    caplog.set_level(logging.INFO, logger="kdump_elftool")
    with ExitStack() as stack:
        yield Search(stack, {"HOME": str(tmp_path / "home")}, [], root=str(tmp_path / "root"))


def located(search: Search, said: VmcoreInfo) -> str | None:
    found = search.locate(said, ARCH)
    return None if found is None else os.path.relpath(found.path, search.root)


PLACES = [
    f"usr/lib/debug/boot/vmlinux-{RELEASE}",
    f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
    f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux.debug",
    f"usr/lib/debug/usr/lib/modules/{RELEASE}/vmlinux",
    f"usr/lib/debug/.build-id/00/{ID[1:].hex()}.debug",
    f"boot/vmlinux-{RELEASE}",
    f"lib/modules/{RELEASE}/build/vmlinux",
    f"usr/lib/modules/{RELEASE}/vmlinux",
    f"../home/.cache/debuginfod_client/{ID.hex()}/debuginfo",
    f"../home/.debuginfod_client_cache/{ID.hex()}/debuginfo",
]


@pytest.mark.parametrize("place", PLACES)
def test_where_distributions_put_it(search, place):
    assert located(search, info()) is None
    put(Path(search.root, place), image())
    assert located(search, info()) == place
    assert [file.path for file in search.files] == [os.path.normpath(os.path.join(search.root, place))]


@pytest.mark.parametrize("place", PLACES)
def test_another_build_is_never_taken_silently(search, place, caplog):
    put(Path(search.root, place), image(OTHER))
    assert located(search, info()) is None
    assert OTHER.hex() in caplog.text
    assert ID.hex() in caplog.text


def test_what_was_found_and_why_is_said(search, caplog):
    put(Path(search.root, PLACES[0]), image())
    located(search, info())
    assert f"{PLACES[0]}, by its build id {ID.hex()}" in caplog.text


def test_one_with_types_is_better(search):
    put(Path(search.root, PLACES[0]), image(types=False))
    assert located(search, info()) == PLACES[0]
    put(Path(search.root, PLACES[5]), image())
    assert located(search, info()) == PLACES[5]


def test_without_proof_nothing_is_taken(search):
    """Neither a build id nor a release in common: only the user may say that it is the kernel."""
    path = put(Path(search.root, PLACES[0]), image(None))
    assert located(search, info()) is None
    assert search.in_directory(str(path.parent), info(), ARCH).path == str(path)


def test_a_client_that_found_nothing_leaves_an_empty_file(search):
    put(Path(search.root, PLACES[8]), b"").chmod(0)
    assert located(search, info()) is None


@pytest.mark.parametrize("kind", ["fifo", "directory", "text", "link to nowhere"])
def test_what_is_no_file(search, kind):
    path = Path(search.root, PLACES[0])
    path.parent.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("no ELF")
    else:
        path.symlink_to("nowhere")
    assert located(search, info()) is None


# a release is what the dump says


@pytest.mark.parametrize(
    "release",
    [
        "",
        ".",
        "..",
        "../../etc",
        "/etc/passwd",
        "6.1/../../../tmp/x",
        "6.1\0",
        "6.1\n",
        "x" * 65,
        "-6.1",
        "6.1 x",
        "6.1\\x",
        "{build_id}",
        "6.1\xe4",
        "~root",
    ],
)
def test_releases_that_are_no_names(search, release, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(debug_files, "_open", asked.append)
    assert safe_release(release) is None
    assert located(search, VmcoreInfo({"OSRELEASE": release, "BUILD-ID": ID.hex()})) is None
    root = os.path.realpath(search.root)
    assert asked
    for path in asked:
        assert "\0" not in path
        assert os.path.realpath(path).startswith((root, os.path.realpath(os.path.join(root, "../home"))))
        assert not release or release not in path or release in (".", "..")
        assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "release", [RELEASE, "5.4.0+", "6.8.0-rc1~exp1", "4.18.0-553.el8_10.x86_64", "6.12.9-200.fc41"]
)
def test_releases_that_are(release):
    assert safe_release(release) == release


# a directory that the user names


@pytest.mark.parametrize(
    "name",
    [
        "vmlinux",
        "vmlinux.debug",
        f"vmlinux-{RELEASE}",
        f"vmlinux-{RELEASE}.debug",
        "vmlinux-of-tuesday",
        f".build-id/00/{ID[1:].hex()}.debug",
        f"boot/vmlinux-{RELEASE}",
        f"usr/lib/debug/boot/vmlinux-{RELEASE}",
        f"usr/lib/debug/.build-id/00/{ID[1:].hex()}.debug",
        f"lib/modules/{RELEASE}/build/vmlinux",
        f"{ID.hex()}/debuginfo",
    ],
)
def test_usual_names_in_a_directory(search, tmp_path, name):
    path = put(tmp_path / "given" / name, image())
    put(tmp_path / "given" / "vmlinux-other", image(OTHER))
    assert search.in_directory(str(tmp_path / "given"), info(), ARCH).path == str(path)


def test_a_directory_with_other_kernels(search, tmp_path):
    for number in range(5):
        put(tmp_path / f"vmlinux-{number}", image(bytes([number + 1]) * 20))
    with pytest.raises(IdentityError) as caught:
        search.in_directory(str(tmp_path), info(), ARCH)
    assert ID.hex() in caught.value.message
    assert "01" * 20 in caught.value.message
    assert caught.value.message.count("vmlinux-") == 3
    assert not search.files


def test_a_large_directory_is_not_read_whole(search, tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(debug_files, "_open", asked.append)
    monkeypatch.setattr(os, "listdir", lambda _path: [f"vmlinux-{number}" for number in range(10_000)])
    with pytest.raises(IdentityError):
        search.in_directory(str(tmp_path), info(), ARCH)
    assert len(asked) < 100


def test_for_another_machine(search, tmp_path):
    put(tmp_path / "vmlinux", image(machine=183))
    with pytest.raises(IdentityError, match="another machine"):
        search.in_directory(str(tmp_path), info(), ARCH)


def test_a_directory_that_cannot_be_read(search, tmp_path):
    with pytest.raises(KdumpError, match="cannot read"):
        search.in_directory(str(tmp_path / "none"), info(), ARCH)


# build ids that a kernel misread


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_misread_build_id(order):
    head = b"".join(number.to_bytes(4, order) for number in (20, 3)) + b"GNU\0"
    said = info(head + ID[:8])
    assert (said.build_id, said.build_id_start) == (None, ID[:8])
    assert (info().build_id, info().build_id_start) == (ID, None)


def banner(build_id: bytes, release: str) -> bytes:
    """A vmlinux that says which release it is."""
    text = f"Linux version {release} (x@y) #1\n".encode()
    data = bytearray(elf_file({**DEBUG, ".rodata": text}, {"linux_banner": 0x1000}, build_id=build_id))
    # .rodata is the section behind .notes and .debug_info: give it the banner's address
    shoff = int.from_bytes(data[40:48], "little")
    data[shoff + 3 * 64 + 16 : shoff + 3 * 64 + 24] = (0x1000).to_bytes(8, "little")
    return bytes(data)


def test_then_the_release_decides(search, tmp_path):
    said = info(MISREAD)
    put(Path(search.root, PLACES[0]), banner(ID, RELEASE))
    assert located(search, said) == PLACES[0]
    put(tmp_path / "given" / "vmlinux", banner(ID, RELEASE))
    assert search.in_directory(str(tmp_path / "given"), said, ARCH)


@pytest.mark.parametrize(("build_id", "release"), [(ID, "6.1.0-51"), (OTHER, RELEASE)])
def test_and_what_is_left_of_the_build_id(search, build_id, release):
    put(Path(search.root, PLACES[0]), banner(build_id, release))
    assert located(search, info(MISREAD)) is None
