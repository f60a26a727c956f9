"""The shape of an output core, computed without touching any file.

Physical memory that several mappings share is stored once: their PT_LOADs point to the same file
offset (no reader minds).  When scattered vmalloc areas would make too many segments, the areas
that save most segments per byte are stored a second time, in virtual order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import MASK64, U64, Index, Ranges, align_up, merge_ranges
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import chunk_size
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import OutputError
from kdump_elftool.files import FileSlice

PAGE = 4096
GOOD_SEGMENTS = 4096
MANY_SEGMENTS = 16384
MAX_COUNTED = 0xFFFE
"""Most program headers that e_phnum itself can count."""
NO_PADDR = MASK64
"""p_paddr of a segment whose pages lie at scattered physical addresses (as in /proc/kcore)."""

_COPY_SHARE = 4
_COPY_FLOOR = 64 << 20
_MAX_SECTION0_COUNT = (1 << 32) - 1


@dataclass(frozen=True)
class Memory:
    """Virtually mapped memory to be written, uint64 columns sorted by vaddr, pieces disjoint.

    ``rank`` orders segments in the header: gdb searches them one after the other, so what is
    asked for most has the lowest rank.
    """

    vaddr: U64
    paddr: U64
    size: U64
    rank: Index


@dataclass(frozen=True)
class Storage:
    """What is written where: ``[paddr, paddr + size)`` at ``file_offset``, in file order."""

    paddr: U64
    size: U64
    file_offset: U64


@dataclass(frozen=True)
class CoreLayout:
    """A complete core: header parameters, segment columns in header order, notes, storage."""

    kind: ElfKind
    e_machine: int
    e_flags: int
    p_vaddr: U64
    p_paddr: U64
    p_offset: U64
    p_filesz: U64
    notes: tuple[bytes | FileSlice, ...]
    notes_offset: int
    storage: Storage
    file_size: int
    copied_bytes: int
    p_align: int = 0
    tables_offset: int | None = None
    """Where section 0 and program headers stand; None: right behind the ELF header."""

    @property
    def nr_segments(self) -> int:
        """PT_LOADs (the PT_NOTE not counted)."""
        return len(self.p_vaddr)


def build_layout(
    kind: ElfKind,
    e_machine: int,
    e_flags: int,
    memory: Memory,
    notes: tuple[bytes | FileSlice, ...],
    *,
    good_segments: int = GOOD_SEGMENTS,
) -> CoreLayout:
    """Lay out a core.  Raises OutputError when 32-bit headers cannot hold it."""
    stored = merge_ranges(memory.paddr, memory.paddr + memory.size)
    run, copied = _copied_runs(memory, good_segments, int((stored.end - stored.start).sum()))
    segment_of, first = _segments(run, copied)
    notes_offset = headers_size(kind, len(first) + 1)
    data_offset = align_up(notes_offset + sum(map(chunk_size, notes)), PAGE)
    storage, offset, end = _store(memory, stored, copied, data_offset)
    size = np.add.reduceat(memory.size, first) if len(first) else memory.size
    several = np.bincount(segment_of, minlength=len(first)) > 1
    rank = np.minimum.reduceat(memory.rank, first) if len(first) else memory.rank
    order = np.lexsort((memory.vaddr[first], rank))
    paddr = np.where(copied[first] & several, np.uint64(NO_PADDR), memory.paddr[first])
    layout = CoreLayout(
        kind=kind,
        e_machine=e_machine,
        e_flags=e_flags,
        p_vaddr=memory.vaddr[first][order],
        p_paddr=paddr[order],
        p_offset=offset[first][order],
        p_filesz=size[order],
        notes=notes,
        notes_offset=notes_offset,
        storage=storage,
        file_size=end,
        copied_bytes=int(memory.size[copied].sum()),
    )
    check_class(layout)
    return layout


def _store(memory: Memory, stored: Ranges, copied: np.ndarray, data_offset: int) -> tuple[Storage, U64, int]:
    """What is written where, the file offset of each piece, and where the file ends."""
    size = stored.end - stored.start
    offset = place(stored.start, size, data_offset)
    end = int(offset[-1] + size[-1]) if len(stored) else data_offset
    copy_offset, end = _place_copies(memory, copied, end)
    storage = Storage(
        np.concatenate([stored.start, memory.paddr[copied]]),
        np.concatenate([size, memory.size[copied]]),
        np.concatenate([offset, copy_offset[copied]]),
    )
    of_piece: U64 = np.where(copied, copy_offset, place_in(stored.start, offset, memory.paddr))
    return storage, of_piece, end


def encode_headers(layout: CoreLayout) -> tuple[tuple[int, bytes], ...]:
    """ELF header, and section 0 (when needed) with the program headers: offset and bytes of each."""
    kind = layout.kind
    phnum = layout.nr_segments + 1
    extended = phnum > MAX_COUNTED
    tables_offset = kind.ehdr.itemsize if layout.tables_offset is None else layout.tables_offset
    ident = c.ELFMAG + bytes([kind.ei_class, kind.ei_data, c.EV_CURRENT, c.ELFOSABI_GNU])
    ehdr = np.zeros(1, dtype=kind.ehdr)
    ehdr["e_ident"] = ident
    values = {
        "e_type": c.ET_CORE,
        "e_machine": layout.e_machine,
        "e_version": c.EV_CURRENT,
        "e_phoff": tables_offset + (kind.shdr.itemsize if extended else 0),
        "e_shoff": tables_offset if extended else 0,
        "e_flags": layout.e_flags,
        "e_ehsize": kind.ehdr.itemsize,
        "e_phentsize": kind.phdr.itemsize,
        "e_phnum": c.PN_XNUM if extended else phnum,
        "e_shentsize": kind.shdr.itemsize if extended else 0,
        "e_shnum": 1 if extended else 0,
    }
    for name, value in values.items():
        ehdr[name] = value
    section0 = np.zeros(1 if extended else 0, dtype=kind.shdr)
    section0["sh_info"] = phnum
    tables = section0.tobytes() + program_headers(layout).tobytes()
    return (0, ehdr.tobytes()), (tables_offset, tables)


def program_headers(layout: CoreLayout) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The PT_NOTE and all PT_LOADs, in header order."""
    phdr = np.zeros(layout.nr_segments + 1, dtype=layout.kind.phdr)
    note, loads = phdr[:1], phdr[1:]
    note["p_type"] = c.PT_NOTE
    note["p_offset"] = layout.notes_offset
    note["p_filesz"] = sum(map(chunk_size, layout.notes))
    note["p_align"] = 4
    loads["p_type"] = c.PT_LOAD
    loads["p_flags"] = c.PF_RWX
    loads["p_offset"] = layout.p_offset
    loads["p_vaddr"] = layout.p_vaddr
    loads["p_paddr"] = layout.p_paddr if layout.kind.bits == 64 else layout.p_paddr & np.uint64(0xFFFFFFFF)
    loads["p_filesz"] = layout.p_filesz
    loads["p_memsz"] = layout.p_filesz
    # 0 as in /proc/vmcore: crash takes a file with any other value for a netdump and ignores KERNELOFFSET;
    # else the gABI wants offset and address to be congruent modulo p_align, unless that is 0 or 1
    congruent = (layout.p_offset - layout.p_vaddr) % np.uint64(PAGE) == 0
    loads["p_align"] = np.where(congruent, layout.p_align, 1) if layout.p_align else 0
    return phdr


