"""Interval tables: where each piece of physical memory lies in a dump's data.

A dump's headers may list memory twice (/proc/vmcore does so with the kernel text), out of order,
unaligned and overlapping; :func:`normalise` makes sorted disjoint extents of it.  Never an object
or an array slot per page: physical addresses may lie sparsely far above 2**46.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Bools, Index, Ranges

ZERO_FILL = MASK64
"""``position`` of an extent that reads as zeros and has no data in the file."""


@dataclass(frozen=True)
class Extents:
    """Sorted disjoint extents, uint64 columns: ``[start, start + size)`` lies at ``position``."""

    start: U64
    size: U64
    position: U64

    def __len__(self) -> int:
        return len(self.start)

    @property
    def end(self) -> U64:
        """One past the last address of each extent."""
        return self.start + self.size

    @property
    def total(self) -> int:
        """Bytes covered."""
        return int(self.size.sum())

    def locate(self, address: U64) -> tuple[Index, Bools]:
        """Index of the extent that holds each address, and a mask of those that have one."""
        if not len(self):
            return np.zeros(len(address), dtype=np.intp), np.zeros(len(address), dtype=np.bool_)
        index = np.maximum(np.searchsorted(self.start, address, side="right") - 1, 0)
        inside: Bools = (address >= self.start[index]) & (address - self.start[index] < self.size[index])
        return index, inside

    def ranges(self) -> Ranges:
        """The covered addresses alone, adjacent extents merged."""
        if not len(self):
            return Ranges(self.start, self.start)
        first = np.ones(len(self), dtype=np.bool_)
        first[1:] = self.start[1:] != self.end[:-1]
        last = np.append(np.flatnonzero(first)[1:] - 1, len(self) - 1)
        return Ranges(self.start[first], self.end[last])


@dataclass(frozen=True)
class Pieces:
    """Intersections of query ranges with extents; ``owner`` indexes the query."""

    owner: Index
    start: U64
    size: U64


def intersect(ranges: Ranges, start: U64, size: U64) -> Pieces:
    """Cut each query ``[start, start + size)`` down to the parts that lie in ``ranges``.

    Queries may overlap each other and come in any order; pieces come out in query order, ascending
    within a query.  Queries must not reach beyond 2**64 - 1.
    """
    end = start + size
    low = np.searchsorted(ranges.end, start, side="right")
    high = np.searchsorted(ranges.start, end, side="left")
    count = np.maximum(high - low, 0)
    owner = np.repeat(np.arange(len(start)), count)
    # position of each piece within its query's span of ranges
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    index = low[owner] + within
    piece_start = np.maximum(ranges.start[index], start[owner])
    piece_end = np.minimum(ranges.end[index], end[owner])
    keep = piece_end > piece_start
    return Pieces(owner[keep], piece_start[keep], (piece_end - piece_start)[keep])


def normalise(start: U64, size: U64, position: U64) -> Extents:
    """Sorted disjoint extents from extents in any order.

    Where several cover one address, the largest wins (long reads are cheap), and the earlier
    listed among equals.  Neighbours that continue each other in memory and in the file are merged.
    """
    return _disjoint(start, size, position, lambda size, listed: np.lexsort((-listed, size)))


def overlay(start: U64, size: U64, position: U64) -> Extents:
    """As :func:`normalise`, but the later listed wins, as if each were written over those before it."""
    return _disjoint(start, size, position, lambda _size, listed: np.argsort(listed))


Order = Callable[[U64, Index], Index]
"""Sizes and places in the list -> the extents' indices, those that win over others behind them."""


def _disjoint(start: U64, size: U64, position: U64, order_of: Order) -> Extents:
    keep = size > 0
    start, size, position = start[keep], size[keep], position[keep]
    # an extent that runs over the top of the address space is cut there
    size = np.minimum(size, np.uint64(MASK64) - start)
    keep = size > 0
    start, size, position = start[keep], size[keep], position[keep]
    if not np.any(start[1:] < start[:-1] + size[:-1]):  # as most formats list them: nothing to be sorted
        return _merge(start, size, position)
    listed = np.argsort(start, kind="stable")
    start, size, position = start[listed], size[listed], position[listed]
    reach = np.maximum.accumulate(start + size)
    if not len(start) or not np.any(start[1:] < reach[:-1]):
        return _merge(start, size, position)
    # groups of extents that overlap; most extents are alone and stay out of it
    first = np.concatenate([[True], start[1:] >= reach[:-1]])
    members = np.diff(np.append(np.flatnonzero(first), len(start)))
    shared = np.repeat(members > 1, members)
    order = order_of(size[shared], listed[shared])
    resolved = _resolve_overlaps(start[shared], size[shared], position[shared], order)
    columns = (
        np.concatenate([alone[~shared], found])
        for alone, found in zip((start, size, position), resolved, strict=True)
    )
    start, size, position = columns
    order = np.argsort(start, kind="stable")
    return _merge(start[order], size[order], position[order])


def _resolve_overlaps(start: U64, size: U64, position: U64, order: Index) -> tuple[U64, U64, U64]:
    """Between two borders the extent that stands last in ``order`` is taken.

    All extents enter a segment tree over the slots between borders at once, level by level: a node
    holds the highest rank of the extents that cover all slots below it.  A slot's owner is the
    highest on its way to the root.
    """
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    borders = np.unique(np.concatenate([start, start + size]))
    slots = len(borders) - 1
    tree = np.full(2 * slots, -1, dtype=np.int64)
    low = np.searchsorted(borders, start) + slots
    high = np.searchsorted(borders, start + size) + slots
    while len(low):
        odd = low & 1 == 1
        np.maximum.at(tree, low[odd], rank[odd])
        low = low + odd
        odd = high & 1 == 1
        high = high - odd
        np.maximum.at(tree, high[odd], rank[odd])
        low, high = low >> 1, high >> 1
        left = low < high
        low, high, rank = low[left], high[left], rank[left]
    node = np.arange(slots, 2 * slots)
    winner = tree[node]
    while node[-1] > 1:
        node >>= 1
        np.maximum(winner, tree[node], out=winner)
    owner = order[winner]
    new_start = borders[:-1]
    new_size = borders[1:] - new_start
    moved = position[owner] + (new_start - start[owner])
    new_position = np.where(position[owner] == np.uint64(ZERO_FILL), position[owner], moved)
    covered = winner >= 0
    return new_start[covered], new_size[covered], new_position[covered]


def _merge(start: U64, size: U64, position: U64) -> Extents:
    if not len(start):
        return Extents(start, size, position)
    zero = position == np.uint64(ZERO_FILL)
    follows = start[1:] == start[:-1] + size[:-1]
    continues = ~zero[1:] & ~zero[:-1] & (position[1:] == position[:-1] + size[:-1])
    joined = follows & (continues | (zero[1:] & zero[:-1]))
    first = np.flatnonzero(np.concatenate([[True], ~joined]))
    total = np.add.reduceat(size, first)
    return Extents(start[first], total, position[first])
