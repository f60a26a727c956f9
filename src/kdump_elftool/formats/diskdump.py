"""kdump-compressed dumps ("KDUMP   ", and the older "DISKDUMP"): one file, or the parts of a split one.

Two bitmaps say which page frames there were and which of them the file holds; one descriptor for
each of those says where its page lies and how it is compressed.  What the second bitmap lacks was left out by
the producer and is absent, whatever was in it.  Sources: see ``diskdump_structs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.codecs.pages import decoder
from kdump_elftool.elf.constants import EM_ARM
from kdump_elftool.elf.notes import Note, read_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import diskdump_structs as d
from kdump_elftool.formats.base import ClaimedMappings, Dump, Format, Lost, OpenOptions
from kdump_elftool.formats.diskdump_machines import find_machine
from kdump_elftool.formats.diskdump_pages import CODECS, GOOD, TRUNCATED, KdumpPages, PartPages
from kdump_elftool.formats.diskdump_parts import Part, as_set, probe, read_part, within
from kdump_elftool.memory.extents import ZERO_FILL, intersect, normalise
from kdump_elftool.memory.physical import PhysicalMemory

_VMCOREINFO = b"VMCOREINFO"
_MOST_VMCOREINFO = 1 << 20
_SCANNED = 1 << 22
"""Up to so many descriptors are all looked at when a dump is opened; of more, samples."""
_STEP = 1 << 18
_SAMPLES, _SAMPLE = 64, 4096


@dataclass(frozen=True)
class _Runs:
    """Runs of page frames [start, end), and the number of the first one's page in the reader."""

    start: U64
    end: U64
    first: U64

    @property
    def count(self) -> U64:
        return self.end - self.start


