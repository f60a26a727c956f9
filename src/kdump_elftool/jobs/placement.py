"""Whether a machine's memory is where a dump that doesn't say was taken to have it.

QEMU's streams have blocks of memory, and the machine's usual places are assumed.  Options move them; the
kernel knows: where its page tables are, and what it was told of memory (``iomem_resource``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kdump_elftool.addr import NO_RANGES, U64, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.kernel.iomem import SystemRam, read_system_ram

TRIFLE = 1 << 20
"""Bytes outside of the assumed places that prove nothing; QEMU's places differ by hundreds of MB."""
UNMAPPED_SHARE, UNMAPPED = 8, 64 << 20
"""Of what a 64-bit kernel is given it maps nearly all; ``mem=`` makes it map less, but it says so."""
_MOST_SHOWN = 4


def system_ram(dump: Dump, kernel: Kernel) -> SystemRam | None:
    """Memory as the kernel was told of it; no vmlinux is looked for on that account."""
    at_hand = replace(kernel, request=replace(kernel.request, locate=None))
    word = kernel.arch.prstatus.word
    return read_system_ram(kernel.virtual(dump), knowledge(dump, at_hand), dump.kind.order, word)


def placement_warning(dump: Dump, kernel: Kernel) -> str | None:
    """What contradicts the places that a dump's memory was assumed to have (``Dump.placed_by``)."""
    declared = dump.memory.declared
    outside = _outside(u64(_lost_tables(kernel)), declared)
    if len(outside):
        return (
            f"the kernel has page tables at {_listed(outside)}, where this dump's memory was not put: "
            f"it is {dump.placed_by}"
        )
    told = system_ram(dump, kernel)
    if told is None or not told.complete:
        # what was put elsewhere reads as other memory: tables that lie there map little of it
        idle = subtract_ranges(declared, _direct_map(kernel))
        if kernel.arch.bits == 64 and idle.total > max(declared.total // UNMAPPED_SHARE, UNMAPPED):
            return (
                f"the kernel's page tables map none of the {idle.total >> 20} MB at {shown_ranges(idle)}, "
                f"where this dump's memory was put: it is {dump.placed_by}"
            )
    missed = subtract_ranges(told.ranges, declared) if told else None
    if missed is None or missed.total <= TRIFLE:
        return None
    return (
        f"the guest says it had memory at {shown_ranges(missed)}, where this dump's memory was not put: "
        f"it is {dump.placed_by}"
    )


def shown_ranges(ranges: Ranges) -> str:
    """The first of them as text, and how many others there are."""
    pairs = list(zip(ranges.start[:_MOST_SHOWN].tolist(), ranges.end[:_MOST_SHOWN].tolist(), strict=True))
    more = len(ranges) - len(pairs)
    return ", ".join(f"{start:#x}-{end:#x}" for start, end in pairs) + (f" and {more} more" if more else "")


def _direct_map(kernel: Kernel) -> Ranges:
    """Memory by the distance from physical addresses that most of it has."""
    mapped = kernel.walked.mappings
    _, member = np.unique(mapped.vaddr - mapped.paddr, return_inverse=True)
    if not len(member):
        return NO_RANGES
    direct = member == int(np.argmax(np.bincount(member, weights=mapped.size.astype(np.float64))))
    return merge_ranges(mapped.paddr[direct], mapped.paddr[direct] + mapped.size[direct])


def _lost_tables(kernel: Kernel) -> U64:
    return np.concatenate([u64([]), *(lost.paddr for lost in kernel.walked.lost)])


def _outside(paddr: U64, declared: Ranges) -> U64:
    return np.unique(paddr[~declared.contains(paddr)])


def _listed(paddr: U64) -> str:
    more = len(paddr) - _MOST_SHOWN
    return ", ".join(f"{at:#x}" for at in paddr[:_MOST_SHOWN].tolist()) + (
        f" and {more} more" if more > 0 else ""
    )
