"""What only kernels are compressed with: lzma's first format, lz4's legacy frames."""

from __future__ import annotations

import sys

import pytest

from kdump_elftool.codecs.kernel_streams import KERNEL_STREAMS
from kdump_elftool.codecs.whole import Held, decompressed
from kdump_elftool.errors import FormatError, MissingCodecError
from tests.builders.boot_images import COMPRESS, LEGACY_BLOCK, legacy_lz4, packed

DATA = bytes(range(256)) * 1024


@pytest.mark.parametrize("how", COMPRESS)
def test_with_its_size_behind_it(how):
    assert decompressed(Held("x", packed(DATA, how)), len(DATA), KERNEL_STREAMS) == DATA


@pytest.mark.parametrize("how", COMPRESS)
def test_cut_or_too_large(how):
    whole = COMPRESS[how](DATA)
    with pytest.raises(FormatError, match="damaged"):
        decompressed(Held("x", whole[: len(whole) // 2]), len(DATA), KERNEL_STREAMS)
    with pytest.raises(FormatError, match="more than 0x"):
        decompressed(Held("x", whole), len(DATA) - 1, KERNEL_STREAMS)


@pytest.mark.parametrize("size", [LEGACY_BLOCK - 1, LEGACY_BLOCK + 1, 2 * LEGACY_BLOCK])
def test_blocks_of_8_mb(size):
    """The last is the one that is shorter, or the size follows whole ones."""
    data = bytes(size)
    assert decompressed(Held("x", packed(data, "lz4")), len(data), KERNEL_STREAMS) == data


def test_a_block_that_is_none():
    whole = bytearray(legacy_lz4(DATA))
    whole[8:12] = b"\xff\xff\xff\xff"
    with pytest.raises(FormatError, match="the legacy lz4 stream is damaged"):
        decompressed(Held("x", bytes(whole)), len(DATA), KERNEL_STREAMS)


def test_without_the_library(monkeypatch):
    """What is missing is said, not where the import of it failed."""
    packed_data = packed(DATA, "lz4")
    for name in ("lz4", "lz4.block", "lz4.frame"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingCodecError, match="lz4"):
        decompressed(Held("x", packed_data), len(DATA), KERNEL_STREAMS)
