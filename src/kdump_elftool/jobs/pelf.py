"""topelf: a dump becomes a smaller core of physical memory, with the pages that matter.

p_vaddr is the input's where the page tables agree with it, so that crash and drgn open the
result as they would the dump; elsewhere it is 0.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Bools, Ranges, merge_ranges, subtract_ranges
from kdump_elftool.arch import find_architecture
from kdump_elftool.elf.layout import CoreLayout
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.own_notes import OWNER, TYPE_SUMMARY, TYPE_UNDO, producer, summary_note
from kdump_elftool.elf.physical_layout import build_physical_layout
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.formats.base import ClaimedMappings, Dump
from kdump_elftool.jobs.coverage import Coverage
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.jobs.reduction import Reduction, reduce_dump
from kdump_elftool.jobs.selection import Pages
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

_LARGEST_32 = 1 << 32
_ROOM = 256 << 20
"""For headers, notes and padding, which are not known yet."""


@dataclass(frozen=True)
class Pelf:
    """A planned pelf: everything known but the memory itself written."""

    layout: CoreLayout
    notes: tuple[Note, ...]
    release: str | None
    pages: Pages
    coverage: Coverage
    warnings: tuple[str, ...]


def plan_pelf(dump: Dump, request: KernelRequest, level: str) -> Pelf:
    """Plan the reduction.  Raises UnsupportedError, OutputError."""
    reduced = reduce_dump(dump, request, level)
    kernel = reduced.kernel
    segments = _segments(reduced.kept, dump.claimed, kernel.virtual(dump) if kernel else None)
    notes = _notes(reduced, level)
    kind = _kind(dump, segments)
    encoded = tuple(encode_notes(notes, kind))
    layout = build_physical_layout(kind, dump.e_machine, dump.e_flags, segments, encoded)
    log.info("layout: %d segments, %d bytes", layout.nr_segments, layout.file_size)
    return Pelf(
        layout=layout,
        notes=notes,
        release=reduced.release,
        pages=reduced.pages,
        coverage=reduced.coverage,
        warnings=reduced.warnings,
    )


def _segments(kept: Ranges, claimed: ClaimedMappings, virtual: VirtualMemory | None) -> tuple[U64, U64, U64]:
    """(vaddr, paddr, size): the input's own addresses first, then what has none, at vaddr 0."""
    pieces = intersect(kept, claimed.paddr, claimed.size)
    vaddr = claimed.vaddr[pieces.owner] + (pieces.start - claimed.paddr[pieces.owner])
    agreed = _agreed(vaddr, pieces.start, pieces.size, virtual)
    vaddr, start, size = vaddr[agreed], pieces.start[agreed], pieces.size[agreed]
    rest = subtract_ranges(kept, merge_ranges(start, start + size))
    return (
        np.concatenate([vaddr, np.zeros(len(rest), dtype=np.uint64)]),
        np.concatenate([start, rest.start]),
        np.concatenate([size, rest.end - rest.start]),
    )


def _agreed(vaddr: U64, paddr: U64, size: U64, virtual: VirtualMemory | None) -> Bools:
    """Pieces whose first and last byte the page tables map to where the headers say."""
    if virtual is None:
        return np.zeros(len(vaddr), dtype=np.bool_)
    result: Bools = vaddr != 0
    for inside in (np.zeros(len(size), dtype=np.uint64), size - np.uint64(1)):
        where, mapped = virtual.translate(vaddr + inside)
        result &= mapped & (where == paddr + inside)
    return result


def _kind(dump: Dump, segments: tuple[U64, U64, U64]) -> ElfKind:
    """A 32-bit file for a 32-bit machine, as its kernel writes, while it can hold the memory."""
    arch = find_architecture(dump.e_machine, dump.kind.bits)
    _, paddr, size = segments
    end = int((paddr + size).max(initial=0))
    fits = end <= _LARGEST_32 and int(size.sum()) <= _LARGEST_32 - _ROOM
    return ElfKind(arch.bits if arch and fits else 64, dump.kind.order)


def _notes(reduced: Reduction, level: str) -> tuple[Note, ...]:
    """The notes, VMCOREINFO once, and ours."""
    own = {(OWNER, TYPE_SUMMARY), (OWNER, TYPE_UNDO)}
    kept = tuple(note for note in reduced.notes if (note.name, note.type) not in own)
    facts = reduced.kernel.identity.facts if reduced.kernel else ()
    summary = {
        "schema": "kdump-elftool/pelf/1",
        "producer": producer(),
        "facts": [{"name": fact.name, "value": fact.shown(), "source": fact.source} for fact in facts],
        "level": level,
        "coverage": reduced.coverage.as_json(),
    }
    return (*reduced.described(kept), summary_note(summary))
