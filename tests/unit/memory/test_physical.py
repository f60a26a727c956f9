"""Reads by physical address: across extents, absent pages, zero fill, many blocks at once."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.errors import PageAbsentError
from kdump_elftool.memory.extents import ZERO_FILL, normalise
from kdump_elftool.memory.physical import PhysicalMemory
from tests.builders.elfcore import own_address_words


class Store:
    """A block reader over bytes that counts its calls."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls: list[tuple[int, int]] = []

    def read_into(self, offset: int, view: memoryview) -> None:
        assert offset + len(view) <= len(self.data), "read past what the extents allow"
        self.calls.append((offset, len(view)))
        view[:] = self.data[offset : offset + len(view)]


@pytest.fixture
def memory() -> PhysicalMemory:
    """Three pages at 0x1000 in two pieces that lie apart in the file, a zero page, one far page."""
    store = Store(
        own_address_words(0x2000, 0x2000)
        + own_address_words(0x1000, 0x1000)
        + own_address_words(2**50, 0x1000)
    )
    extents = normalise(
        u64([0x1000, 0x2000, 0x4000, 2**50]),
        u64([0x1000, 0x2000, 0x1000, 0x1000]),
        u64([0x2000, 0, ZERO_FILL, 0x3000]),
    )
    declared = Ranges(u64([0x1000, 2**50]), u64([0x8000, 2**50 + 0x2000]))
    return PhysicalMemory(store, extents, declared)


def test_read_across_extents(memory):
    assert memory.read(0x1000, 0x3000) == own_address_words(0x1000, 0x3000)
    assert memory.read(0x1FF3, 29) == own_address_words(0x1FF3, 29)
    assert memory.read(0x3FF8, 16) == own_address_words(0x3FF8, 8) + bytes(8)
    assert memory.read(0x5000, 0) == b""


@pytest.mark.parametrize(
    ("paddr", "size", "at"),
    [
        (0, 1, 0),
        (0xFFF, 2, 0xFFF),
        (0x4FFF, 2, 0x5000),
        (2**50 + 0xFFF, 2, 2**50 + 0x1000),
        (2**64 - 8, 8, 2**64 - 8),
    ],
)
def test_absent_memory_names_the_first_missing_address(memory, paddr, size, at):
    with pytest.raises(PageAbsentError) as caught:
        memory.read(paddr, size)
    assert (caught.value.space, caught.value.address) == ("paddr", at)


def test_present_and_absent(memory):
    present, absent = memory.present(), memory.absent()
    assert (present.start.tolist(), present.end.tolist()) == ([0x1000, 2**50], [0x5000, 2**50 + 0x1000])
    assert (absent.start.tolist(), absent.end.tolist()) == (
        [0x5000, 2**50 + 0x1000],
        [0x8000, 2**50 + 0x2000],
    )


@pytest.mark.parametrize("size", [8, 512, 4096])
def test_gather_equals_single_reads(memory, size):
    wanted = [2**50, 0x4000, 0x1000, 0x2000, 0, 0x5000, 0x1FF8, 0x3FF0, 0x4FF8, 2**50 + 0xFF8, 0x2000, 2**63]
    blocks, readable = memory.gather(u64(wanted), size)
    assert blocks.shape == (len(wanted), size)
    for row, paddr in enumerate(wanted):
        try:
            expected = memory.read(paddr, size)
        except PageAbsentError:
            assert not readable[row]
            assert not blocks[row].any()
        else:
            assert readable[row]
            assert blocks[row].tobytes() == expected


def test_gather_of_nothing(memory):
    blocks, readable = memory.gather(np.zeros(0, dtype=np.uint64), 8)
    assert blocks.shape == (0, 8)
    assert len(readable) == 0


def test_gather_reads_neighbours_together():
    store = Store(own_address_words(0, 1 << 22))
    memory = PhysicalMemory(store, normalise(u64([0]), u64([1 << 22]), u64([0])), Ranges(u64([]), u64([])))
    wanted = u64(list(range(0, 1 << 22, 0x2000))[::-1])
    blocks, readable = memory.gather(wanted, 0x1000)
    assert readable.all()
    assert blocks.view("<u8")[:, 0].tolist() == wanted.tolist()
    assert len(store.calls) < 20
