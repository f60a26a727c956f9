"""The shape of an output core: pure arithmetic, judged by struct, readelf and pyelftools."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.addr import u64
from kdump_elftool.elf.layout import NO_PADDR, CoreLayout, Memory, build_layout, encode_headers
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import OutputError
from tests.builders.check import check_aliases_share, check_shape, read_core
from tests.builders.dumps import columns
from tests.builders.tools import readelf_complaints

KIND = ElfKind(64, "<")
BASE = 0xFFFFC90000000000


def memory(*pieces: tuple[int, int, int] | tuple[int, int, int, int]) -> Memory:
    """vaddr, paddr, size[, rank], sorted by vaddr."""
    rows = sorted((*piece, 0)[:4] for piece in pieces)
    vaddr, paddr, size, rank = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Memory(u64(vaddr), u64(paddr), u64(size), np.array(rank, dtype=np.intp))


def lay(pieces, kind: ElfKind = KIND, good_segments: int = 4096, notes: tuple[Note, ...] = ()) -> CoreLayout:
    encoded = tuple(encode_notes(notes, kind))
    return build_layout(kind, 62, 0, memory(*pieces), encoded, good_segments=good_segments)


def image(layout: CoreLayout) -> bytes:
    """Headers and notes with zeros for the memory."""
    notes = b"".join(chunk for chunk in layout.notes if isinstance(chunk, bytes))
    head = b"".join(data for _, data in encode_headers(layout))
    assert len(head) <= layout.notes_offset
    raw = head.ljust(layout.notes_offset, b"\0") + notes
    return raw.ljust(layout.file_size, b"\0")


def test_no_memory_at_all():
    core = read_core(image(lay([], notes=(Note(b"CORE", 1, b"abcd"),))))
    assert core.loads == []
    assert core.notes() == [("CORE", 1, b"abcd")]


def test_one_piece():
    layout = lay([(BASE, 0x5000, 0x3000)])
    core = read_core(image(layout))
    check_shape(core)
    (load,) = core.loads
    assert (load["p_vaddr"], load["p_paddr"], load["p_filesz"], load["p_align"]) == (
        BASE,
        0x5000,
        0x3000,
        0,
    )
    assert load["p_offset"] % 4096 == 0
    assert columns(layout.storage.paddr, layout.storage.size, layout.storage.file_offset) == [
        (0x5000, 0x3000, load["p_offset"])
    ]


def test_aliases_share_their_data_even_when_they_overlap_in_part():
    layout = lay([(BASE, 0x5000, 0x3000), (BASE + 0x10000, 0x6000, 0x4000), (BASE + 0x20000, 0x5000, 0x1000)])
    core = read_core(image(layout))
    check_shape(core)
    check_aliases_share(core)
    assert columns(layout.storage.paddr, layout.storage.size)[0] == (0x5000, 0x5000)
    assert len(layout.storage.paddr) == 1


def test_hot_segments_first_and_sorted_within_a_rank():
    layout = lay([(0x1000, 0, 0x1000, 3), (0x5000, 0x9000, 0x1000, 0), (0x3000, 0x20000, 0x1000, 3),
                  (0x9000, 0x30000, 0x1000, 1)])  # fmt: skip
    assert layout.p_vaddr.tolist() == [0x5000, 0x9000, 0x1000, 0x3000]


def test_unaligned_memory_keeps_its_place_in_the_page():
    layout = lay([(BASE + 0xC00, 0x9FC00 - 0x1000, 0x400), (BASE + 0x1000, 0x9F000, 0x800)])
    core = read_core(image(layout))
    check_shape(core)
    check = {load["p_vaddr"]: load["p_offset"] % 4096 for load in core.loads}
    assert check == {BASE + 0xC00: 0xC00, BASE + 0x1000: 0}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", "<>")
def test_every_class_and_byte_order(tmp_path, bits, order):
    layout = build_layout(
        ElfKind(bits, order), 8, 0x70001007, memory((0xC0000000, 0x1000, 0x2000)),
        tuple(encode_notes((Note(b"CORE", 1, b"abcd"),), ElfKind(bits, order))),
    )  # fmt: skip
    raw = image(layout)
    core = read_core(raw)
    check_shape(core)
    assert (core.elf_class, core.order, core.e_machine, core.e_flags) == (bits, order, 8, 0x70001007)
    elf = ELFFile(io.BytesIO(raw))
    assert [segment["p_type"] for segment in elf.iter_segments()] == ["PT_NOTE", "PT_LOAD"]
    path = tmp_path / "core"
    path.write_bytes(raw)
    assert not readelf_complaints(path)


@pytest.mark.parametrize("count", [65533, 65534, 65535, 70000])
def test_xnum_border(tmp_path, count):
    """Up to 65,534 headers (PT_NOTE included) fit e_phnum; beyond, section 0 has the count."""
    layout = lay(
        [(BASE + page * 0x2000, page * 0x2000, 0x1000) for page in range(count)], good_segments=10**6
    )
    raw = image(layout)
    core = read_core(raw)
    assert len(core.segments) == count + 1
    assert int.from_bytes(raw[56:58], "little") == (count + 1 if count + 1 < 65535 else 65535)
    path = tmp_path / "core"
    path.write_bytes(raw[: layout.notes_offset] + bytes(100))
    elf = ELFFile(io.BytesIO(raw))
    assert elf.num_segments() == count + 1
    assert elf.get_segment(count)["p_vaddr"] == BASE + (count - 1) * 0x2000


def scattered(runs: int, pages: int) -> list[tuple[int, int, int]]:
    """Runs of pages, contiguous in vaddr, every second frame in descending order in paddr."""
    out, frame = [], runs * pages * 2
    for run in range(runs):
        for page in range(pages):
            out.append((BASE + (run * (pages + 1) + page) * 0x1000, frame * 0x1000, 0x1000))
            frame -= 2
    return out


def test_scattered_runs_are_stored_again_to_keep_segments_few():
    plain, few = lay(scattered(100, 8)), lay(scattered(100, 8), good_segments=200)
    assert plain.nr_segments == 800
    assert plain.copied_bytes == 0
    assert few.nr_segments <= 200
    core = read_core(image(few))
    check_shape(core)
    check_aliases_share(core, copied=True)
    assert sum(load["p_filesz"] for load in core.loads) == 800 * 4096
    whole_runs = [load for load in core.loads if load["p_filesz"] == 8 * 4096]
    assert {load["p_paddr"] for load in whole_runs} == {NO_PADDR}
    assert few.copied_bytes == len(whole_runs) * 8 * 4096


def test_stored_again_only_as_much_as_needed_and_not_without_limit():
    pieces = scattered(100, 8)
    assert lay(pieces, good_segments=790).copied_bytes <= 3 * 8 * 4096
    large = [(BASE + index * (1 << 30), (5 - index) << 31, 1 << 30) for index in range(3)]
    assert lay(large, good_segments=1).copied_bytes <= 1 << 30


def test_storage_tells_every_byte_once_and_in_file_order():
    layout = lay(scattered(50, 4), good_segments=60)
    rows = columns(layout.storage.file_offset, layout.storage.size)
    assert rows == sorted(rows)
    for (offset, size), (following, _) in itertools.pairwise(rows):
        assert offset + size <= following
    assert rows[-1][0] + rows[-1][1] == layout.file_size


def test_too_large_for_32_bit():
    with pytest.raises(OutputError):
        lay([(0, 0, 0xF0000000), (0xF0000000, 0xF0000000, 0x0FFFF000)], kind=ElfKind(32, "<"))
