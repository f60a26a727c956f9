"""Linked lists of the kernel, one node after the other (include/linux/list.h).

A node of a ``list_head`` counts only if it points back to the one before it, which no walk in a circle
survives; the same holds for ``hlist_head``, whose nodes point at the pointer to them.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.walking import WalkError, words

MOST_NODES = 1 << 22


def list_nodes(target: Target, head: int, most: int = MOST_NODES) -> Iterator[int]:
    """The nodes of ``struct list_head`` in order, without the head.  Raises FaultError, WalkError."""
    before, now = head, _pair(target, head)[0]
    for _ in range(most):
        if now == head:
            return
        after, back = _pair(target, now)
        if back != before:
            raise WalkError(
                f"the list is damaged: {now:#x} follows {before:#x}, but points back to {back:#x}"
            )
        yield now
        before, now = now, after
    raise WalkError(f"the list has more than {most} nodes")


def hlist_nodes(target: Target, head: int, most: int = MOST_NODES) -> Iterator[int]:
    """The nodes of ``struct hlist_head`` in order.  Raises FaultError, WalkError."""
    place, now = head, unsigned(target, head, target.word)
    for _ in range(most):
        if not now:
            return
        after, back = _pair(target, now)
        if back != place:
            raise WalkError(
                f"the list is damaged: {place:#x} points to {now:#x}, which is said to be at {back:#x}"
            )
        yield now
        place, now = now, after
    raise WalkError(f"the list has more than {most} nodes")


def _pair(target: Target, vaddr: int) -> tuple[int, int]:
    first, second = words(target, target.read(vaddr, 2 * target.word))
    return first, second
