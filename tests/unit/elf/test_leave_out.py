"""Cores without what could not be read: segments cut, headers rewritten, bytes where they were."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, subtract_ranges, u64
from kdump_elftool.elf.layout import Memory, build_layout, leave_out
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.writer import write_core, write_headers
from kdump_elftool.errors import PageAbsentError
from kdump_elftool.files import open_output
from kdump_elftool.memory.extents import intersect, normalise
from kdump_elftool.memory.paged import PagedReader, Trouble
from kdump_elftool.memory.physical import PhysicalMemory
from tests.builders.check import check_shape, read_core
from tests.builders.elfcore import own_address_words
from tests.builders.tools import readelf_complaints

PAGE = 4096
KIND = ElfKind(64, "<")
NOTES = (Note(b"CORE", 1, b"abcd"),)


class Pages(PagedReader):
    page_size = PAGE

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def read_pages(self, pages, out):
        for row, page in enumerate(pages.tolist()):
            out[row] = np.frombuffer(own_address_words(page * PAGE, PAGE), dtype=np.uint8)
        return np.array([page not in self.bad for page in pages.tolist()])

    def trouble(self, page):
        return Trouble("bad", None)


def written(tmp_path, bad: set[int], pages: int, notes=NOTES):
    """The core of ``pages`` pages mapped twice, the second time from its middle on; without the bad ones."""
    base, half = 1 << 63, pages // 2
    pieces = ((base, 0, pages * PAGE), (base | 1 << 40, half * PAGE, half * PAGE))
    vaddr, paddr, size = (u64(column) for column in zip(*pieces, strict=True))
    encoded = tuple(encode_notes(notes, KIND))
    layout = build_layout(KIND, 62, 0, Memory(vaddr, paddr, size, np.zeros(2, dtype=np.intp)), encoded)
    extents = Ranges(u64([0]), u64([pages * PAGE]))
    memory = PhysicalMemory(Pages(bad), normalise(u64([0]), u64([pages * PAGE]), u64([0])), extents)
    path = tmp_path / "core"
    with open_output(str(path)) as out:
        done = write_core(layout, memory, out)
        holes = Ranges(done.file_offset, done.file_offset + done.size)
        good = subtract_ranges(Ranges(u64([0]), u64([1 << 62])), holes)
        cut = intersect(good, layout.p_offset, layout.p_filesz)
        after = leave_out(layout, cut.owner, cut.start, cut.size, encoded)
        write_headers(after, out)
        out.finish(after.file_size)
        out.commit()
    return done, after, read_core(path), path


@pytest.mark.parametrize(
    "bad", [{5}, {0}, {99}, {3, 4, 50, 51, 98}, set(range(0, 100, 2)), set(range(0, 100, 9))]
)
def test_each_page_is_right_or_not_there(tmp_path, bad):
    done, after, core, path = written(tmp_path, bad, 100)
    check_shape(core)
    assert int(done.size.sum()) == len(bad) * PAGE
    assert core.notes() == [("CORE", 1, b"abcd")]
    for page in range(100):
        expected = None if page in bad else own_address_words(page * PAGE, PAGE)
        assert core.read(1 << 63 | page * PAGE, PAGE) == expected
        if page >= 50:
            assert core.read(1 << 63 | 1 << 40 | (page - 50) * PAGE, PAGE) == expected
    assert readelf_complaints(path) == []
    assert after.tables_offset is None or after.tables_offset > 100 * PAGE


def test_headers_move_behind_the_data_only_when_they_must(tmp_path):
    few, many = {5}, set(range(0, 400, 2))
    assert written(tmp_path, few, 400)[1].tables_offset is None
    _, after, core, path = written(tmp_path, many, 400)
    assert after.tables_offset is not None
    assert after.file_size == path.stat().st_size
    assert core.notes() == [("CORE", 1, b"abcd")]


@pytest.mark.slow
def test_more_segments_than_e_phnum_can_count(tmp_path):
    bad = set(range(0, 140_000, 2))
    _, after, core, path = written(tmp_path, bad, 140_000)
    assert after.nr_segments == len(core.loads) > 0xFFFF
    assert core.read(1 << 63 | 5 * PAGE, PAGE) == own_address_words(5 * PAGE, PAGE)
    path.unlink()


def test_a_stream_is_an_error(tmp_path):
    vaddr, paddr, size = u64([1 << 63]), u64([0]), u64([8 * PAGE])
    layout = build_layout(KIND, 62, 0, Memory(vaddr, paddr, size, np.zeros(1, dtype=np.intp)), ())
    memory = PhysicalMemory(Pages({3}), normalise(paddr, size, paddr), Ranges(paddr, size))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = threading.Thread(target=fifo.read_bytes, daemon=True)
    reader.start()
    with pytest.raises(PageAbsentError, match="bad") as caught, open_output(str(fifo)) as out:
        write_core(layout, memory, out)
    assert caught.value.address == 3 * PAGE
    reader.join(10)
