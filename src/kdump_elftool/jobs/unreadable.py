"""What showed only while the core was written: memory that the dump names but that cannot be read.

It is left out of the core: segments end before it and go on behind it, and the coverage, the
statistics and the core's own note say so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar, overload

import numpy as np

from kdump_elftool.addr import MASK64, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.arch.walker import Mappings
from kdump_elftool.elf.layout import leave_out
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.own_notes import OWNER, TYPE_SUMMARY, summary_note
from kdump_elftool.elf.writer import Written
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.formats.base import Dump, Lost
from kdump_elftool.jobs.coverage import PAGE, Coverage
from kdump_elftool.jobs.image import ImageLoss, image_loss
from kdump_elftool.jobs.pelf import Pelf
from kdump_elftool.jobs.selection import Pages
from kdump_elftool.jobs.velf import Velf
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.physical import PhysicalMemory

_TOLD_APART = 64
Plan = TypeVar("Plan", Velf, Pelf)


def without_unreadable(plan: Plan, dump: Dump, written: Written) -> Plan:
    """The plan as it is after writing.  Raises CorruptDumpError when nothing could be read."""
    bad: Ranges = merge_ranges(written.file_offset, written.file_offset + written.size)
    layout = plan.layout
    pieces = intersect(
        subtract_ranges(Ranges(u64([0]), u64([MASK64])), bad), layout.p_offset, layout.p_filesz
    )
    lost = merge_ranges(written.paddr, written.paddr + written.size)
    found: tuple[Lost, ...] = losses(dump.memory, lost)
    if not len(pieces.owner):
        raise CorruptDumpError(dump.file.path, f"nothing of it can be read: {found[0].why}")
    nr_pages = -(-lost.total // PAGE)
    coverage = replace(
        plan.coverage,
        covered=max(plan.coverage.covered - nr_pages, 0),
        lost=(*plan.coverage.lost, *found),
    )
    notes = tuple(_with_coverage(note, coverage) for note in plan.notes)
    encoded = tuple(encode_notes(notes, layout.kind))
    return replace(
        _with_image_loss(plan, bad),
        layout=leave_out(layout, pieces.owner, pieces.start, pieces.size, encoded),
        notes=notes,
        pages=fewer(plan.pages, nr_pages),
        coverage=coverage,
    )


def losses(memory: PhysicalMemory, lost: Ranges) -> tuple[Lost, ...]:
    """A reason for each range, unless there are very many."""
    result = []
    for start, end in zip(lost.start[:_TOLD_APART].tolist(), lost.end[:_TOLD_APART].tolist(), strict=True):
        trouble = memory.trouble(start)
        result.append(Lost("paddr", trouble.why, Ranges(u64([start]), u64([end])), trouble.file_offset))
    if len(lost) > _TOLD_APART:
        rest = Ranges(lost.start[_TOLD_APART:], lost.end[_TOLD_APART:])
        result.append(Lost("paddr", "could not be read", rest))
    return tuple(result)


def _with_coverage(note: Note, coverage: Coverage) -> Note:
    if (note.name, note.type) != (OWNER, TYPE_SUMMARY) or not isinstance(note.desc, bytes):
        return note
    return summary_note({**json.loads(note.desc), "coverage": coverage.as_json()})


def fewer(pages: Pages, nr_pages: int) -> Pages:
    """The statistics when some of the accepted pages turned out not to be there."""
    gone = min(nr_pages, pages.accepted)
    return replace(pages, accepted=pages.accepted - gone, not_present=pages.not_present + gone)


@overload
def _with_image_loss(plan: Velf, bad: Ranges) -> Velf: ...
@overload
def _with_image_loss(plan: Pelf, bad: Ranges) -> Pelf: ...
def _with_image_loss(plan: Velf | Pelf, bad: Ranges) -> Velf | Pelf:
    """A velf says how much of the kernel image is absent; a pelf knows no image."""
    if isinstance(plan, Pelf):
        return plan
    layout, loss = plan.layout, plan.image_loss
    gone = intersect(bad, layout.p_offset, layout.p_filesz)
    vaddr = layout.p_vaddr[gone.owner] + (gone.start - layout.p_offset[gone.owner])
    more = image_loss(plan.identity, Mappings(vaddr, np.zeros_like(vaddr), gone.size))
    return replace(plan, image_loss=ImageLoss(loss.pages + more.pages, loss.hidden))
