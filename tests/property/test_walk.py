"""The vectorised walk finds exactly what a plain walk finds, on random and on damaged tables."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.arch import x86_64
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.errors import FaultError
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import Ram
from tests.builders.pagetables import (
    KERNEL,
    PAT_4K,
    PAT_LARGE,
    PKEY_BITS,
    SIZE_1G,
    SIZE_2M,
    SIZE_4K,
    SOFT_BITS,
    PageTables,
    walk_plain,
)

POOL = 0x80000
SIZES = st.sampled_from([SIZE_4K, SIZE_2M, SIZE_1G])
EXTRA = st.sampled_from([0, 1 << 63, SOFT_BITS, PKEY_BITS, 1 << 63 | SOFT_BITS])
MAPPING = st.tuples(st.integers(0, 40), SIZES, st.integers(0, 60), EXTRA, st.booleans())


def build(levels: int, sme_mask: int, wanted) -> tuple[Ram, PageTables]:
    """Mappings at a few close and a few far addresses, so that tables are shared and runs touch."""
    ram = Ram([(0, POOL)])
    tables = PageTables(ram, iter(range(0x1000, POOL, 0x1000)).__next__, levels, sme_mask)
    for place, size, frame, extra, pat in wanted:
        base = (1 << (12 + 9 * levels - 1)) * (place % 3 != 0) + (place // 3) * size + (place % 2 << 39)
        flags = KERNEL | extra | (PAT_4K if size == SIZE_4K else PAT_LARGE) * pat
        level = {SIZE_4K: 0, SIZE_2M: 1, SIZE_1G: 2}[size]
        try:
            at = tables.slot(base, level)
        except KeyError:  # a larger page is mapped there: its frame is no table
            continue
        if tables.get(at) == 0:
            tables.map(base, frame * size, size, flags)
    return ram, tables


def check(ram: Ram, tables: PageTables, window) -> None:
    form = x86_64.paging_form(tables.levels, tables.sme_mask)
    memory = ram_memory(ram)
    region = form.kernel if window else form.user
    low, high = region.start, region.end
    found = walk(memory, form, tables.root, Window(low, high))
    expected = {
        (leaf.vaddr, leaf.paddr, leaf.size)
        for leaf in walk_plain(ram.read_or_none, tables.root, tables.levels, tables.sme_mask)
        if (leaf.vaddr >> 63 == 1) == bool(window)
    }
    got = columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)
    assert all(second[0] >= first[0] + first[2] for first, second in itertools.pairwise(got))
    assert sum(size for _, _, size in got) == sum(size for _, _, size in expected)
    for vaddr, paddr, size in expected:
        for probe in (0, size // 2, size - 1):
            holders = [row for row in got if row[0] <= vaddr + probe < row[0] + row[2]]
            assert [row[1] + (vaddr + probe - row[0]) for row in holders] == [paddr + probe]
            assert translate(memory, form, tables.root, vaddr + probe).paddr == paddr + probe
    joined = [(a, b) for a, b in itertools.pairwise(got) if a[0] + a[2] == b[0] and a[1] + a[2] == b[1]]
    assert not joined, "neighbours that continue each other are one mapping"


@given(st.sampled_from([4, 5]), st.sampled_from([0, 1 << 51]), st.lists(MAPPING, max_size=25), st.booleans())
@settings(max_examples=60)
def test_walk_equals_plain_walk(levels, sme_mask, wanted, window):
    check(*build(levels, sme_mask, wanted), window)


@given(st.lists(MAPPING, min_size=3, max_size=15), st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=60)
def test_garbage_in_tables_never_raises_and_stays_a_subset(wanted, seed, damage):
    """Random words in random tables: every mapping found is one that the plain walk finds too."""
    ram, tables = build(4, 0, wanted)
    random = Random(seed)
    for _ in range(damage):
        page = random.choice(tables.table_pages)
        value = random.choice([random.getrandbits(64), random.randrange(0, POOL * 2, 4096) | KERNEL])
        tables.put(page + 8 * random.randrange(512), value)
    form = x86_64.paging_form(4)
    memory = ram_memory(ram)
    found = walk(memory, form, tables.root, Window(form.kernel.start, form.kernel.end))
    for row in columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)[:200]:
        vaddr, paddr, size = row
        assert size > 0
        assert vaddr >> 63
        for probe in (0, size - 1):
            try:
                assert translate(memory, form, tables.root, vaddr + probe).paddr == paddr + probe
            except FaultError as fault:
                raise AssertionError(f"{vaddr + probe:#x} is in the walk but does not translate") from fault
    absent = {paddr for lost in found.lost for paddr in lost.paddr.tolist()}
    assert all(ram.read_or_none(paddr, 4096) is None for paddr in absent)
