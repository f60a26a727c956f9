"""Small compressed files: all of it or an error."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest

from kdump_elftool.codecs.whole import Allowance, Held, decompressed
from kdump_elftool.errors import CorruptDumpError, FormatError

DATA = bytes(range(256)) * 64
PACKED = {"gzip": gzip.compress(DATA), "xz": lzma.compress(DATA), "bzip2": bz2.compress(DATA)}


@pytest.mark.parametrize("name", PACKED)
def test_whole(name):
    assert decompressed(Held("x", PACKED[name]), len(DATA)) == DATA
    assert decompressed(Held("x", PACKED[name] * 2), 2 * len(DATA)) == DATA * 2


def test_not_compressed():
    assert decompressed(Held("x", DATA), 1) is None
    assert decompressed(Held("x", b""), 1) is None


@pytest.mark.parametrize("name", PACKED)
def test_cut_damaged_or_too_large(name):
    data = PACKED[name]
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    for bad in (data[:-1], data[: len(data) // 2], bytes(damaged)):
        with pytest.raises(FormatError, match="damaged"):
            decompressed(Held("x", bad), len(DATA))
    with pytest.raises(FormatError, match="more than 0x3fff"):
        decompressed(Held("x", data), len(DATA) - 1)


def test_held_bytes():
    view = bytearray(4)
    Held("x", b"abcdef").read_into(1, memoryview(view))
    assert view == b"bcde"
    assert Held("x", b"abcdef").read_at(4, 10) == b"ef"
    with pytest.raises(CorruptDumpError):
        Held("x", b"abcdef").read_into(4, memoryview(view))


def test_several_share_an_allowance():
    """What a stream became before it ended in an error counts, too."""
    shared = Allowance(2 * len(DATA) + 100)
    cut = PACKED["gzip"][:-1]
    with pytest.raises(FormatError, match="ends early"):
        decompressed(Held("x", cut), len(DATA), shared=shared)
    assert decompressed(Held("x", PACKED["xz"]), len(DATA), shared=shared) == DATA
    assert shared.left == 100
    with pytest.raises(FormatError, match="more than 0x64 "):
        decompressed(Held("x", PACKED["bzip2"]), len(DATA), shared=shared)
    assert shared.left == 0
