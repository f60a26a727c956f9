"""Copies of VMCOREINFO in physical memory: all of them, in their forms, and no more than is bearable."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel import find
from kdump_elftool.kernel.find import LOOSE, LOOSE_NOTE, MOST_TEXTS, NOTE, PAGE, find_texts, text_at
from kdump_elftool.memory.extents import ZERO_FILL, Extents
from kdump_elftool.memory.paged import PagedReader, Trouble
from kdump_elftool.memory.physical import PhysicalMemory

TEXT = (
    b"OSRELEASE=6.1.0-test\nBUILD-ID=0102\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff81000000\n"
    + b"".join(b"OFFSET(page.x%d)=%d\n" % (number, number) for number in range(90))
    + b"CRASHTIME=1795000000\n"
)


class Memory:
    """Bytes at physical address 0, with zeros behind them and holes."""

    def __init__(self, size: int, absent: tuple[tuple[int, int], ...] = ()) -> None:
        self.data = bytearray(size)
        edges = [0, *(edge for hole in absent for edge in hole), size]
        start, end = u64(edges[::2]), u64(edges[1::2])
        # far away a stretch of zeros that costs no space in a file
        extents = Extents(
            np.append(start, u64([1 << 40])),
            np.append(end - start, u64([1 << 20])),
            np.append(start, u64([ZERO_FILL])),
        )
        self.physical = PhysicalMemory(self, extents, extents.ranges())

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]

    def put(self, paddr: int, data: bytes) -> None:
        self.data[paddr : paddr + len(data)] = data

    def found(self, order: str = "<") -> list[tuple[int, int, bytes]]:
        done: list[int] = []
        texts = find_texts(self.physical, order, done.append)
        assert texts.complete
        assert sum(done) == self.physical.present().total
        return [(text.paddr, text.form, text.data) for text in texts.found]


class Undecodable(PagedReader):
    """The same bytes, but one page turns out unreadable."""

    page_size = 4096

    def __init__(self, memory: Memory, bad: int) -> None:
        self.memory, self.bad = memory, bad

    def read_pages(self, pages, out):
        for row, page in enumerate(pages.tolist()):
            out[row] = np.frombuffer(self.memory.data, dtype=np.uint8, count=4096, offset=4096 * page)
        out[pages == self.bad] = 0
        return pages != self.bad

    def trouble(self, page):
        return Trouble("cannot be decoded", None)


def note(text: bytes, order: str = "<", **header: int) -> bytes:
    words = {"namesz": 11, "descsz": len(text), "type": 0} | header
    return struct.pack(order + "III", *words.values()) + b"VMCOREINFO\0\0" + text


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_form(order):
    memory = Memory(1 << 20)
    memory.put(0x1000, note(TEXT, order))
    memory.put(0x3000, TEXT)
    memory.put(0x5123, TEXT)
    memory.put(0x8010, note(TEXT, order))
    memory.put(0xA000, note(b"OSRELEASE=other\nPAGESIZE=65536\n", order) + b"no part of it")
    assert memory.found(order) == [
        (0x1018, NOTE, TEXT),
        (0x3000, PAGE, TEXT),
        (0x5123, LOOSE, TEXT),
        (0x8028, LOOSE_NOTE, TEXT),
        (0xA018, NOTE, b"OSRELEASE=other\nPAGESIZE=65536\n"),
    ]


def test_copies_of_a_form_are_told_once():
    memory = Memory(1 << 20)
    for page in range(16, 200):
        memory.put(page << 12, TEXT)
    assert memory.found() == [(16 << 12, PAGE, TEXT)]


@pytest.mark.parametrize(
    "text",
    [
        b"OSRELEASE=%s\n\0BUILD-ID=%20phN\n",  # the format string of the kernel that prints it
        b"OSRELEASE=6.1.0\n",
        b"OSRELEASE=\nPAGESIZE=4096\n",
        b"OSRELEASE=6.1.0\nPAGESIZE=9\n",
        b"OSRELEASE=" + b"x" * 65 + b"\nPAGESIZE=4096\n",
        b"OSRELEASE=6.1\x1b[2J\nPAGESIZE=4096\n",
        b"OSRELEASE=6.1.0\nBUILD-ID=xyz\nPAGESIZE=4096\n",
        b"OSRELEASE=",
    ],
)
def test_what_is_none(text):
    memory = Memory(1 << 16)
    memory.put(0x2000, text)
    memory.put(0x10000 - len(text), text)
    assert memory.found() == []


@pytest.mark.parametrize(
    "header",
    [{"namesz": 12}, {"type": 1}, {"descsz": 0}, {"descsz": 0x10001}, {"descsz": 0xFFFFFFFF}],
)
def test_a_header_that_lies_makes_no_note(header):
    memory = Memory(1 << 18)
    memory.put(0x1000, note(TEXT, **header))
    assert memory.found() == [(0x1018, LOOSE, TEXT)]


def test_a_note_that_counts_more_than_text_is_left_out():
    memory = Memory(1 << 18)
    memory.put(0x1000, note(TEXT, descsz=len(TEXT) + 40) + b"\1\2\3\4")
    assert memory.found() == []


@pytest.mark.parametrize("at", [find._PIECE - offset for offset in (1, 9, 24, 200, 255, 256, 257, 300)])
def test_across_two_pieces(at):
    memory = Memory(find._PIECE + (1 << 16))
    memory.put(at, TEXT)
    assert memory.found() == [(at, LOOSE, TEXT)]


def test_the_end_of_what_is_there_ends_a_text():
    memory = Memory(0x8000, absent=((0x3000, 0x4000),))
    memory.put(0x3000 - 1000, TEXT)
    memory.put(0x4000 + 24, TEXT)  # its header would lie in the hole
    memory.put(0x8000 - len(TEXT), TEXT)
    assert memory.found() == [(0x3000 - 1000, LOOSE, TEXT[:1000]), (0x4018, LOOSE, TEXT)]
    memory.put(0x2000, note(b"OSRELEASE=x\nPAGESIZE=4096\n", descsz=0x2000))
    assert (0x2018, NOTE) not in [(paddr, form) for paddr, form, _ in memory.found()]


def test_a_page_that_cannot_be_read_hides_itself_only():
    memory = Memory(1 << 20)
    memory.put(0x1000, TEXT)
    memory.put(0x3000, note(TEXT))
    whole = memory.physical
    memory.physical = PhysicalMemory(Undecodable(memory, 2), whole.extents, whole.declared)
    assert [form for _, form, _ in memory.found()] == [PAGE, NOTE]


def test_longest():
    memory = Memory(1 << 20)
    memory.put(0x10000, b"OSRELEASE=x\nPAGESIZE=65536\n" + b"y" * 0x20000)
    ((_, _, data),) = memory.found()
    assert len(data) == find.LARGEST


def test_text_at():
    memory = Memory(1 << 16)
    memory.put(0x1000, note(TEXT))
    memory.put(0x3000, TEXT)
    first, second = (text_at(memory.physical, "<", paddr) for paddr in (0x1000, 0x3000))
    assert first is not None and second is not None
    assert [(text.paddr, text.form, text.data) for text in (first, second)] == [
        (0x1018, NOTE, TEXT),
        (0x3000, PAGE, TEXT),
    ]
    for paddr in (0x1018, 0x2000, 0xFFF0, 1 << 30):
        assert text_at(memory.physical, "<", paddr) is None


@pytest.mark.parametrize(
    "filler", [b"OSRELEASE=", b"OSRELEASE=1\nPAGESIZE=4096\n"], ids=["beginnings", "heads"]
)
def test_memory_full_of_beginnings(filler):
    """The note between them is found, whatever else there is."""
    memory = Memory(16 << 20)
    memory.data[:] = filler * (len(memory.data) // len(filler)) + bytes(len(memory.data) % len(filler))
    memory.put(0x800000, note(TEXT) + bytes(0x1000))
    texts = find_texts(memory.physical, "<", lambda _: None)
    assert (0x800018, NOTE, TEXT) in [(text.paddr, text.form, text.data) for text in texts.found]
    assert len(texts.found) <= 4 * MOST_TEXTS


def test_thousands_of_different_texts():
    memory = Memory(16 << 20)
    for page in range(1, 4095):
        memory.put(page << 12, TEXT.replace(b"0102", b"%04x" % page))
    memory.put(4095 << 12, note(TEXT))
    texts = find_texts(memory.physical, "<", lambda _: None)
    assert not texts.complete
    assert sum(text.form == PAGE for text in texts.found) == MOST_TEXTS
    assert texts.found[-1].form == NOTE
