"""XArrays and the radix trees before them: every index with its entry.

Which of the two follows from the types that exist, never from a version (include/linux/xarray.h,
radix-tree.h).  An entry that leads to a node is marked in its low bits: 2 in an XArray (v4.20 on), 1 in a
radix tree since v4.7.  Before that only the root was marked, and a node told its height rather than its
shift (in the low bits of ``path`` from v3.15 to v4.5).  Values that are no pointers have bit 0 set in an
XArray, bit 1 in a radix tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import IdentityError
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.walking import WalkError, known_offset, offset, words

NEEDS = (
    "OFFSET(xarray.xa_head)",
    *("OFFSET(xa_node.slots)", "SIZE(xa_node.slots)", "OFFSET(xa_node.shift)"),
    "OFFSET(radix_tree_root.rnode)",
    *("OFFSET(radix_tree_node.slots)", "SIZE(radix_tree_node.slots)", "OFFSET(radix_tree_node.shift)"),
    *("OFFSET(radix_tree_node.height)", "OFFSET(radix_tree_node.path)"),
)
_LAST_INTERNAL = 4096
_MOST_ENTRIES = 1 << 22
_MOST_NODES = 1 << 20
"""A forged tree may lead to one node from everywhere."""


class Entry(NamedTuple):
    """At index ``at``; ``value`` is a pointer, or with ``is_value`` a number stored in place of one."""

    at: int
    value: int
    is_value: bool


class _Form(NamedTuple):
    is_xarray: bool
    head: int
    slots: int
    slots_size: int
    nr_slots: int
    shift: int | None
    height: int | None

    @property
    def bits(self) -> int:
        return self.nr_slots.bit_length() - 1


def xarray_entries(target: Target, root: int, most: int = _MOST_ENTRIES) -> Iterator[Entry]:
    """What ``struct xarray`` (or ``radix_tree_root``) holds, by index.  Raises FaultError, WalkError."""
    form = _form(target)
    head = unsigned(target, root + form.head, target.word)
    node = _root_node(form, head)
    if node is None:
        if head and not _is_internal(form, head):
            yield _entry(form, 0, head)
        return
    shift = _shift(target, form, node)
    if shift > 8 * target.word:
        raise WalkError(f"the tree is damaged: {node:#x} has a shift of {shift}")
    left = most
    for entry in _walk(target, form, node, shift):
        if not left:
            raise WalkError(f"there are more than {most} entries")
        left -= 1
        yield entry


def _walk(target: Target, form: _Form, root: int, shift: int) -> Iterator[Entry]:
    """Depth first.  Levels only go down, so that no walk goes in a circle."""
    path = [(_slots(target, form, root), root, shift, 0, 0)]
    nodes = 1
    while path:
        slots, node, shift, base, at = path.pop()
        for slot in range(at, form.nr_slots):
            entry, index = slots[slot], base + (slot << shift)
            child = _child(form, entry, node, shift)
            if child is not None:
                nodes += 1
                if nodes > _MOST_NODES:
                    raise WalkError(f"the tree has more than {_MOST_NODES} nodes")
                below = _below(target, form, child, shift)
                path.append((slots, node, shift, base, slot + 1))
                path.append((_slots(target, form, child), child, below, index, 0))
                break
            if entry and not _is_internal(form, entry):
                yield _entry(form, index, entry)


def _below(target: Target, form: _Form, node: int, shift: int) -> int:
    """The shift of a child: one level less, whatever it claims."""
    expected, found = shift - form.bits, _shift(target, form, node)
    if found != expected or found < 0:
        raise WalkError(f"the tree is damaged: {node:#x} has a shift of {found}, not {expected}")
    return found


def _child(form: _Form, entry: int, node: int, shift: int) -> int | None:
    """The node that an entry leads to."""
    if form.shift is None:  # children have no mark, so that the level decides
        return entry if shift and entry and not entry & 3 else None
    found = _root_node(form, entry)
    if found is not None and not form.is_xarray and 0 <= found - (node + form.slots) < form.slots_size:
        return None  # a slot of the same node: the entry repeats that one
    return found


def _root_node(form: _Form, entry: int) -> int | None:
    mark = 2 if form.is_xarray else 1
    if entry & 3 != mark or (form.is_xarray and entry <= _LAST_INTERNAL):
        return None
    return entry - mark


def _is_internal(form: _Form, entry: int) -> bool:
    """An entry for the kernel's own use: retry, zero, the sibling of one before."""
    return entry & 3 == (2 if form.is_xarray else 1)


def _entry(form: _Form, index: int, entry: int) -> Entry:
    if form.is_xarray:
        return Entry(index, entry >> 1, True) if entry & 1 else Entry(index, entry, False)
    return Entry(index, entry >> 2, True) if entry & 2 else Entry(index, entry, False)


def _slots(target: Target, form: _Form, node: int) -> list[int]:
    return words(target, target.read(node + form.slots, form.slots_size))


def _shift(target: Target, form: _Form, node: int) -> int:
    if form.shift is not None:
        return unsigned(target, node + form.shift, 1)
    height = unsigned(target, node + (form.height or 0), 4)
    most = -(-8 * target.word // form.bits)
    if known_offset(target, "radix_tree_node.path") is not None:
        height &= (1 << (most + 1)) - 1
    if not 0 < height <= most:
        raise WalkError(f"the tree is damaged: {node:#x} has a height of {height}")
    return (height - 1) * form.bits


def _form(target: Target) -> _Form:
    is_xarray = known_offset(target, "xa_node.slots") is not None
    node, head = ("xa_node", "xarray.xa_head") if is_xarray else ("radix_tree_node", "radix_tree_root.rnode")
    slots = offset(target, f"{node}.slots")
    size = target.size(f"{node}.slots") or 0
    nr_slots = size // target.word
    if nr_slots not in (8, 16, 32, 64, 128):
        raise IdentityError(f"SIZE({node}.slots)", f"the size of {node}.slots is said to be {size}")
    shift = known_offset(target, f"{node}.shift")
    height = None if shift is not None else offset(target, f"{node}.path", f"{node}.height")
    return _Form(is_xarray, offset(target, head), slots, size, nr_slots, shift, height)
