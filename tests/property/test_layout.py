"""Whatever is mapped, the core that is written holds exactly that."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.addr import u64
from kdump_elftool.elf.layout import Memory, build_layout
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.writer import write_core
from kdump_elftool.files import InputFile, open_output
from tests.builders.check import check_shape, read_core
from tests.builders.dumps import ram_memory
from tests.builders.kernel import Ram

KIND = ElfKind(64, "<")
PAGES = 40
PIECE = st.tuples(st.integers(0, 3), st.integers(0, PAGES - 1), st.integers(1, 6), st.integers(0, 3))


def arrange(pieces) -> Memory:
    """Pieces one behind the other with gaps of 0..3 pages; neighbours that continue each other are joined."""
    rows: list[list[int]] = []
    vaddr = 0xFFFFC90000000000
    for gap, frame, count, rank in pieces:
        vaddr += gap * 4096
        paddr, size = frame * 4096, min(count, PAGES - frame) * 4096
        if rows and rows[-1][0] + rows[-1][2] == vaddr and rows[-1][1] + rows[-1][2] == paddr:
            rows[-1][2] += size
        else:
            rows.append([vaddr, paddr, size, rank])
        vaddr += size
    vaddrs, paddrs, sizes, ranks = zip(*rows, strict=True)
    return Memory(u64(vaddrs), u64(paddrs), u64(sizes), np.array(ranks, dtype=np.intp))


@given(st.lists(PIECE, min_size=1, max_size=30), st.integers(1, 30), st.sets(st.integers(0, PAGES - 1)))
@settings(max_examples=60)
def test_written_core_reads_back(pieces, good_segments, zero_frames):
    ram = Ram([(0, PAGES * 4096)])
    for frame in zero_frames:
        ram.write(frame * 4096, bytes(4096))
    memory = arrange(pieces)
    notes = (Note(b"CORE", 1, b"x" * (len(pieces) % 7)),)
    layout = build_layout(KIND, 62, 0, memory, tuple(encode_notes(notes, KIND)), good_segments=good_segments)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "core"
        with open_output(str(path)) as out:
            write_core(layout, ram_memory(ram), out)
            out.commit()
        core = read_core(path)
        with InputFile.open(str(path)) as file:  # and by the package's own reader
            own = ElfFile.read(file)
            assert own.segments.p_vaddr.tolist() == [segment["p_vaddr"] for segment in core.segments]
            assert [(note.name, note.type, note.desc) for note in own.notes()[0]] == [
                (name.encode(), kind, desc) for name, kind, desc in core.notes()
            ]
    check_shape(core)
    held = 0
    for vaddr, paddr, size in zip(
        memory.vaddr.tolist(), memory.paddr.tolist(), memory.size.tolist(), strict=True
    ):
        assert core.read(vaddr, size) == ram.read(paddr, size)
        held += size
    assert sum(load["p_filesz"] for load in core.loads) == held
    assert len(core.image) == layout.file_size
    runs = 1 + int(np.count_nonzero(memory.vaddr[1:] != memory.vaddr[:-1] + memory.size[:-1]))
    assert len(core.loads) <= max(good_segments, runs), "64 MB of copies are allowed, so this can be had"
    ranks = dict(zip(memory.vaddr.tolist(), memory.rank.tolist(), strict=True))
    order = [ranks[load["p_vaddr"]] for load in core.loads]
    if layout.copied_bytes == 0:
        assert order == sorted(order)


@given(st.lists(PIECE, min_size=1, max_size=20))
@settings(max_examples=30)
def test_nothing_is_stored_twice_while_segments_are_few(pieces):
    memory = arrange(pieces)
    layout = build_layout(KIND, 62, 0, memory, tuple(encode_notes((), KIND)))
    assert layout.copied_bytes == 0
    frames = {
        frame
        for paddr, size in zip(memory.paddr.tolist(), memory.size.tolist(), strict=True)
        for frame in range(paddr, paddr + size, 4096)
    }
    assert int(layout.storage.size.sum()) == len(frames) * 4096
