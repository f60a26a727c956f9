"""Where the kernel's ``struct page`` are: the plain twin of ``kernel.memmap``.

Sparse memory (include/linux/mmzone.h) has a ``section_mem_map`` for each section, with flags in its low bits
and the section's first frame taken off; ``mem_section`` is an array of them, or one of pages full of them.
All readings are tried, and the one that leads to most sections is taken.  Flat and discontiguous memory has
one array for each node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.target import Target, field, struct_size, unsigned
from kdump_elftool.plain.walking import known_offset, pointer, words

NEEDS = (
    *("SIZE(page)", "SIZE(mem_section)", "OFFSET(mem_section.section_mem_map)"),
    *("SYMBOL(mem_section)", "SYMBOL(mem_map)", "SYMBOL(contig_page_data)", "SYMBOL(node_data)"),
    *("NUMBER(SECTION_SIZE_BITS)", "NUMBER(MAX_PHYSMEM_BITS)", "NUMBER(PAGE_SHIFT)", "LENGTH(node_data)"),
    "OFFSET(pglist_data.node_start_pfn)",
    "OFFSET(pglist_data.node_spanned_pages)",
    "OFFSET(pglist_data.node_mem_map)",
)
_PRESENT_WITH_MAP = 3
_FLAGS = {4: (1 << 5) - 1, 8: (1 << 6) - 1}
"""By the size of a word, as in ``kernel.memmap``."""
_MOST_ROOTS, _MOST_PARTS, _MOST_NODES = 1 << 18, 1 << 16, 1 << 10
_MOST_LOOKED_AT = 1 << 23
"""Sections, there or not: 1 PB of memory."""
_SAMPLES, _MOST_MISSED = 16, 1 << 12
_AT_ONCE = 1 << 16


class Part(NamedTuple):
    """``nr_pages`` consecutive ``struct page`` at ``vaddr``, for the frames from ``pfn`` on."""

    pfn: int
    nr_pages: int
    vaddr: int


class Memmap(NamedTuple):
    """The whole array."""

    page_shift: int
    struct_size: int
    parts: list[Part]

    def page_of(self, pfn: int) -> int | None:
        """Address of the frame's ``struct page``."""
        for part in self.parts:
            if part.pfn <= pfn < part.pfn + part.nr_pages:
                return part.vaddr + (pfn - part.pfn) * self.struct_size
        return None

    def pfn_of(self, vaddr: int) -> int | None:
        """The frame whose ``struct page`` an address lies in."""
        for part in self.parts:
            if 0 <= vaddr - part.vaddr < part.nr_pages * self.struct_size:
                return part.pfn + (vaddr - part.vaddr) // self.struct_size
        return None


def find_memmap(target: Target) -> Memmap:
    """Raises IdentityError where the array is not found."""
    size = struct_size(target, "page")
    shift = target.number("PAGE_SHIFT")
    if shift is None or not 12 <= shift <= 20:
        raise IdentityError("NUMBER(PAGE_SHIFT)", "the size of a page is not known")
    base = target.symbol("mem_section")
    parts = _sparse(target, base, size, shift) if base is not None else list(_nodes(target))
    if not parts:
        raise IdentityError("SYMBOL(mem_section)", "the array of struct page was not found")
    return Memmap(shift, size, parts)


def _sparse(target: Target, base: int, size: int, page_shift: int) -> list[Part]:
    bits, most = target.number("SECTION_SIZE_BITS"), target.number("MAX_PHYSMEM_BITS") or 52
    if bits is None or not page_shift < bits < most <= 64:
        raise IdentityError("NUMBER(SECTION_SIZE_BITS)", "the size of memory sections is not known")
    best: list[Part] = []
    for at, is_extreme in _readings(target, base):
        tables = _roots(target, at, most - bits, page_shift) if is_extreme else iter([(0, at)])
        found = list(_sections(target, tables, bits - page_shift, size, is_extreme, page_shift))
        if len(found) > len(best):
            best = found
    return best


