"""Where the kernel keeps its array of ``struct page``: flat, discontiguous or sparse memory.

Sparse memory (include/linux/mmzone.h): ``mem_section`` is a flat array of sections, or roots of
pages full of them (SPARSEMEM_EXTREME); VMCOREINFO gives the roots' address, and in some 4.15-era
kernels the address of the variable that holds it.  All readings are tried and the one whose
sections point to mapped memory is taken; no kernel version is asked.  The low bits of
``section_mem_map`` are flags: up to five of them (v5.12), zero in older kernels.

Only frames near memory that the dump holds are asked for: whatever a damaged table claims, time and
memory are bounded by the dump.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Index, Ranges, merge_ranges
from kdump_elftool.arch.base import page_size_of
from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.words import Words

SECTION_MARKED_PRESENT = 1 << 0
SECTION_HAS_MEM_MAP = 1 << 1
SECTION_FLAGS = {4: (1 << 5) - 1, 8: (1 << 6) - 1}
"""By the size of a word.  64-bit kernels have a sixth since v6.15 (SPARSEMEM_VMEMMAP_PREINIT, for huge pages
that were asked for at boot); of older ones the array is aligned to as much."""
MAX_SECTIONS = 1 << 25
MAX_PFN_BITS = 52
_MAX_NODES = 1 << 12
_SECTIONS_AT_ONCE = 1 << 16
_NEARBY_SHIFT = 30
"""Blocks of pages are at most this large (hugetlb of 1 GB), so that no head is lost to the limit."""


@dataclass(frozen=True)
class MemmapPart:
    """``nr_pages`` consecutive ``struct page`` at ``vaddr``, for frames from ``pfn`` on."""

    pfn: int
    nr_pages: int
    vaddr: int


@dataclass(frozen=True)
class Memmap:
    """The whole array: parts sorted by pfn, disjoint."""

    model: str
    page_size: int
    struct_size: int
    parts: tuple[MemmapPart, ...]


@dataclass(frozen=True)
class SparseGeometry:
    """Defaults of an architecture whose VMCOREINFO does not tell them (before v5.9 and v5.13)."""

    section_size_bits: int
    max_physmem_bits: int


def find_memmap(words: Words, info: VmcoreInfo, defaults: SparseGeometry) -> Memmap:
    """Locate the array.  Raises IdentityError naming the VMCOREINFO key that is missing."""
    struct_size = _need(info.size("page"), "SIZE(page)")
    page_size = _need(page_size_of(info), "PAGESIZE")
    near = _nearby(words.memory.physical.present(), page_size)
    if info.symbol("mem_section") is not None:
        parts = _sparse(words, info, defaults, page_size, struct_size, near)
        model = "sparse"
    elif info.symbol("mem_map") is not None and info.symbol("contig_page_data") is not None:
        parts = list(_nodes(words, info))
        model = "flat"
    else:
        parts = list(_nodes(words, info))
        model = "discontiguous"
    parts = [piece for part in parts for piece in _limited(part, near, struct_size)]
    parts.sort(key=lambda part: part.pfn)
    return Memmap(model, page_size, struct_size, tuple(_disjoint(parts, struct_size)))


def _nearby(present: Ranges, page_size: int) -> Ranges:
    """Frames, in whole gigabytes, of which the dump holds any."""
    shift, pages = np.uint64(_NEARBY_SHIFT), np.uint64((1 << _NEARBY_SHIFT) // page_size)
    first = present.start >> shift
    end = ((present.end - np.uint64(1)) >> shift) + np.uint64(1)
    return merge_ranges(first * pages, end * pages)


def _limited(part: MemmapPart, near: Ranges, struct_size: int) -> Iterator[MemmapPart]:
    """``part`` cut down to the frames in ``near``."""
    part_end = min(part.pfn + part.nr_pages, 1 << MAX_PFN_BITS)
    for begin, end in zip(near.start.tolist(), near.end.tolist(), strict=True):
        start, stop = max(part.pfn, begin), min(part_end, end)
        if start < stop:
            vaddr = part.vaddr + (start - part.pfn) * struct_size
            yield MemmapPart(start, stop - start, vaddr & MASK64)


def _need(value: int | None, key: str) -> int:
    if value is None or value <= 0:
        raise IdentityError(
            key,
            f"pages cannot be told apart: VMCOREINFO lacks {key}",
            hint="-l all needs none of this; -e FILE can supply the line",
        )
    return value


def _sparse(
    words: Words,
    info: VmcoreInfo,
    defaults: SparseGeometry,
    page_size: int,
    struct_size: int,
    near: Ranges,
) -> list[MemmapPart]:
    section_bits = info.number("SECTION_SIZE_BITS") or defaults.section_size_bits
    physmem_bits = info.number("MAX_PHYSMEM_BITS") or defaults.max_physmem_bits
    page_shift = page_size.bit_length() - 1
    if not page_shift < section_bits < physmem_bits <= 64:
        raise IdentityError("SECTION_SIZE_BITS", f"impossible memory sections of 2**{section_bits} bytes")
    nr_sections = min(1 << (physmem_bits - section_bits), MAX_SECTIONS)
    shift = section_bits - page_shift
    best: list[MemmapPart] = []
    for start, is_extreme in _readings(words, info):
        parts: list[MemmapPart] = []
        for number in _numbers(near, shift, nr_sections):
            table = _entries(words, info, page_size, number, start, is_extreme)
            parts += _sections(words, *table, shift, struct_size)
        if len(parts) > len(best):
            best = parts
    if not best:
        raise IdentityError(
            "SYMBOL(mem_section)",
            "the array of struct page was not found: no reading of mem_section gives mapped sections",
            hint="-l all needs none of this",
        )
    return best


def _numbers(near: Ranges, shift: int, nr_sections: int) -> Iterator[Index]:
    """Sections that share a frame with ``near``, in batches."""
    bits, last = np.uint64(shift), np.uint64(nr_sections)
    first = np.minimum(near.start >> bits, last)
    end = np.minimum(((near.end - np.uint64(1)) >> bits) + np.uint64(1), last)
    merged = merge_ranges(first, end)
    batch: list[Index] = []
    room = _SECTIONS_AT_ONCE
    for begin, stop in zip(merged.start.tolist(), merged.end.tolist(), strict=True):
        while begin < stop:
            count = min(stop - begin, room)
            batch.append(np.arange(begin, begin + count))
            begin, room = begin + count, room - count
            if not room:
                yield np.concatenate(batch)
                batch, room = [], _SECTIONS_AT_ONCE
    if batch:
        yield np.concatenate(batch)


def _sections(words: Words, number: Index, vaddr: U64, shift: int, struct_size: int) -> list[MemmapPart]:
    """The sections that have a mapped array, from the addresses of their ``section_mem_map``."""
    values, readable = words.column(vaddr)
    flags = np.uint64(SECTION_MARKED_PRESENT | SECTION_HAS_MEM_MAP)
    valid = readable & ((values & flags) == flags)
    first_pfn = number[valid].astype(np.uint64) << np.uint64(shift)
    coded = values[valid] & np.uint64(~SECTION_FLAGS[words.word] & MASK64)
    at = (coded + first_pfn * np.uint64(struct_size)) & words.mask
    _, mapped = words.memory.translate(at)
    return [
        MemmapPart(pfn, 1 << shift, address)
        for pfn, address in zip(first_pfn[mapped].tolist(), at[mapped].tolist(), strict=True)
    ]


def _readings(words: Words, info: VmcoreInfo) -> Iterator[tuple[int, bool]]:
    """Where the table may begin, and whether it is one of roots (SPARSEMEM_EXTREME)."""
    base = _need(info.symbol("mem_section"), "SYMBOL(mem_section)")
    yield base, True
    pointer = _pointer(words, base)
    if pointer:
        yield pointer, True
    yield base, False


def _entries(
    words: Words, info: VmcoreInfo, page_size: int, number: Index, start: int, is_extreme: bool
) -> tuple[Index, U64]:
    """The sections of ``number`` that the table has, and where their ``section_mem_map`` lies."""
    size = _need(info.size("mem_section"), "SIZE(mem_section)")
    member = info.offset("mem_section.section_mem_map") or 0
    if size > page_size or not 0 <= member < size:
        raise IdentityError("SIZE(mem_section)", f"impossible struct mem_section of {size} bytes")
    length = info.length("mem_section") or MAX_SECTIONS
    if not is_extreme:
        number = number[number < length]
        return number, np.uint64(start) + number.astype(np.uint64) * np.uint64(size) + np.uint64(member)
    per_root = page_size // size
    number = number[number < min(length, MAX_SECTIONS) * per_root]
    slot = np.uint64(start) + (number // per_root).astype(np.uint64) * np.uint64(words.word)
    root, _readable = words.column(slot)
    number, root = number[root != 0], root[root != 0]
    return number, root + (number % per_root).astype(np.uint64) * np.uint64(size) + np.uint64(member)


def _pointer(words: Words, vaddr: int) -> int:
    """0 as well where it cannot be read."""
    try:
        return words.read(vaddr)
    except FaultError:
        return 0


def node_addresses(words: Words, info: VmcoreInfo) -> list[int]:
    """Addresses of every ``pg_data_t``: of the only node, or of an array of nodes with gaps."""
    only = info.symbol("contig_page_data")
    if only is not None:
        return [only]
    start = _need(info.symbol("node_data"), "SYMBOL(node_data) or SYMBOL(contig_page_data)")
    count = min(_need(info.length("node_data"), "LENGTH(node_data)"), _MAX_NODES)
    at = np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(words.word)
    values, _readable = words.column(at)
    return [address for address in values.tolist() if address]


def _nodes(words: Words, info: VmcoreInfo) -> Iterator[MemmapPart]:
    offsets = [
        _need_offset(info, f"pglist_data.{name}")
        for name in ("node_start_pfn", "node_spanned_pages", "node_mem_map")
    ]
    for address in node_addresses(words, info):
        values = [_pointer(words, address + offset) for offset in offsets]
        if values[1] and values[2]:
            yield MemmapPart(values[0], values[1], values[2])


def _need_offset(info: VmcoreInfo, name: str) -> int:
    value = info.offset(name)
    if value is None:
        _need(None, f"OFFSET({name})")
    return value or 0


def _disjoint(parts: list[MemmapPart], struct_size: int) -> Iterator[MemmapPart]:
    """Nodes may interleave and a damaged table may repeat itself: the first part keeps a frame."""
    reached = 0
    for part in parts:
        skip = max(reached - part.pfn, 0)
        if skip < part.nr_pages:
            reached = part.pfn + part.nr_pages
            yield MemmapPart(part.pfn + skip, part.nr_pages - skip, part.vaddr + skip * struct_size)