def headers_size(kind: ElfKind, phnum: int) -> int:
    """Bytes of the ELF header, section 0 if it is needed, and ``phnum`` program headers."""
    section0 = kind.shdr.itemsize if phnum > MAX_COUNTED else 0
    return kind.ehdr.itemsize + section0 + phnum * kind.phdr.itemsize


def leave_out(
    layout: CoreLayout, owner: Index, offset: U64, size: U64, notes: tuple[bytes | FileSlice, ...]
) -> CoreLayout:
    """The core with segments cut down to pieces: ``owner`` indexes the old ones, ``offset`` in the file.

    The bytes stay where they are.  When headers and notes no longer fit before them, both move to
    the end of the file, where gdb, drgn and readelf read them as well.
    """
    shift = offset - layout.p_offset[owner]
    vaddr, paddr = layout.p_vaddr[owner], layout.p_paddr[owner]
    # in a pelf, 0 is no address but the lack of one
    unknown = (vaddr == 0) & (layout.p_align == 0)
    note_size = sum(map(chunk_size, notes))
    notes_offset, tables_offset = headers_size(layout.kind, len(owner) + 1), None
    file_size = layout.file_size
    stored = layout.storage.file_offset
    if notes_offset + note_size > (int(stored.min()) if len(stored) else file_size):
        notes_offset = align_up(file_size, PAGE)
        tables_offset = align_up(notes_offset + note_size, 8)
        tables_size = headers_size(layout.kind, len(owner) + 1) - layout.kind.ehdr.itemsize
        file_size = tables_offset + tables_size
    result = replace(
        layout,
        p_vaddr=np.where(unknown, vaddr, vaddr + shift),
        p_paddr=np.where(paddr == np.uint64(NO_PADDR), paddr, paddr + shift),
        p_offset=offset,
        p_filesz=size,
        notes=notes,
        notes_offset=notes_offset,
        tables_offset=tables_offset,
        file_size=file_size,
    )
    check_class(result)
    return result


