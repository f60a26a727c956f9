"""Walkers of lists and trees: what the builders linked, in order, and an end to everything damaged."""

from __future__ import annotations

from itertools import islice, pairwise
from random import Random

import pytest

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.lists import hlist_nodes, list_nodes
from kdump_elftool.plain.maple import Span, maple_entries
from kdump_elftool.plain.rbtree import rbtree_nodes
from kdump_elftool.plain.walking import collect, string
from kdump_elftool.plain.xarray import Entry, xarray_entries
from tests.builders.structures import Memory, make_hlist, make_list, make_maple, make_rbtree, make_xarray

SEED = 20261129
machines = pytest.mark.parametrize(
    ("order", "word"), [("<", 8), (">", 8), ("<", 4), (">", 4)], ids=["le64", "be64", "le32", "be32"]
)
FORMS = ["xarray", "shift", "path", "height"]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
@machines
def test_lists(order, word, count):
    memory = Memory(order, word)
    head, nodes = make_list(memory, count)
    assert collect(list_nodes(memory, head)) == (nodes, None)
    head, nodes = make_hlist(memory, count)
    assert collect(hlist_nodes(memory, head)) == (nodes, None)


def test_list_in_a_circle_ends():
    memory = Memory()
    head, nodes = make_list(memory, 5)
    memory.put(nodes[3], nodes[1])
    found, why = collect(list_nodes(memory, head))
    assert found == nodes[:4]
    assert why is not None and "points back" in why
    head, nodes = make_hlist(memory, 5)
    memory.put(nodes[3], nodes[1])
    found, why = collect(hlist_nodes(memory, head))
    assert found == nodes[:4]
    assert why is not None and "points to" in why


def test_list_that_leads_nowhere_shows_what_came_before():
    memory = Memory()
    head, nodes = make_list(memory, 5)
    memory.put(nodes[2], 0x1234)
    found, why = collect(list_nodes(memory, head))
    assert (found, why) == (nodes[:3], "vaddr 0x1234: not mapped")


def test_list_without_end():
    memory = Memory()
    head, nodes = make_list(memory, 5)
    found, why = collect(list_nodes(memory, head, 3))
    assert (found, why) == (nodes[:3], "the list has more than 3 nodes")
    assert collect(list_nodes(memory, head, 5))[0] == nodes


@pytest.mark.parametrize("count", [0, 1, 2, 3, 200])
@machines
def test_rbtree(order, word, count):
    memory = Memory(order, word)
    root, nodes = make_rbtree(memory, count)
    assert collect(rbtree_nodes(memory, root)) == (nodes, None)


@pytest.mark.parametrize("wrong", ["parent", "circle", "odd", "nowhere"])
def test_damaged_rbtree_ends(wrong):
    memory = Memory()
    root, nodes = make_rbtree(memory, 31)
    at, value = {
        "parent": (nodes[20], nodes[3]),
        "circle": (nodes[20] + 16, nodes[16]),
        "odd": (nodes[20] + 16, nodes[5] + 2),
        "nowhere": (nodes[20] + 16, 0x1230),
    }[wrong]
    memory.put(at, value)
    found, why = collect(rbtree_nodes(memory, root))
    assert found == nodes[: len(found)]
    assert len(found) in (16, 20)
    assert why is not None


def make_chain(memory: Memory, count: int, *children: int) -> tuple[int, list[int]]:
    """Root and nodes, each of them the child of the one before, at these offsets: no tree of a kernel's."""
    root = memory.take(8)
    nodes = [memory.take(24) for _ in range(count)]
    memory.put(root, nodes[0])
    for parent, node in pairwise(nodes):
        memory.put(node, parent)
        for at in children:
            memory.put(parent + at, node)
    return root, nodes


def test_rbtree_that_is_a_chain_ends():
    memory = Memory()
    root, _ = make_chain(memory, 300, 16)
    found, why = collect(rbtree_nodes(memory, root))
    assert found == []
    assert why is not None and "deeper" in why


def test_rbtree_whose_nodes_are_both_children_ends():
    """Each node has the parent that it names, and yet there would be 2**100 ways down."""
    memory = Memory()
    root, nodes = make_chain(memory, 100, 8, 16)
    found, why = collect(islice(rbtree_nodes(memory, root), 1000))
    assert found == []
    assert why == f"the tree is damaged: both children of {nodes[0]:#x} are {nodes[1]:#x}"


@pytest.mark.parametrize("form", FORMS)
@machines
def test_xarray(order, word, form):
    random = Random(SEED)
    memory = Memory(order, word)
    pointers = {random.randrange(1 << random.randrange(1, 20)): 0x1000 + 8 * n for n in range(60)}
    values = {1 << 19: 77, (1 << 19) + 1: 0}
    stored = {at: value << 1 | 1 if form == "xarray" else value << 2 | 2 for at, value in values.items()}
    root = make_xarray(memory, form, {**pointers, **stored})
    expected = [
        *(Entry(at, value, False) for at, value in pointers.items()),
        *(Entry(at, value, True) for at, value in values.items()),
    ]
    assert collect(xarray_entries(memory, root)) == (sorted(expected), None)


@pytest.mark.parametrize("form", FORMS)
def test_xarray_of_one_entry_has_no_node(form):
    memory = Memory()
    root = make_xarray(memory, form, {0: 0x1000})
    memory.put(root + 8, 0x2000)
    assert collect(xarray_entries(memory, root)) == ([Entry(0, 0x2000, False)], None)
    memory.put(root + 8, 0)
    assert collect(xarray_entries(memory, root)) == ([], None)


