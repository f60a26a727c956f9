"""Reading around what the system refuses: nothing else is lost, in few attempts, and those have an end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.errors import PageAbsentError, ReadFailedError
from kdump_elftool.memory import unreadable
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.unreadable import Unreadable
from tests.builders.elfcore import own_address_words

PAGE = 4096
MB = 1 << 20


class Broken:
    """Words that are their own offset; a read that touches a bad page gives nothing, as read_vmcore()."""

    def __init__(self, bad: set[int], size: int = 4 * MB) -> None:
        self.bad, self.size = bad, size
        self.data = own_address_words(0, size) if size <= 4 * MB else b""
        self.reads = 0

    def read_into(self, offset: int, view: memoryview, /) -> None:
        self.reads += 1
        for page in range(offset // PAGE, -(-(offset + len(view)) // PAGE)):
            if page in self.bad:
                raise ReadFailedError("dump", "Input/output error", file_offset=offset, hint="-")
        view[:] = self.data[offset : offset + len(view)]


class Dead(Broken):
    def __init__(self) -> None:
        super().__init__(set(), 1 << 50)

    def read_into(self, offset: int, view: memoryview, /) -> None:
        self.reads += 1
        raise ReadFailedError("dump", "Input/output error", file_offset=offset, hint="-")


def expected(bad: set[int], offset: int, size: int) -> bytes:
    data = bytearray(own_address_words(0, 4 * MB))
    for page in bad:
        data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    return bytes(data[offset : offset + size])


@pytest.mark.parametrize("bad", [{0}, {1023}, {500}, {3, 4, 5}, set(range(0, 1024, 2)), set(range(1024))])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4 * MB), (2 * MB + 8, MB), (500 * PAGE + 8, 8), (5, 3 * PAGE)]
)
def test_pages_that_fail_and_no_others(bad, offset, size):
    reader, places = Broken(bad), Unreadable()
    view = memoryview(bytearray(b"x" * size))
    for _ in range(2):
        holes = places.read(reader, offset, view)
        assert bytes(view) == expected(bad, offset, size)
        held = np.ones(size, dtype=bool)
        for low, high in holes:
            held[low:high] = False
        pages = (np.arange(offset, offset + size)) // PAGE
        assert (held == ~np.isin(pages, sorted(bad))).all()
        assert all(a[1] < b[0] for a, b in itertools.pairwise(holes))


def test_one_page_costs_few_reads():
    reader, places = Broken({700}), Unreadable()
    assert places.read(reader, 0, memoryview(bytearray(4 * MB))) == [(700 * PAGE, 701 * PAGE)]
    assert reader.reads < 60
    reader.reads = 0
    assert places.read(reader, 700 * PAGE + 8, memoryview(bytearray(8))) == [(0, 8)]
    assert reader.reads == 0, "it is not tried again"
    assert places.read(reader, 0, memoryview(bytearray(4 * MB))) == [(700 * PAGE, 701 * PAGE)]
    assert reader.reads < 30


def test_what_is_well_is_read_at_once():
    reader, places = Broken({700}), Unreadable()
    assert places.read(reader, 0, memoryview(bytearray(MB))) == []
    assert reader.reads == 1
    assert places.trouble(0) is None


@pytest.mark.parametrize("patience", [1, 1 << 14])
def test_two_threads_meet_the_same_pages(monkeypatch, patience):
    """One comes upon them while the other is about to note them, in pieces of other sizes."""
    monkeypatch.setattr(unreadable, "_PATIENCE", patience)
    bad = {3, 4, 5, 40, 41, 42, 43, 44, 90}
    places, other = Unreadable(), Broken(bad)

    class Slow(Broken):
        def read_into(self, offset: int, view: memoryview, /) -> None:
            try:
                super().read_into(offset, view)
            except ReadFailedError:
                if len(view) == PAGE:  # it will be noted
                    places.read(other, offset, memoryview(bytearray(2 * PAGE)))
                raise

    slow, view = Slow(bad), memoryview(bytearray(4 * MB))
    holes = places.read(slow, 0, view)
    gone = {page for low, high in holes for page in range(low // PAGE, high // PAGE)}
    assert bad <= gone
    assert gone == bad or patience == 1
    assert slow.reads < 200
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(places.places))


def test_a_dead_disk_has_an_end(monkeypatch, caplog):
    monkeypatch.setattr(unreadable, "_PATIENCE", 64)
    reader, places = Dead(), Unreadable()
    view = memoryview(bytearray(4 * MB))
    for at in range(0, 4000 * MB, 4 * MB):
        assert places.read(reader, at, view) == [(0, len(view))]
    assert reader.reads < 64 * 11 + 2 * 1000 + 20
    assert len(places.places) == 1
    assert len(caplog.records) == 1
    assert "Input/output error at file offset 0x" in places.trouble(400 * MB).why


def test_so_many_places_are_remembered(monkeypatch):
    monkeypatch.setattr(unreadable, "_MOST_PLACES", 10)
    bad = set(range(0, 1024, 2))
    places = Unreadable()
    view = memoryview(bytearray(4 * MB))
    assert len(places.read(Broken(bad), 0, view)) == 512
    assert len(places.places) == 10
    assert bytes(view) == expected(bad, 0, 4 * MB)


@pytest.fixture
def memory():
    """The data from 8 on, at 0x10000."""
    extents = normalise(u64([0x10000]), u64([2 * MB]), u64([8]))
    return PhysicalMemory(Broken({3, 4, 9}), extents, Ranges(u64([0x10000]), u64([0x10000 + 2 * MB])))


def test_blocks_that_touch_it_are_unreadable(memory):
    paddr = u64([0x10000 + at for at in (9 * PAGE, 0, 3 * PAGE - 24, 3 * PAGE - 16, MB, 5 * PAGE - 8)])
    blocks, good = memory.gather(paddr, 16)
    assert good.tolist() == [False, True, True, False, True, True]
    for row, at in enumerate(paddr.tolist()):
        right = own_address_words(at - 0x10000 + 8, 16) if good[row] else bytes(16)
        assert blocks[row].tobytes() == right


def test_where_it_is_in_memory(memory):
    assert len(memory.found_unreadable()) == 0
    memory.gather(u64([0x10000 + 3 * PAGE, 0x10000 + 9 * PAGE]), 8)
    found = memory.found_unreadable()
    assert found.start.tolist() == [0x12000, 0x18000], "8 bytes before, in the file, as the next page"
    assert found.end.tolist() == [0x15000, 0x1A000]


def test_moved_memory_shares_what_is_known(memory):
    moved = memory.moved(0x100000)
    with pytest.raises(PageAbsentError, match="dump: Input/output error at file offset 0x3008"):
        moved.read(0x110000 + 3 * PAGE, 8)
    assert memory.trouble(0x10000 + 3 * PAGE).file_offset == 0x3008
    assert memory.trouble(0x10000 + 3 * PAGE - 8).file_offset == 0x3008
