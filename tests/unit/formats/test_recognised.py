"""Formats that are known but not read are named, with something to do."""

from __future__ import annotations

import gzip
import struct

import pytest

from kdump_elftool.errors import FormatError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.recognised import RECOGNISED, recognise
from tests.builders.elfcore import CoreSpec, build_core


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"PAGEDU64", "Windows"),
        (b"PAGEDUMP", "Windows"),
        (b"sadump\0\0\1\0\0\0", "sadump"),
        (bytes.fromhex("ed238f61730119a8"), "LKCD"),
        (bytes.fromhex("a8190173618f23ed"), "LKCD"),
        (bytes.fromhex("cd238f61730119a8"), "LKCD"),
        (bytes.fromhex("a8190173618f23fd"), "s390"),
        (bytes.fromhex("a8190173618f23fe"), "extended s390"),
        (bytes.fromhex("14202801"), "Hyper-V"),
        (b"LinuxGuestRecord", "Xen"),
        (b"Xen saved domain, xl format\n \0 \r", "xl save"),
        (bytes.fromhex("edeb0ff0"), "xm dump-core"),
        (bytes.fromhex("f00febee"), "xm dump-core"),
        (bytes.fromhex("02214c18"), "legacy"),
    ],
)
def test_known(tmp_path, head, word):
    found = recognise(head + bytes(64))
    if found is None:
        pytest.fail(f"{head!r} is not recognised; if it is read now, move it to that format's tests")
    assert word in found[0]
    assert found[1]
    (tmp_path / "dump").write_bytes(head + bytes(1000))
    with (
        InputFile.open(str(tmp_path / "dump")) as file,
        pytest.raises(UnsupportedError, match=word) as caught,
    ):
        open_dump(file)
    assert caught.value.hint


@pytest.mark.parametrize("head", [b"", b"K", b"KDUM", b"\x7fELF", b"text", bytes(64)])
def test_unknown(head):
    assert recognise(head) is None


def test_no_magic_is_the_beginning_of_another():
    magics = [row[0] for row in RECOGNISED]
    assert not [(a, b) for a in magics for b in magics if a != b and b.startswith(a)]


@pytest.mark.parametrize("content", [b"", b"\x1b[2J" * 20])
def test_unknown_files_are_refused_without_showing_their_bytes(tmp_path, content):
    (tmp_path / "dump").write_bytes(content)
    with InputFile.open(str(tmp_path / "dump")) as file, pytest.raises(FormatError) as caught:
        open_dump(file)
    assert caught.value.hint
    assert "\x1b" not in caught.value.message


def test_xen_core_in_elf(tmp_path):
    """Sections instead of PT_LOADs, and Xen's own note (docs/misc/dump-core-format.txt)."""
    note = struct.pack("<III", 4, 32, 0x2000001) + b"Xen\0" + struct.pack("<QQQQ", 0xF00FEBED, 2, 100, 4096)
    image = build_core(CoreSpec([], [], sections=True)) + note
    (tmp_path / "dump").write_bytes(image)
    with (
        InputFile.open(str(tmp_path / "dump")) as file,
        pytest.raises(UnsupportedError, match="Xen core") as caught,
    ):
        open_dump(file)
    assert caught.value.hint


def test_inside_a_compressed_file_too(tmp_path):
    (tmp_path / "dump").write_bytes(gzip.compress(b"PAGEDU64" + bytes(1000)))
    with InputFile.open(str(tmp_path / "dump")) as file, pytest.raises(UnsupportedError, match="Windows"):
        open_dump(file)
