"""i386 tables: the vectorised walk finds what a plain walk finds, on random and on damaged tables."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.arch.i386 import paging_form
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.errors import FaultError
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import Ram
from tests.builders.pagetables import ACCESSED, DIRTY, GLOBAL, NX, RW, P
from tests.builders.pagetables32 import SIZE_4K, Tables32, walk_plain32

POOL = 0x80000
PLACES = st.sampled_from([0, 0x400000, 0xBFE00000, 0xC0000000, 0xDD000000, 0xFFC00000])
MAPPING = st.tuples(PLACES, st.integers(0, 12), st.booleans(), st.integers(0, 1 << 20), st.booleans())


def build(pae: bool, wanted) -> tuple[Ram, Tables32]:
    """Large and small pages at a few addresses, below and above 4 GB of physical memory."""
    ram = Ram([(0, POOL)])
    made = Tables32(ram, iter(range(0x1000, POOL, 0x1000)).__next__, pae)
    for base, number, is_large, frame, more in wanted:
        size = made.large if is_large else SIZE_4K
        top = 1 << 40 if pae or is_large else 1 << 32
        paddr = frame * size % top
        flags = P | RW | ACCESSED | more * (GLOBAL | DIRTY) | (NX if pae and more else 0)
        vaddr = min(base + number * size, (1 << 32) - size)
        try:
            at = made.slot(vaddr, size)
        except KeyError:
            continue
        if made.get(at) == 0:
            made.map(vaddr, paddr, size, flags)
    return ram, made


@given(st.booleans(), st.lists(MAPPING, max_size=25))
@settings(max_examples=60)
def test_walk_equals_plain_walk(pae, wanted):
    ram, made = build(pae, wanted)
    form, memory = paging_form(pae=pae, page_offset=0xC0000000), ram_memory(ram)
    found = walk(memory, form, made.root, Window(0, 1 << 32))
    got = columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)
    expected = list(walk_plain32(ram.read_or_none, made.root, pae=pae))
    assert sum(size for _, _, size in got) == sum(leaf.size for leaf in expected)
    for leaf in expected:
        for probe in (0, leaf.size // 2, leaf.size - 1):
            vaddr, paddr = leaf.vaddr + probe, leaf.paddr + probe
            holders = [row for row in got if row[0] <= vaddr < row[0] + row[2]]
            assert [row[1] + vaddr - row[0] for row in holders] == [paddr]
            assert translate(memory, form, made.root, vaddr).paddr == paddr


@given(st.booleans(), st.lists(MAPPING, min_size=3, max_size=15), st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=60)
def test_garbage_in_tables_never_raises(pae, wanted, seed, damage):
    """Tables with random words: both walks agree as long as no table is reached twice."""
    ram, made = build(pae, wanted)
    random = Random(seed)
    for _ in range(damage):
        page = random.choice(made.table_pages)
        value = random.choice([random.getrandbits(64), random.randrange(0, POOL * 2, 4096) | P | RW])
        made.put(page + made.entry * random.randrange(4096 // made.entry), value % (1 << 8 * made.entry))
    form, memory = paging_form(pae=pae), ram_memory(ram)
    found = walk(memory, form, made.root, Window(0, 1 << 32))
    got = columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)
    for vaddr, paddr, size in got[:200]:
        for probe in (0, size - 1):
            try:
                assert translate(memory, form, made.root, vaddr + probe).paddr == paddr + probe
            except FaultError as fault:
                raise AssertionError(f"{vaddr + probe:#x} is in the walk but does not translate") from fault
    if not found.aliases:
        plain = sum(leaf.size for leaf in walk_plain32(ram.read_or_none, made.root, pae=pae))
        assert sum(size for _, _, size in got) == plain