def open_diskdump(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open one dump or the parts of one.  Raises FormatError, MissingCodecError, UsageError."""
    parts, warnings = as_set([read_part(file) for file in files])
    first = parts[0]
    for flag, codec in CODECS.items():
        if first.header.status & flag:
            decoder(codec)
    notes, note_warnings = _notes(first)
    machine, bits, guess = find_machine(first.header.machine, first.header.order, first.sub.bits, notes)
    shift = _frame_shift(machine, first)
    memory, lost = _memory(parts, shift, options.zero_excluded)
    return Dump(
        format="kdump",
        file=first.file,
        kind=ElfKind(bits, first.header.order),
        e_machine=machine,
        e_flags=0,
        memory=memory,
        notes=notes,
        claimed=ClaimedMappings(u64([]), u64([]), u64([])),
        lost=tuple(part for part in lost if len(part.ranges)),
        warnings=(*warnings, *note_warnings, *_status_warnings(parts), *([guess] if guess else [])),
        phys_base=first.sub.phys_base if first.header.kdump else None,
    )


FORMAT = Format("kdump", probe, open_diskdump, sets=True)


def _memory(parts: tuple[Part, ...], shift: int, zero_excluded: bool) -> tuple[PhysicalMemory, list[Lost]]:
    page = parts[0].header.block_size
    runs, ram = _runs(parts), parts[0].ram
    bad, lost = _unusable(parts, runs, shift)
    good = subtract_ranges(Ranges(u64([0]), u64([MASK64])), bad)
    pieces = intersect(good, runs.first, runs.count)
    start = runs.start[pieces.owner] + (pieces.start - runs.first[pieces.owner])
    there = addresses(Ranges(start, start + pieces.size), shift, page)
    position = pieces.start * np.uint64(page)
    declared = merge_ranges(np.concatenate([ram.start, runs.start]), np.concatenate([ram.end, runs.end]))
    excluded, missing = (addresses(part, shift, page) for part in _not_dumped(parts, declared))
    if zero_excluded:
        there = Ranges(
            np.concatenate([there.start, excluded.start]), np.concatenate([there.end, excluded.end])
        )
        zeros = np.full(len(excluded), ZERO_FILL, dtype=np.uint64)
        position = np.concatenate([position, zeros])
    else:
        lost.append(Lost("paddr", "excluded", excluded))
    lost.append(Lost("paddr", "in a part of the set that was not given", missing))
    reader = KdumpPages(tuple(part.pages for part in parts), page)
    extents = normalise(there.start, there.end - there.start, position)
    return PhysicalMemory(reader, extents, addresses(declared, shift, page)), lost


def _runs(parts: tuple[Part, ...]) -> _Runs:
    """The dumped frames of all parts, with their pages' numbers in the reader."""
    start = np.concatenate([part.dumped.start for part in parts])
    end = np.concatenate([part.dumped.end for part in parts])
    count = end - start
    return _Runs(start, end, np.cumsum(count) - count)


def _unusable(parts: tuple[Part, ...], runs: _Runs, shift: int) -> tuple[Ranges, list[Lost]]:
    """Pages whose descriptors say that they can't be read: numbers of all, and a loss for each reason."""
    lost: list[Lost] = []
    low, high = [u64([])], [u64([])]
    base = 0
    for part in parts:
        pages = part.pages
        found = list(_bad_states(pages, bool(part.header.status & d.INCOMPLETE)))
        for state in sorted({state for state, _, _ in found}):
            begin = np.concatenate([first for kind, first, _ in found if kind == state])
            end = np.concatenate([last for kind, _, last in found if kind == state])
            trouble = pages.trouble(int(begin[0]))
            numbers = merge_ranges(begin + np.uint64(base), end + np.uint64(base))
            ranges = addresses(_frames(runs, numbers), shift, pages.page_size)
            lost.append(Lost("paddr", trouble.why, ranges, trouble.file_offset))
            low.append(numbers.start)
            high.append(numbers.end)
        base += pages.count
    return merge_ranges(np.concatenate(low), np.concatenate(high)), lost


def _bad_states(pages: PartPages, incomplete: bool) -> Iterator[tuple[int, U64, U64]]:
    """Runs of descriptors that are no good, by state.

    Of a very large dump samples are looked at first, and the rest only if one of them is bad.
    """
    in_file = min(max(pages.file.size - pages.offset, 0) // d.DESCRIPTOR_SIZE, pages.count)
    if pages.count > _SCANNED and in_file == pages.count and not incomplete:
        at = np.linspace(0, pages.count - _SAMPLE, _SAMPLES, dtype=np.int64)
        if all(np.all(pages.states(pages.read(first, _SAMPLE)) == GOOD) for first in at.tolist()):
            return
    for first in range(0, in_file, _STEP):
        state = pages.states(pages.read(first, min(_STEP, in_file - first)))
        if not state.any():
            continue
        edges = np.flatnonzero(np.diff(state)) + 1
        low, high = np.append(0, edges), np.append(edges, len(state))
        for kind in np.unique(state[state != GOOD]).tolist():
            rows = state[low] == kind
            yield kind, (low[rows] + first).astype(np.uint64), (high[rows] + first).astype(np.uint64)
    if in_file < pages.count:
        yield TRUNCATED, u64([in_file]), u64([pages.count])


def _frames(runs: _Runs, numbers: Ranges) -> Ranges:
    """Page numbers of the reader as frames."""
    pieces = intersect(numbers, runs.first, runs.count)
    start = runs.start[pieces.owner] + (pieces.start - runs.first[pieces.owner])
    return merge_ranges(start, start + pieces.size)


def _not_dumped(parts: tuple[Part, ...], declared: Ranges) -> tuple[Ranges, Ranges]:
    """Frames that the producer left out, and those that belong to a part that is not here."""
    dumped = merge_ranges(
        np.concatenate([part.dumped.start for part in parts]),
        np.concatenate([part.dumped.end for part in parts]),
    )
    absent = subtract_ranges(declared, dumped)
    if not parts[0].sub.split:
        return absent, Ranges(absent.start[:0], absent.end[:0])
    here = merge_ranges(
        u64([part.sub.start_pfn for part in parts]), u64([part.sub.end_pfn for part in parts])
    )
    return within(absent, here), subtract_ranges(absent, here)


def addresses(frames: Ranges, shift: int, page: int) -> Ranges:
    """Frames as physical addresses; ``shift`` is the frame that the file calls 0."""
    move, size = np.uint64(shift), np.uint64(page)
    return Ranges((frames.start + move) * size, (frames.end + move) * size)


def _frame_shift(machine: int, part: Part) -> int:
    """Frame 0 is the first of RAM on 32-bit ARM (makedumpfile: ARCH_PFN_OFFSET), but not by QEMU."""
    base = part.sub.phys_base // part.header.block_size
    if machine == EM_ARM and len(part.ram) and int(part.ram.start[0]) < base < 1 << 32:
        return base
    return 0


def _notes(part: Part) -> tuple[tuple[Note, ...], list[str]]:
    """The ELF notes, and VMCOREINFO from where the sub-header says when it is not among them."""
    file, sub = part.file, part.sub
    notes: tuple[Note, ...] = ()
    warnings = []
    if sub.offset_note and sub.size_note:
        found = read_notes(file, ElfKind(sub.bits, part.header.order), sub.offset_note, sub.size_note)
        notes = found.notes
        if found.bad_offset is not None:
            warnings.append(f"notes are damaged from file offset {found.bad_offset:#x} on")
    known = any(note.name == _VMCOREINFO and note.size for note in notes)
    if not known and sub.offset_vmcoreinfo and sub.size_vmcoreinfo:
        text = file.read_at(sub.offset_vmcoreinfo, min(sub.size_vmcoreinfo, _MOST_VMCOREINFO))
        if len(text) < sub.size_vmcoreinfo:
            warnings.append(f"VMCOREINFO at file offset {sub.offset_vmcoreinfo:#x} has a wrong length")
        text = text.split(b"\0", 1)[0]
        if text:
            notes = (*notes, Note(_VMCOREINFO, 0, text))
    return notes, warnings


def _status_warnings(parts: tuple[Part, ...]) -> list[str]:
    warnings = []
    if any(part.header.kdump and part.header.status & d.INCOMPLETE for part in parts):
        warnings.append("the dump is marked as incomplete: its producer ran out of space")
    if any(part.sub.size_eraseinfo for part in parts):
        warnings.append("the dump's producer has erased some of its data (eraseinfo)")
    return warnings