def _copied_runs(memory: Memory, good_segments: int, stored: int) -> tuple[Index, np.ndarray]:
    """Virtually contiguous runs, and which pieces are stored again to save segments."""
    pieces = len(memory.vaddr)
    none = np.zeros(pieces, dtype=np.bool_)
    starts_run = np.ones(pieces, dtype=np.bool_)
    starts_run[1:] = memory.vaddr[1:] != memory.vaddr[:-1] + memory.size[:-1]
    run = np.cumsum(starts_run) - 1
    if pieces <= good_segments:
        return run, none
    first = np.flatnonzero(starts_run)
    count = np.diff(np.append(first, pieces))
    cost = np.add.reduceat(memory.size, first)
    order = np.argsort(cost / np.maximum(count - 1, 1), kind="stable")
    order = order[count[order] > 1]
    spent = np.cumsum(cost[order])
    affordable = spent <= np.uint64(max(stored // _COPY_SHARE, _COPY_FLOOR))
    saved_before = np.cumsum(count[order] - 1) - (count[order] - 1)
    chosen = order[affordable & (pieces - saved_before > good_segments)]
    is_chosen = np.zeros(len(first), dtype=np.bool_)
    is_chosen[chosen] = True
    return run, is_chosen[run]


def _segments(run: Index, copied: np.ndarray) -> tuple[Index, Index]:
    """Segment number of each piece, and the first piece of each segment."""
    begins = np.ones(len(run), dtype=np.bool_)
    begins[1:] = ~((run[1:] == run[:-1]) & copied[1:] & copied[:-1])
    return np.cumsum(begins) - 1, np.flatnonzero(begins)


def place(paddr: U64, size: U64, data_offset: int) -> U64:
    """File offsets for ranges in order: page-aligned, congruent to the address within its page."""
    inside = paddr & np.uint64(PAGE - 1)
    pages = (inside + size + np.uint64(PAGE - 1)) & np.uint64(MASK64 & ~(PAGE - 1))
    offset: U64 = np.uint64(data_offset) + np.cumsum(pages, dtype=np.uint64) - pages + inside
    return offset


def _place_copies(memory: Memory, copied: np.ndarray, end: int) -> tuple[U64, int]:
    """Offsets of the pieces that are stored again, each run contiguous, behind everything else."""
    offset = np.zeros(len(memory.vaddr), dtype=np.uint64)
    if not copied.any():
        return offset, end
    vaddr, size = memory.vaddr[copied], memory.size[copied]
    begins = np.ones(len(vaddr), dtype=np.bool_)
    begins[1:] = vaddr[1:] != vaddr[:-1] + size[:-1]
    first = np.flatnonzero(begins)
    run_size = np.add.reduceat(size, first)
    run_offset = place(vaddr[first], run_size, align_up(end, PAGE))
    run = np.cumsum(begins) - 1
    offset[copied] = run_offset[run] + (vaddr - vaddr[first][run])
    return offset, int(run_offset[-1] + run_size[-1])


def place_in(start: U64, file_offset: U64, paddr: U64) -> U64:
    """File offsets of addresses that lie in stored ranges, which begin at ``start``."""
    owner = np.searchsorted(start, paddr, side="right") - 1
    return file_offset[owner] + (paddr - start[owner])


def check_class(layout: CoreLayout) -> None:
    """Raise OutputError for what the header's fields cannot say."""
    if layout.nr_segments + 1 > _MAX_SECTION0_COUNT:
        raise OutputError("more program headers than an ELF file can have")
    if layout.kind.bits == 32 and layout.file_size >> 32:
        raise OutputError("the result is larger than a 32-bit ELF file can be")
