"""From a page-table walk to the memory that goes into the output, and the account of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Ranges, merge_ranges, subtract_ranges
from kdump_elftool.arch.walker import Mappings, Walk, merge_mappings
from kdump_elftool.formats.base import Lost
from kdump_elftool.jobs.coverage import PAGE, Coverage
from kdump_elftool.kernel.pages import Category, PageAccount
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.physical import PhysicalMemory

IMPLAUSIBLE_PADDR = 1 << 48
"""Device memory lies outside of RAM too, but not up here: such an entry is damaged."""


@dataclass(frozen=True)
class Pages:
    """Distinct physical pages: stored; mapped but not in the dump; left out by the level."""

    accepted: int
    not_present: int
    free: int = 0
    cache: int = 0
    user: int = 0
    poison: int = 0
    offline: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Selection:
    """``mapped`` is present; ``missing`` is mapped RAM that the dump does not hold."""

    mapped: Mappings
    missing: Mappings
    pages: Pages
    coverage: Coverage
    lost: tuple[Lost, ...]


def select(
    memory: PhysicalMemory, walked: Walk, lost_before: tuple[Lost, ...], choice: PageAccount | None = None
) -> Selection:
    """Keep the mapped memory that is present and that ``choice`` does not drop (None: all)."""
    whole, absent = memory.present(), memory.absent()
    present = subtract_ranges(whole, choice.dropped) if choice else whole
    mapped = cut(walked.mappings, present)
    missing = cut(walked.mappings, absent)
    lost_here = (*_lost_tables(walked), *_implausible(walked.mappings, memory.declared))
    stored = _backing(mapped)
    unreachable = subtract_ranges(present, stored).total if lost_here else 0
    lost = (*lost_before, *lost_here)
    return Selection(
        mapped=mapped,
        missing=missing,
        pages=count_pages(stored.total // PAGE, _backing(missing).total // PAGE, choice),
        coverage=Coverage.of(memory.declared.total, absent.total + unreachable, lost),
        lost=lost,
    )


def count_pages(accepted: int, not_present: int, choice: PageAccount | None) -> Pages:
    """The statistics of a conversion."""
    if choice is None:
        return Pages(accepted, not_present)
    counts = choice.counts
    return Pages(
        accepted,
        not_present,
        free=counts[Category.FREE],
        cache=counts[Category.CACHE],
        user=counts[Category.USER],
        poison=counts[Category.POISON],
        offline=counts[Category.OFFLINE],
        unknown=choice.unknown,
    )


def cut(mappings: Mappings, ranges: Ranges) -> Mappings:
    """The parts of the mappings whose physical memory lies in ``ranges``, merged and sorted."""
    pieces = intersect(ranges, mappings.paddr, mappings.size)
    shift = pieces.start - mappings.paddr[pieces.owner]
    return merge_mappings(Mappings(mappings.vaddr[pieces.owner] + shift, pieces.start, pieces.size))


def _backing(mappings: Mappings) -> Ranges:
    return merge_ranges(mappings.paddr, mappings.paddr + mappings.size)


def _lost_tables(walked: Walk) -> list[Lost]:
    result = []
    for part in walked.lost:
        where = f"{part.level} table at paddr {int(part.paddr[0]):#x} unreadable"
        more = f" (and {len(part.paddr) - 1} more)" if len(part.paddr) > 1 else ""
        ranges = _ranges(part.vaddr, np.full(len(part.vaddr), part.span - 1, dtype=np.uint64))
        result.append(Lost("vaddr", where + more, ranges))
    return result


def _implausible(mappings: Mappings, declared: Ranges) -> list[Lost]:
    wild = (mappings.paddr >= np.uint64(IMPLAUSIBLE_PADDR)) & ~declared.contains(mappings.paddr)
    if not wild.any():
        return []
    ranges = _ranges(mappings.vaddr[wild], mappings.size[wild] - np.uint64(1))
    return [Lost("vaddr", "mapped to where no memory can be", ranges)]


def _ranges(vaddr: U64, last: U64) -> Ranges:
    """Ranges from first addresses and sizes minus one; the very last byte of all is left out."""
    return merge_ranges(vaddr, np.minimum(vaddr + last, np.uint64(MASK64 - 1)) + np.uint64(1))
