"""Page-table walks: every mapping at once as columns, and one address step by step.

:func:`walk` reads all tables of a level in one go.  A table page is visited once per level, so
that shared tables (KASAN shadow, ESPFIX clones) and cycles cannot multiply.  A table that cannot
be read loses its range only; what was lost is part of the result.
:func:`translate` is the plain reference: one address, Python integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Bools, align_down, u64
from kdump_elftool.arch.base import Fixed, Level, PagingForm
from kdump_elftool.errors import NotMappedError
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.physical import PhysicalMemory

TABLES_AT_ONCE = 2048
MAX_MAPPINGS = 1 << 22
MAX_LOST = 1 << 16


@dataclass(frozen=True)
class Mappings:
    """Sorted, disjoint virtual ranges and the physical memory behind them (uint64 columns)."""

    vaddr: U64
    paddr: U64
    size: U64

    def __len__(self) -> int:
        return len(self.vaddr)


@dataclass(frozen=True)
class LostTables:
    """Tables of one level that could not be read: where they lie and what they would map."""

    level: str
    paddr: U64
    vaddr: U64
    span: int


@dataclass(frozen=True)
class Walk:
    """Result of :func:`walk`.  ``aliases`` counts table references that were not followed twice."""

    mappings: Mappings
    lost: tuple[LostTables, ...]
    tables: int
    aliases: int
    complete: bool


@dataclass(frozen=True)
class Step:
    """One level of a single translation; the entry lies at ``paddr``."""

    level: str
    table: int
    index: int
    entry: int
    paddr: int


@dataclass(frozen=True)
class Translation:
    """Where one virtual address lies and how the walk got there."""

    paddr: int
    page_size: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Window:
    """Which raw addresses a walk visits: ``[start, end)`` without the ranges of ``skip``."""

    start: int
    end: int
    skip: tuple[tuple[int, int], ...] = ()

    def admits(self, vaddr: U64, span: int) -> Bools:
        """Mask of the entries at ``vaddr``, ``span`` bytes each, that are to be looked at."""
        last = vaddr + np.uint64(span - 1)
        wanted: Bools = (last >= np.uint64(self.start)) & (vaddr < np.uint64(self.end))
        for begin, end in self.skip:
            wanted &= ~((vaddr >= np.uint64(begin)) & (last < np.uint64(end)))
        return wanted


@dataclass(frozen=True)
class _Frontier:
    """Tables of one level still to be read: physical address and raw virtual base."""

    table: U64
    base: U64


def walk(memory: PhysicalMemory, form: PagingForm, root: int, window: Window) -> Walk:
    """All mappings below ``root`` in ``window``, and those of RAM that need no tables."""
    frontier = _Frontier(np.array([root], dtype=np.uint64), np.zeros(1, dtype=np.uint64))
    leaves: list[Mappings] = []
    lost: list[LostTables] = []
    tables = aliases = 0
    complete = True
    for level in form.levels:
        unique = _visit_once(frontier)
        aliases += len(frontier.table) - len(unique.table)
        tables += len(unique.table)
        below: list[_Frontier] = []
        for part in _chunks(unique):
            found, deeper, missing = _read_level(memory, form, level, part, window)
            leaves.append(found)
            below.append(deeper)
            lost.append(missing)
        if sum(map(len, leaves)) > MAX_MAPPINGS:
            complete = False
            break
        frontier = _Frontier(
            np.concatenate([part.table for part in below] or [frontier.table[:0]]),
            np.concatenate([part.base for part in below] or [frontier.base[:0]]),
        )
    found = _concatenate(leaves)
    found = Mappings(form.full(found.vaddr), found.paddr, found.size)
    mappings = merge_mappings(_concatenate([found, *(_of_fixed(memory, part) for part in form.fixed)]))
    return Walk(mappings, _by_level(lost, form), tables, aliases, complete)


def translate(memory: PhysicalMemory, form: PagingForm, root: int, vaddr: int) -> Translation:
    """Translate one address.  Raises NotMappedError, or PageAbsentError for a missing table."""
    for part in form.fixed:
        if 0 <= vaddr - part.vaddr < part.size:
            return Translation(part.paddr + vaddr - part.vaddr, part.size, ())
    if not form.is_canonical(vaddr):
        raise NotMappedError(vaddr, "address is not canonical,", 0)
    raw, table = form.raw(vaddr), root
    steps: list[Step] = []
    order = "little" if form.byte_order == "<" else "big"
    for level in form.levels:
        index = raw >> level.shift & ((1 << level.bits) - 1)
        at, base = table + level.entry * index, align_down(raw, level.span)
        entry = int.from_bytes(memory.read(at, level.entry), order)  # type: ignore[arg-type]
        steps.append(Step(level.name, table, index, entry, at))
        decoded = form.decode_one(entry & ~form.ignored_bits, level, base)
        if decoded.kind == "none":
            raise NotMappedError(vaddr, level.name, entry)
        if decoded.kind == "leaf":
            return Translation(decoded.paddr + raw % level.span, level.span, tuple(steps))
        table = decoded.paddr
    raise AssertionError("the last level of a paging form has leaves only")


def beside(one: Walk, other: Walk) -> Walk:
    """Two tables that map different addresses, as one."""
    return Walk(
        merge_mappings(_concatenate([one.mappings, other.mappings])),
        (*one.lost, *other.lost),
        one.tables + other.tables,
        one.aliases + other.aliases,
        one.complete and other.complete,
    )


def merge_mappings(mappings: Mappings) -> Mappings:
    """Sort by vaddr and join neighbours that continue each other in both address spaces."""
    if not len(mappings):
        return mappings
    order = np.argsort(mappings.vaddr, kind="stable")
    vaddr, paddr, size = mappings.vaddr[order], mappings.paddr[order], mappings.size[order]
    joined = (vaddr[1:] == vaddr[:-1] + size[:-1]) & (paddr[1:] == paddr[:-1] + size[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~joined]))
    return Mappings(vaddr[first], paddr[first], np.add.reduceat(size, first))


def _of_fixed(memory: PhysicalMemory, part: Fixed) -> Mappings:
    """The RAM that is mapped without tables."""
    pieces = intersect(memory.declared, u64([part.paddr]), u64([part.size]))
    return Mappings(pieces.start + u64([part.vaddr - part.paddr]), pieces.start, pieces.size)


def _visit_once(frontier: _Frontier) -> _Frontier:
    _, first = np.unique(frontier.table, return_index=True)
    first.sort()
    return _Frontier(frontier.table[first], frontier.base[first])


def _chunks(frontier: _Frontier) -> Iterator[_Frontier]:
    for begin in range(0, len(frontier.table), TABLES_AT_ONCE):
        part = slice(begin, begin + TABLES_AT_ONCE)
        yield _Frontier(frontier.table[part], frontier.base[part])


def _read_level(
    memory: PhysicalMemory,
    form: PagingForm,
    level: Level,
    part: _Frontier,
    window: Window,
) -> tuple[Mappings, _Frontier, LostTables]:
    blocks, readable = memory.gather(part.table, level.table_size)
    words = blocks.view(f"{form.byte_order}u{level.entry}").astype(np.uint64, copy=False)
    row, column = np.nonzero(words)
    vaddr = part.base[row] + (column.astype(np.uint64) << np.uint64(level.shift))
    wanted = window.admits(vaddr, level.span)
    row, column, vaddr = row[wanted], column[wanted], vaddr[wanted]
    entries = form.decode(words[row, column] & ~np.uint64(form.ignored_bits), level, vaddr)
    leaf, table = entries.leaf, entries.table
    size = np.full(int(leaf.sum()), level.span, dtype=np.uint64)
    found = merge_mappings(Mappings(vaddr[leaf], entries.paddr[leaf], size))
    gone = ~readable
    lost = LostTables(level.name, part.table[gone], part.base[gone], level.span << level.bits)
    return found, _Frontier(entries.paddr[table], vaddr[table]), lost


def _concatenate(parts: list[Mappings]) -> Mappings:
    empty = np.zeros(0, dtype=np.uint64)
    columns = (
        np.concatenate([getattr(part, name) for part in parts] or [empty])
        for name in ("vaddr", "paddr", "size")
    )
    return Mappings(*columns)


def _by_level(lost: list[LostTables], form: PagingForm) -> tuple[LostTables, ...]:
    result = []
    for depth, level in enumerate(form.levels):
        parts = [part for part in lost if part.level == level.name and len(part.paddr)]
        if not parts:
            continue
        paddr = np.concatenate([part.paddr for part in parts])[:MAX_LOST]
        base = np.concatenate([part.vaddr for part in parts])[:MAX_LOST]
        span = form.levels[depth - 1].span if depth else 1 << form.va_bits
        result.append(LostTables(level.name, paddr, form.full(base), span))
    return tuple(result)