def test_xarray_leaves_out_what_only_the_kernel_sees():
    """Siblings of an entry, and marks like XA_ZERO_ENTRY."""
    memory = Memory()
    root = make_xarray(memory, "xarray", {3: 0x1000, 4: 3 << 2 | 2, 5: 257 << 2 | 2, 6: 0x2000})
    assert collect(xarray_entries(memory, root))[0] == [Entry(3, 0x1000, False), Entry(6, 0x2000, False)]


def test_radix_tree_leaves_out_entries_that_repeat_one():
    memory = Memory()
    root = make_xarray(memory, "shift", {3: 0x1000, 4: 0x2000})
    node = int.from_bytes(memory.read(root + 8, 8), "little") - 1
    memory.put(node + 16 + 4 * 8, node + 16 + 3 * 8 | 1)
    assert collect(xarray_entries(memory, root)) == ([Entry(3, 0x1000, False)], None)


@pytest.mark.parametrize("form", FORMS)
def test_xarray_that_leads_back_to_itself_ends(form):
    memory = Memory()
    root = make_xarray(memory, form, dict.fromkeys(range(0, 4096, 300), 0x1000))
    mark = 2 if form == "xarray" else 1
    node = int.from_bytes(memory.read(root + 8, 8), "little") - mark
    memory.put(node + 16 + 8, node | (0 if form in ("path", "height") else mark))
    found, why = collect(xarray_entries(memory, root))
    assert [entry.at for entry in found] == [0]
    assert why is not None and "shift" in why


def test_xarray_with_a_shift_beyond_all_addresses():
    memory = Memory()
    root = make_xarray(memory, "xarray", {0: 0x1000})
    node = int.from_bytes(memory.read(root + 8, 8), "little") - 2
    memory.put(node, 200, 1)
    assert collect(xarray_entries(memory, root))[0] == []


def test_xarray_described_as_impossible():
    memory = Memory()
    root = make_xarray(memory, "xarray", {0: 0x1000})
    memory.keys["SIZE(xa_node.slots)"] = 1 << 40
    with pytest.raises(IdentityError):
        collect(xarray_entries(memory, root))


@pytest.mark.parametrize(
    ("count", "fanout", "leaf"), [(1, 4, 4), (7, 9, 16), (60, 9, 15), (200, 4, 5), (300, 10, 16)]
)
@pytest.mark.parametrize("gaps", [False, True])
@machines
def test_maple_tree(order, word, count, fanout, leaf, gaps):
    random = Random(SEED)
    memory = Memory(order, word)
    spans, at = [], 0
    for number in range(count):
        at += random.randrange(1, 5000) if gaps and random.random() < 0.7 else 0
        size = random.randrange(1, 5000)
        spans.append((at, at + size - 1, 0x1000 + 8 * number))
        at += size
    tree = make_maple(memory, spans, fanout, leaf)
    assert collect(maple_entries(memory, tree)) == ([Span(*span) for span in spans], None)


def test_maple_tree_without_nodes():
    memory = Memory()
    tree = make_maple(memory, [(0, 1, 0x1000)], 4, 4)
    memory.put(tree + 8, 0x2000)
    assert collect(maple_entries(memory, tree)) == ([Span(0, 0, 0x2000)], None)
    memory.put(tree + 8, 0)
    assert collect(maple_entries(memory, tree)) == ([], None)


def test_maple_tree_leaves_out_marks_of_the_kernels_own():
    memory = Memory()
    tree = make_maple(memory, [(0, 9, 0x1000), (10, 19, 257 << 2 | 2), (20, 29, 0x2000)], 9, 16)
    assert collect(maple_entries(memory, tree))[0] == [Span(0, 9, 0x1000), Span(20, 29, 0x2000)]


@pytest.mark.parametrize("where", ["self", "kind", "pivot", "nowhere"])
def test_damaged_maple_tree_ends(where):
    memory = Memory()
    spans = [(at * 10, at * 10 + 9, 0x1000 + at * 8) for at in range(100)]
    tree = make_maple(memory, spans, 10, 16)
    root = int.from_bytes(memory.read(tree + 8, 8), "little")
    node = root & ~255
    slot = node + memory.keys["OFFSET(maple_arange_64.slot)"] + 8
    pivot = node + memory.keys["OFFSET(maple_arange_64.pivot)"] + 8
    at, value = {
        "self": (slot, root | 4),
        "kind": (slot, node | 9 << 3 | 4),
        "pivot": (pivot, 5),
        "nowhere": (slot, 0x50000C),
    }[where]
    memory.put(at, value)
    found, why = collect(maple_entries(memory, tree))
    assert len(found) in (0, 16)
    assert why is not None


def test_maple_tree_deeper_than_any():
    memory = Memory()
    tree = make_maple(memory, [(0, 1, 0x1000)], 4, 4)
    node = memory.take(256, 256)
    memory.put(node + memory.keys["OFFSET(maple_arange_64.slot)"], node | 3 << 3 | 4)
    memory.put(tree + 8, node | 3 << 3 | 2)
    found, why = collect(maple_entries(memory, tree))
    assert found == [] and why is not None


def test_text_ends_at_its_limit_and_before_what_is_not_there():
    memory = Memory()
    at = memory.text(b"a" * 100)
    assert string(memory, at) == b"a" * 100
    assert string(memory, at, 70) == b"a" * 70
    with pytest.raises(FaultError):
        string(memory, memory.next + 64)
