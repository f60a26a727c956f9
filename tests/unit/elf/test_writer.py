"""Bulk writing: right bytes, zero pages as holes, streams, and nothing kept on an error."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.elf.layout import Memory, build_layout
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.writer import CHUNK, write_core, zero_pages
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import FileSlice, InputFile, open_output
from tests.builders.check import check_shape, read_core
from tests.builders.dumps import ram_memory
from tests.builders.elfcore import own_address_words
from tests.builders.kernel import Ram

KIND = ElfKind(64, "<")


def layout_of(pieces, notes=(Note(b"CORE", 1, b"abcd"),)):
    vaddr, paddr, size = zip(*pieces, strict=True)
    memory = Memory(u64(vaddr), u64(paddr), u64(size), np.zeros(len(pieces), dtype=np.intp))
    return build_layout(KIND, 62, 0, memory, tuple(encode_notes(notes, KIND)))


@pytest.fixture
def ram() -> Ram:
    ram = Ram([(0x1000, 0x1000 + 3 * CHUNK), (1 << 40, (1 << 40) + 0x1800)])
    ram.write(0x10000, bytes(0x8000))  # zero pages
    ram.write(0x20000, bytes(0xFFF) + b"\1")  # a page whose last byte only is set, and one at its begin
    ram.write(0x21000, b"\1" + bytes(0xFFF))
    return ram


PIECES = [
    (1 << 63, 0x1000, 3 * CHUNK),
    (1 << 63 | 1 << 40, 1 << 40, 0x1800),
    (1 << 63 | 1 << 41, 0x11000, 0x3000),
]


def test_contents(tmp_path, ram):
    path = tmp_path / "core"
    advanced = []
    with open_output(str(path)) as out:
        written = write_core(layout_of(PIECES), ram_memory(ram), out, advanced.append)
        out.commit()
    core = read_core(path)
    check_shape(core)
    for vaddr, paddr, size in PIECES:
        assert core.read(vaddr, size) == ram.read(paddr, size)
    assert (written.zero_bytes, len(written.size)) == (0x8000, 0)
    assert sum(advanced) == 3 * CHUNK + 0x1800
    assert core.notes() == [("CORE", 1, b"abcd")]


def test_zero_pages_become_holes(tmp_path, ram):
    ram.write(0x100000, bytes(8 << 20))
    path = tmp_path / "core"
    with open_output(str(path)) as out:
        write_core(layout_of(PIECES[:1]), ram_memory(ram), out)
        out.commit()
    status = path.stat()
    assert status.st_blocks * 512 <= status.st_size - (7 << 20)
    core = read_core(path)
    assert core.read(1 << 63, 3 * CHUNK) == ram.read(0x1000, 3 * CHUNK)


def test_zero_pages_at_the_very_end_are_part_of_the_file(tmp_path):
    ram = Ram([(0, 0x4000)])
    ram.write(0, bytes(0x4000))
    path = tmp_path / "core"
    with open_output(str(path)) as out:
        write_core(layout_of([(1 << 63, 0, 0x4000)]), ram_memory(ram), out)
        out.commit()
    assert read_core(path).read(1 << 63, 0x4000) == bytes(0x4000)


def test_stream_gets_the_same_bytes(tmp_path, ram):
    layout = layout_of(PIECES)
    path, fifo, copy = tmp_path / "core", tmp_path / "fifo", tmp_path / "copy"
    with open_output(str(path)) as out:
        write_core(layout, ram_memory(ram), out)
        out.commit()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: copy.write_bytes(fifo.read_bytes()), daemon=True)
    reader.start()
    with open_output(str(fifo)) as out:
        write_core(layout, ram_memory(ram), out)
        out.commit()
    reader.join(10)
    assert not reader.is_alive(), "the reader of a pipe sees its end when the output is done"
    assert copy.read_bytes() == path.read_bytes()


def test_note_larger_than_the_buffer_comes_from_its_file(tmp_path, ram):
    source = tmp_path / "source"
    source.write_bytes(b"head" + own_address_words(0, CHUNK + 12))
    path = tmp_path / "core"
    note = Note(b"LINUX", 0x700, FileSlice(InputFile.open(str(source)), 4, CHUNK + 10))
    with open_output(str(path)) as out:
        write_core(layout_of(PIECES, (note, Note(b"CORE", 1, b"abcd"))), ram_memory(ram), out)
        out.commit()
    assert read_core(path).notes() == [
        ("LINUX", 0x700, own_address_words(0, CHUNK + 10)),
        ("CORE", 1, b"abcd"),
    ]


def test_a_failing_read_leaves_no_file(tmp_path, ram):
    class Failing:
        def __init__(self) -> None:
            self.left = 2

        def read_into(self, offset: int, view: memoryview) -> None:
            self.left -= 1
            if self.left < 0:
                raise CorruptDumpError("dump", "gone", file_offset=offset)

    memory = ram_memory(ram)
    broken = type(memory)(Failing(), memory.extents, memory.declared)
    threads = threading.active_count()
    with pytest.raises(CorruptDumpError), open_output(str(tmp_path / "core")) as out:
        write_core(layout_of(PIECES), broken, out)
        out.commit()
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == threads


@pytest.mark.parametrize("at", [0, 1, 7, 8, 2047, 2048, 4088, 4095, 2500])
def test_zero_pages_sees_every_byte(at):
    pages = np.zeros((3, 4096), dtype=np.uint8)
    pages[1, at] = 1
    assert zero_pages(pages.view(np.uint64)).tolist() == [True, False, True]
