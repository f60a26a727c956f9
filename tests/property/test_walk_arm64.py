"""arm64: the vectorised walk finds exactly what a plain walk finds, with every page size and width."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.arch import arm64
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.errors import FaultError
from tests.builders.arm64tables import GEOMETRIES, KERNEL, SHARED, Arm64Tables, walk_plain
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import Ram

TABLES = 48
EXTRA = st.sampled_from([0, 0x7F << 55, 1 << 54, 1 << 52, 0xFC, SHARED])
MAPPING = st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 60), st.integers(0, 15), EXTRA)


def build(shift: int, va_bits: int, wanted) -> tuple[Ram, Arm64Tables]:
    """Mappings at a few close and a few far addresses, so that tables are shared and runs touch."""
    pool = TABLES << shift
    ram = Ram([(0, pool)])
    pages = iter(range(1 << shift, pool, 1 << shift))
    tables = Arm64Tables(ram, pages.__next__, shift, va_bits)
    far = 1 << tables.shifts[-1]
    for place, size, frame, high, extra in wanted:
        at = tables.block_shifts[size % len(tables.block_shifts)]
        raw = ((place % 2) * far + ((place // 2) << at)) % (1 << va_bits)
        paddr = frame << at
        if va_bits == 52 or shift == 16:
            paddr |= high << 48
        if va_bits == 52 and shift != 16:
            extra &= ~SHARED
        try:
            if tables.get(tables.slot(raw, at)) == 0:
                tables.map(raw, paddr % (1 << 52) >> at << at, at, KERNEL | extra)
        except (KeyError, StopIteration):
            continue
    return ram, tables


def rows(ram: Ram, tables: Arm64Tables) -> list[tuple[int, ...]]:
    form = arm64.paging_form(tables.shift, tables.va_bits)
    found = walk(ram_memory(ram), form, tables.root, Window(form.kernel.start, form.kernel.end))
    return columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)


@given(st.sampled_from(GEOMETRIES), st.lists(MAPPING, max_size=12))
@settings(max_examples=60)
def test_walk_equals_plain_walk(geometry, wanted):
    ram, tables = build(*geometry, wanted)
    form, memory = arm64.paging_form(*geometry), ram_memory(ram)
    expected = list(walk_plain(ram.read_or_none, tables))
    got = rows(ram, tables)
    assert all(second[0] >= first[0] + first[2] for first, second in itertools.pairwise(got))
    assert sum(size for _, _, size in got) == sum(leaf.size for leaf in expected)
    for leaf in expected:
        for probe in (0, leaf.size // 2, leaf.size - 1):
            vaddr = leaf.vaddr + probe
            holders = [row for row in got if row[0] <= vaddr < row[0] + row[2]]
            assert [row[1] + (vaddr - row[0]) for row in holders] == [leaf.paddr + probe]
            assert translate(memory, form, tables.root, vaddr).paddr == leaf.paddr + probe


@given(st.sampled_from(GEOMETRIES), st.lists(MAPPING, min_size=3, max_size=10), st.integers(0, 2**32))
@settings(max_examples=40)
def test_garbage_in_tables_never_raises(geometry, wanted, seed):
    ram, tables = build(*geometry, wanted)
    random, form, memory = Random(seed), arm64.paging_form(*geometry), ram_memory(ram)
    for _ in range(random.randrange(1, 30)):
        page = random.choice(tables.table_pages)
        near = random.randrange(0, 2 * TABLES) << tables.shift | random.choice([1, 3])
        tables.put(
            page + 8 * random.randrange(1 << tables.shift - 3), random.choice([random.getrandbits(64), near])
        )
    for vaddr, paddr, size in rows(ram, tables)[:100]:
        assert size > 0
        assert vaddr in form.kernel
        for probe in (0, size - 1):
            try:
                assert translate(memory, form, tables.root, vaddr + probe).paddr == paddr + probe
            except FaultError as fault:
                raise AssertionError(f"{vaddr + probe:#x} is in the walk but does not translate") from fault
