"""The walk of ARM's tables finds exactly what a plain one finds, in both formats and byte orders."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.arch.arm import ARCH
from kdump_elftool.arch.base import PagingForm
from kdump_elftool.arch.walker import Walk, Window, translate, walk
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.vmcoreinfo import parse
from tests.builders.arm_tables import (
    LONG_SIZES,
    SHORT_SIZES,
    SIZE_4K,
    SIZE_16M,
    LongTables,
    ShortTables,
    walk_long,
    walk_short,
)
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import Ram

POOL = 0x200000
MAPPING = st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 60), st.booleans())
BASES = (0xC0000000, 0xBF000000, 0xFFF00000, 0x00000000)


def allocator():
    """Memory from 0x4000 on, each piece aligned to its size."""
    place = 0x4000

    def allocate(size: int) -> int:
        nonlocal place
        at = -(-place // size) * size
        place = at + size
        assert place <= POOL
        return at

    return allocate


def form_of(long: bool, order: str) -> PagingForm:
    info = parse(b"CONFIG_ARM_LPAE=y\n" if long else b"OSRELEASE=6\n")
    return ARCH.forms(info, order)[0]


def build(long: bool, order: str, wanted) -> tuple[Ram, ShortTables | LongTables]:
    ram = Ram([(0, POOL)])
    tables = (LongTables if long else ShortTables)(ram, allocator(), order)
    sizes = LONG_SIZES if long else SHORT_SIZES
    for place, kind, frame, never in wanted:
        size = sizes[kind % len(sizes)]
        vaddr = (BASES[place % 4] + place // 4 * size) % 2**32 // size * size
        high = frame % 3 << 36 if size == SIZE_16M or long else 0
        if tables.is_free(vaddr, size):
            tables.map(vaddr, high + frame * size % 2**32 // size * size, size, never)
    return ram, tables


def walked(ram: Ram, long: bool, order: str, root: int) -> tuple[Walk, dict[int, int]]:
    """The walk, and by page what it maps."""
    found = walk(ram_memory(ram), form_of(long, order), root, Window(0, 1 << 32))
    pages: dict[int, int] = {}
    for vaddr, paddr, size in columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size):
        for done in range(0, size, SIZE_4K):
            assert vaddr + done not in pages
            pages[vaddr + done] = paddr + done
    return found, pages


def plain(ram: Ram, long: bool, order: str, root: int) -> dict[int, int]:
    leaves = (walk_long if long else walk_short)(ram.read_or_none, root, order)
    return {leaf.vaddr + done: leaf.paddr + done for leaf in leaves for done in range(0, leaf.size, SIZE_4K)}


@given(st.booleans(), st.sampled_from("<>"), st.lists(MAPPING, max_size=12))
@settings(max_examples=40, deadline=None)
def test_walk_equals_plain_walk(long, order, wanted):
    ram, tables = build(long, order, [(p, k if not long or k % 3 != 2 else 1, f, n) for p, k, f, n in wanted])
    found, pages = walked(ram, long, order, tables.root)
    expected = plain(ram, long, order, tables.root)
    assert pages == expected
    assert found.lost == ()
    memory, form = ram_memory(ram), form_of(long, order)
    for vaddr in list(expected)[:: max(len(expected) // 50, 1)]:
        assert translate(memory, form, tables.root, vaddr + 0x123).paddr == expected[vaddr] + 0x123


@given(st.booleans(), st.lists(MAPPING, min_size=2, max_size=8), st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_garbage_in_tables_never_raises_and_is_what_an_entry_says(long, wanted, seed, damage):
    ram, tables = build(long, "<", [(p, 0, f, n) for p, _k, f, n in wanted])
    random, width = Random(seed), 8 if long else 4
    for _ in range(damage):
        value = random.choice([random.getrandbits(8 * width), random.randrange(0, 2 * POOL, 1024) | 1])
        at = random.choice([tables.root, random.randrange(0x4000, POOL // 4, width)])
        tables.put(at + width * random.randrange(4096 // width), value)
    memory, form = ram_memory(ram), form_of(long, "<")
    found = walk(memory, form, tables.root, Window(0, 1 << 32))
    for vaddr, paddr, size in columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)[:200]:
        for probe in (0, size - 1):
            try:
                assert translate(memory, form, tables.root, vaddr + probe).paddr == paddr + probe
            except FaultError as fault:
                raise AssertionError(f"{vaddr + probe:#x} is in the walk but does not translate") from fault
    absent = [(part.level, paddr) for part in found.lost for paddr in part.paddr.tolist()]
    sizes = {level.name: level.table_size for level in form.levels}
    assert all(ram.read_or_none(paddr, sizes[level]) is None for level, paddr in absent)


def test_the_other_byte_order_maps_nothing_that_is_right():
    ram, tables = build(False, ">", [(0, 2, 5, False)])
    assert translate(ram_memory(ram), form_of(False, ">"), tables.root, 0xC0000000).paddr == 5 << 20
    other = replace(form_of(False, ">"), byte_order="<")
    assert not len(walk(ram_memory(ram), other, tables.root, Window(0xC0000000, 0xC0100000)).mappings)