def _readings(target: Target, base: int) -> Iterator[tuple[int, bool]]:
    """Where the table may begin, and whether it is one of roots (SPARSEMEM_EXTREME)."""
    yield base, True
    try:
        within = unsigned(target, base, target.word)
    except FaultError:
        within = 0
    if within:
        yield within, True
    yield base, False


def _roots(target: Target, at: int, section_bits: int, page_shift: int) -> Iterator[tuple[int, int]]:
    """Number of the first section of each root, and where the root is."""
    each = (1 << page_shift) // struct_size(target, "mem_section")
    if not each:
        return
    count = min(-(-(1 << section_bits) // each), _MOST_ROOTS)
    for first in range(0, count * target.word, 4096):
        try:
            data = target.read(at + first, min(4096, count * target.word - first))
        except FaultError:
            break
        for index, root in enumerate(words(target, data), first // target.word):
            if root:
                yield index * each, root


def _sections(
    target: Target,
    tables: Iterator[tuple[int, int]],
    shift: int,
    size: int,
    is_extreme: bool,
    page_shift: int,
) -> Iterator[Part]:
    """The sections that have an array; none where the first of them lead nowhere."""
    each = struct_size(target, "mem_section")
    member = field(target, "mem_section.section_mem_map", target.word)
    count = (1 << page_shift) // each if is_extreme else _flat_length(target, each)
    found = missed = 0
    left = _MOST_LOOKED_AT
    for first, table in tables:
        left -= count
        if left < 0:
            return
        try:
            data = target.read(table, count * each)
        except FaultError:
            continue
        for index in range(count):
            coded = member.at(data, index * each, target.order)
            if coded & _PRESENT_WITH_MAP != _PRESENT_WITH_MAP:
                continue
            pfn = first + index << shift
            vaddr = (coded & ~_FLAGS[target.word]) + pfn * size & (1 << 8 * target.word) - 1
            if found < _SAMPLES and not _is_there(target, vaddr):
                missed += 1
                if missed >= _MOST_MISSED:
                    return
                continue
            found += 1
            yield Part(pfn, 1 << shift, vaddr)
            if found >= _MOST_PARTS:
                return


def _flat_length(target: Target, each: int) -> int:
    """Sections of a table without roots."""
    most = (target.number("MAX_PHYSMEM_BITS") or 36) - (target.number("SECTION_SIZE_BITS") or 28)
    return min(1 << max(most, 0), _AT_ONCE // each)


def _is_there(target: Target, vaddr: int) -> bool:
    try:
        target.read(vaddr, target.word)
    except FaultError:
        return False
    return True


def _nodes(target: Target) -> Iterator[Part]:
    """The arrays of all nodes, where memory is not sparse."""
    if known_offset(target, "pglist_data.node_mem_map") is None:
        raise IdentityError(
            "SYMBOL(mem_section)",
            "the array of struct page was not found: neither mem_section nor pglist_data.node_mem_map",
        )
    for node in _node_addresses(target):
        try:
            start, count, array = (
                pointer(target, node, f"pglist_data.{name}")
                for name in ("node_start_pfn", "node_spanned_pages", "node_mem_map")
            )
        except FaultError:
            continue
        if array and count:
            yield Part(start, count, array)


def _node_addresses(target: Target) -> list[int]:
    only = target.symbol("contig_page_data")
    if only is not None:
        return [only]
    table = target.symbol("node_data")
    if table is None:
        return []
    # of an array whose end is not known the first gap is taken for it
    length = target.length("node_data")
    found = []
    for index in range(_MOST_NODES if length is None else min(length, _MOST_NODES)):
        try:
            node = unsigned(target, table + index * target.word, target.word)
        except FaultError:
            break
        if not node and length is None:
            break
        if node:
            found.append(node)
    return found
