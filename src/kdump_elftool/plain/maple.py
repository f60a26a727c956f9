"""Maple trees (v6.1 on): every entry with the range of indices it stands for.

References: include/linux/maple_tree.h, lib/maple_tree.c.  A pointer to a node has the node's type in
bits 3 to 6 and more in the low bits; nodes are aligned to 256 bytes.  A node's metadata tell how many slots
are in use; in a range node they take the place of the last slot, and count only where the last pivot is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import IdentityError
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.walking import WalkError, offset, words

_KINDS = ("maple_range_64", "maple_arange_64")
NEEDS = (
    "OFFSET(maple_tree.ma_root)",
    *(
        question
        for kind in _KINDS
        for question in (
            f"OFFSET({kind}.pivot)",
            f"SIZE({kind}.pivot)",
            f"OFFSET({kind}.slot)",
            f"SIZE({kind}.slot)",
            f"OFFSET({kind}.meta.end)",
        )
    ),
)
_NODE_MASK = 255
_TYPE_SHIFT, _TYPE_MASK = 3, 15
_LEAF, _RANGE, _ARANGE = 1, 2, 3
_LAST_INTERNAL = 4096
_INTERNAL = 2
_DEEPEST = 32
MOST_ENTRIES = 1 << 20


class Span(NamedTuple):
    """``entry`` stands for ``first`` to ``last``, both included."""

    first: int
    last: int
    entry: int


class _Shape(NamedTuple):
    """Of a node: where its arrays are and how long they are."""

    pivot: int
    pivots: int
    slot: int
    slots: int
    end: int
    tells_end: bool


def maple_entries(target: Target, tree: int, most: int = MOST_ENTRIES) -> Iterator[Span]:
    """What a ``struct maple_tree`` holds, in order.  Raises FaultError, WalkError."""
    root = unsigned(target, tree + offset(target, "maple_tree.ma_root"), target.word)
    if root & 3 != _INTERNAL or root <= _LAST_INTERNAL:
        if root:
            yield Span(0, 0, root)
        return
    shapes = {_LEAF: _shape(target, _KINDS[0]), _RANGE: _shape(target, _KINDS[0])}
    shapes[_ARANGE] = _shape(target, _KINDS[1])
    path = [iter([Span(0, (1 << 8 * target.word) - 1, root)])]
    kinds: list[int] = [_RANGE]
    while path:
        span = next(path[-1], None)
        if span is None:
            path.pop()
            kinds.pop()
        elif kinds[-1] == _LEAF:
            if span.entry & 3 != _INTERNAL or span.entry > _LAST_INTERNAL:  # else a mark of the kernel's own
                most -= 1
                if most < 0:
                    raise WalkError("the tree has more entries than any kernel makes")
                yield span
        else:
            kind = span.entry >> _TYPE_SHIFT & _TYPE_MASK
            if kind not in shapes or len(path) > _DEEPEST:
                raise WalkError(f"the tree is damaged: what {span.entry:#x} points to cannot be a node")
            path.append(iter(_spans(target, shapes[kind], span)))
            kinds.append(kind)


def _spans(target: Target, shape: _Shape, node: Span) -> list[Span]:
    """The slots of a node that are not empty.  Raises WalkError where pivots go backwards."""
    at = node.entry & ~_NODE_MASK
    data = target.read(at, _NODE_MASK + 1)
    pivots = words(target, data[shape.pivot : shape.pivot + shape.pivots * target.word])
    slots = words(target, data[shape.slot : shape.slot + shape.slots * target.word])
    end = _end(shape, data, pivots, node.last)
    found, first = [], node.first
    for index in range(end + 1):
        last = node.last if index == end else pivots[index]
        if not first <= last <= node.last:
            raise WalkError(f"the tree is damaged: {at:#x} has ranges that overlap")
        if slots[index]:
            found.append(Span(first, last, slots[index]))
        first = last + 1
    return found


def _end(shape: _Shape, data: bytes, pivots: list[int], last: int) -> int:
    """The last slot in use, as ma_data_end() has it."""
    if shape.tells_end or not pivots[-1]:
        return min(data[shape.end], len(pivots))
    return len(pivots) - 1 if pivots[-1] == last else len(pivots)


def _shape(target: Target, kind: str) -> _Shape:
    pivot, slot, end = (offset(target, f"{kind}.{name}") for name in ("pivot", "slot", "meta.end"))
    pivots, slots = ((target.size(f"{kind}.{name}") or 0) // target.word for name in ("pivot", "slot"))
    whole = (
        0 < pivots < slots and max(pivot + pivots * target.word, slot + slots * target.word, end + 1) <= 256
    )
    if not whole:
        raise IdentityError(f"SIZE({kind}.slot)", f"struct {kind} is described as impossible")
    return _Shape(pivot, pivots, slot, slots, end, kind == _KINDS[1])
