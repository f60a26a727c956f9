"""Red-black trees of the kernel in order (include/linux/rbtree_types.h, rbtree.h until v5.13).

``struct rb_root`` is a pointer to the top node, ``struct rb_root_cached`` begins with one.  A node is
three words: its parent with the colour in the low bits, right child, left child.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.walking import WalkError, words

_COLOUR = 3
_DEEPEST = 128
"""Twice the logarithm of all that an address space can hold."""


def rbtree_nodes(target: Target, root: int) -> Iterator[int]:
    """The nodes in order.  Raises FaultError, WalkError: a node must point back to its parent."""
    parent, now = 0, unsigned(target, root, target.word)
    path: list[tuple[int, int]] = []  # nodes whose left side is under way, and their right child
    while now or path:
        while now:
            if len(path) >= _DEEPEST:
                raise WalkError(f"the tree is damaged: {now:#x} lies deeper than any node can")
            right, left = _children(target, now, parent)
            path.append((now, right))
            parent, now = now, left
        node, right = path.pop()
        yield node
        parent, now = node, right


def _children(target: Target, node: int, parent: int) -> tuple[int, int]:
    """Right, left: the order of the members has never changed."""
    if node % 4:
        raise WalkError(f"the tree is damaged: no node can be at {node:#x}")
    up, right, left = words(target, target.read(node, 3 * target.word))
    if up & ~_COLOUR != parent:
        raise WalkError(f"the tree is damaged: {node:#x} hangs on {parent:#x}, but names {up & ~_COLOUR:#x}")
    if right == left != 0:  # else a chain of these would be twice as long at each node
        raise WalkError(f"the tree is damaged: both children of {node:#x} are {left:#x}")
    return right, left
