"""Formats that are known but not read are named, with something to do."""

from __future__ import annotations

import pytest

from kdump_elftool.errors import FormatError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.recognised import RECOGNISED, recognise


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"makedumpfile\0\0\0\0", "flattened"),
        (b"QEVM\0\0\0\3", "migration"),
        (b"LibvirtQemudSave", "libvirt"),
        (b"PAGEDU64", "Windows"),
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
