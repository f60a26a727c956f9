"""Readers of pages that may turn out unreadable: whoever reads sees them as absent."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.errors import PageAbsentError
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.paged import PagedReader, Trouble
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory
from tests.builders.elfcore import own_address_words

PAGE = 4096
PAGES = 3000
BAD = {3, 4, 10, 2047, 2048, 2999}
SEED = 20261124


class Pages(PagedReader):
    """Page n is what lies at paddr ``n * PAGE``; the bad ones cannot be read."""

    page_size = PAGE

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read_pages(self, pages, out):
        assert len(pages) == len(out) and np.all(pages[1:] > pages[:-1])
        self.asked += pages.tolist()
        for row, page in enumerate(pages.tolist()):
            out[row] = np.frombuffer(truth(page * PAGE, PAGE), dtype=np.uint8)
        return np.array([page not in BAD for page in pages.tolist()])

    def trouble(self, page):
        return Trouble(f"page {page} is bad", page)


def truth(paddr: int, size: int) -> bytes:
    data = bytearray(own_address_words(paddr, size))
    for page in BAD:
        low, high = max(page * PAGE, paddr), min((page + 1) * PAGE, paddr + size)
        if low < high:
            data[low - paddr : high - paddr] = bytes(high - low)
    return bytes(data)


@pytest.fixture
def memory() -> PhysicalMemory:
    extents = normalise(u64([0]), u64([PAGES * PAGE]), u64([0]))
    return PhysicalMemory(Pages(), extents, Ranges(u64([0]), u64([PAGES * PAGE])))


def holes_of(paddr: int, size: int) -> list[tuple[int, int]]:
    holes: list[tuple[int, int]] = []
    for page in sorted(BAD):
        low, high = max(page * PAGE, paddr) - paddr, min((page + 1) * PAGE, paddr + size) - paddr
        if low < high:
            if holes and holes[-1][1] == low:
                holes[-1] = (holes[-1][0], high)
            else:
                holes.append((low, high))
    return holes


def test_reads_of_any_alignment(memory):
    random = Random(SEED)
    spans = [(0, PAGES * PAGE), (2 * PAGE + 1, 2 * PAGE), (PAGE - 1, 2), (3 * PAGE, PAGE), (0, 0)]
    spans += [(random.randrange(20 * PAGE), random.randrange(1, 3 * PAGE)) for _ in range(100)]
    for paddr, size in spans:
        view = bytearray(b"\xff" * size)
        assert memory.read_present(paddr, memoryview(view)) == holes_of(paddr, size), (paddr, size)
        assert view == truth(paddr, size)


def test_behind_the_end_is_a_hole_too(memory):
    view = bytearray(3 * PAGE)
    assert memory.read_present((PAGES - 2) * PAGE, memoryview(view)) == [
        (PAGE, 2 * PAGE),
        (2 * PAGE, 3 * PAGE),
    ]


def test_a_plain_read_names_the_first_address_and_the_reason(memory):
    assert memory.read(0, 3 * PAGE) == truth(0, 3 * PAGE)
    with pytest.raises(PageAbsentError, match="page 3 is bad") as caught:
        memory.read(PAGE + 5, 4 * PAGE)
    assert caught.value.address == 3 * PAGE


@pytest.mark.parametrize("size", [1, 8, 64, 4096, 5000, 9000])
def test_gather_equals_single_reads(memory, size):
    random = Random(SEED)
    wanted = [random.randrange(PAGES * PAGE - size) for _ in range(2500)]
    wanted += [3 * PAGE - size + 1, 5 * PAGE - 1, 5 * PAGE, 11 * PAGE - 1]
    blocks, readable = memory.gather(u64(wanted), size)
    for row, paddr in enumerate(wanted):
        assert readable[row] == (not holes_of(paddr, size)), hex(paddr)
        assert blocks[row].tobytes() == (truth(paddr, size) if readable[row] else bytes(size))


def test_gather_reads_a_page_once_a_batch(memory):
    memory.gather(u64([20 * PAGE + 8 * n for n in range(512)] * 3), 8)
    assert memory.reader.asked == [20]


def test_virtual_memory_has_the_same_holes(memory):
    base = 0xFFFF888000000000
    virtual = VirtualMemory.of(memory, u64([base, base + 8 * PAGE]), u64([0, 9 * PAGE]), u64([6 * PAGE] * 2))
    view = bytearray(14 * PAGE)
    assert virtual.read_present(base, memoryview(view)) == [
        (3 * PAGE, 5 * PAGE), (6 * PAGE, 8 * PAGE), (9 * PAGE, 10 * PAGE),
    ]  # fmt: skip
    assert view[: 6 * PAGE] == truth(0, 6 * PAGE)
    assert view[8 * PAGE :] == truth(9 * PAGE, 6 * PAGE)
