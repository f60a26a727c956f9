"""The page walk that runs in gdb finds what is in the tables, of every form that it knows."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.arch import arm64, i386, x86_64
from kdump_elftool.errors import FaultError
from kdump_elftool.plain.pagewalk import Form, form_of, walk
from kdump_elftool.plain.walking import WalkError
from tests.builders.arm64tables import GEOMETRIES
from tests.builders.arm64tables import walk_plain as walk_arm64
from tests.builders.arm_tables import walk_long, walk_short
from tests.builders.kernel import Ram
from tests.builders.pagetables import Leaf, walk_plain
from tests.builders.pagetables32 import walk_plain32
from tests.property import test_walk, test_walk_arm, test_walk_arm64, test_walk_i386

EACH = {1 << 16: 1 << 12, 1 << 24: 1 << 20}
"""Large pages of Arm's short descriptors stand in their table sixteen times, as that many leaves."""


class Physical:
    """Memory as the walk wants it."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram

    def read_physical(self, paddr: int, size: int, /) -> bytes:
        data = self.ram.read_or_none(paddr, size)
        if data is None:
            raise FaultError("paddr", paddr, "not there")
        return data


def check(ram: Ram, form: Form | None, root: int, leaves: Iterable[Leaf], chance: Random, top: int) -> None:
    """Every leaf at three places, and addresses of which some are in no leaf."""
    assert form is not None
    memory, known = Physical(ram), list(leaves)
    for leaf in known:
        for inside in (0, leaf.size // 2 + 4, leaf.size - 1):
            found = walk(memory, form, root, leaf.vaddr + inside)
            assert found.paddr == leaf.paddr + inside
            assert leaf.size == (EACH.get(found.size, found.size) if form.is_short else found.size)
    for _ in range(10):
        vaddr = chance.randrange(1 << top)
        if not any(leaf.vaddr <= vaddr < leaf.vaddr + leaf.size for leaf in known):
            with pytest.raises((WalkError, FaultError)):
                walk(memory, form, root, vaddr)


@given(
    st.sampled_from([4, 5]),
    st.sampled_from([0, 1 << 47]),
    st.lists(test_walk.MAPPING, max_size=20),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_x86_64(levels, sme_mask, wanted, seed):
    ram, tables = test_walk.build(levels, sme_mask, wanted)
    name = x86_64.paging_form(levels).name
    leaves = walk_plain(ram.read_or_none, tables.root, levels, sme_mask)
    check(ram, form_of(name, "<", sme_mask), tables.root, leaves, Random(seed), 11 + 9 * levels)


@given(st.booleans(), st.lists(test_walk_i386.MAPPING, max_size=20), st.integers(0, 99))
@settings(max_examples=60)
def test_i386(pae, wanted, seed):
    ram, tables = test_walk_i386.build(pae, wanted)
    name = i386.paging_form(pae=pae, page_offset=0xC0000000).name
    leaves = walk_plain32(ram.read_or_none, tables.root, pae=pae)
    check(ram, form_of(name, "<"), tables.root, leaves, Random(seed), 32)


@given(st.sampled_from(GEOMETRIES), st.lists(test_walk_arm64.MAPPING, max_size=12), st.integers(0, 99))
@settings(max_examples=60)
def test_arm64(geometry, wanted, seed):
    ram, tables = test_walk_arm64.build(*geometry, wanted)
    name = arm64.paging_form(*geometry).name
    leaves = walk_arm64(ram.read_or_none, tables)
    check(ram, form_of(name, "<"), tables.root, leaves, Random(seed), geometry[1])


@given(st.booleans(), st.sampled_from("<>"), st.lists(test_walk_arm.MAPPING, max_size=20), st.integers(0, 99))
@settings(max_examples=60)
def test_arm(long, order, wanted, seed):
    ram, tables = test_walk_arm.build(long, order, wanted)
    name = test_walk_arm.form_of(long, order).name
    leaves = (walk_long if long else walk_short)(ram.read_or_none, tables.root, order)
    check(ram, form_of(name, order), tables.root, leaves, Random(seed), 32)


@given(
    st.sampled_from(GEOMETRIES),
    st.lists(test_walk_arm64.MAPPING, min_size=3, max_size=10),
    st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_garbage_ends_in_a_sentence(geometry, wanted, seed):
    ram, tables = test_walk_arm64.build(*geometry, wanted)
    form, chance = form_of(arm64.paging_form(*geometry).name, "<"), Random(seed)
    assert form is not None
    for _ in range(20):
        tables.put(chance.choice(tables.table_pages) + 8 * chance.randrange(256), chance.getrandbits(64))
    for _ in range(20):
        try:
            walk(Physical(ram), form, tables.root, chance.getrandbits(geometry[1]))
        except (WalkError, FaultError) as error:
            assert error.message


def test_addresses_that_no_table_has():
    form = form_of("x86_64 4-level", "<")
    assert form is not None
    with pytest.raises(WalkError, match="upper bits"):
        walk(Physical(Ram([(0, 4096)])), form, 0, 1 << 60)


@pytest.mark.parametrize(
    "name", ["", "arm big", "mips 4K pages, page number at bit 12", "arm64 4 KB pages, 99-bit"]
)
def test_forms_that_cannot_be_walked(name):
    assert form_of(name, "<") is None
