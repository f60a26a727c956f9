"""Walks over built tables: all page sizes, sharing, cycles, tables that are not there."""

from __future__ import annotations

import pytest

from kdump_elftool.arch import x86_64
from kdump_elftool.arch.walker import Walk, Window, translate, walk
from kdump_elftool.errors import NotMappedError, PageAbsentError
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import ESPFIX_END, ESPFIX_START, Ram, make_kernel
from tests.builders.pagetables import KERNEL, PSE, SIZE_1G, SIZE_2M, SIZE_4K, PageTables, walk_plain

KERNEL_HALF = 1 << 63


def tables(levels: int = 4, sme_mask: int = 0) -> tuple[Ram, PageTables]:
    ram = Ram([(0, 0x100000)])
    return ram, PageTables(ram, iter(range(0x1000, 0x100000, 0x1000)).__next__, levels, sme_mask)


def kernel_walk(ram: Ram, made: PageTables, skip: tuple[tuple[int, int], ...] = ()) -> Walk:
    form = x86_64.paging_form(made.levels, made.sme_mask)
    raw = tuple((form.raw(begin), form.raw(end)) for begin, end in skip)
    return walk(ram_memory(ram), form, made.root, Window(form.kernel.start, form.kernel.end, raw))


def pages(found: Walk) -> dict[int, int]:
    out: dict[int, int] = {}
    for vaddr, paddr, size in columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size):
        for done in range(0, size, SIZE_4K):
            assert vaddr + done not in out
            out[vaddr + done] = paddr + done
    return out


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("sme_mask", [0, 1 << 47, 1 << 51])
def test_all_sizes(levels, sme_mask):
    ram, made = tables(levels, sme_mask)
    base = 0xFFFF888000000000
    made.map(base, 0x40000000, SIZE_1G)
    made.map(base + 2 * SIZE_1G, 0x200000, SIZE_2M)
    made.map(base + 3 * SIZE_1G, 0x5000)
    made.map(0x400000, 0x7000)  # user half
    found = kernel_walk(ram, made)
    assert columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size) == [
        (base, 0x40000000, SIZE_1G),
        (base + 2 * SIZE_1G, 0x200000, SIZE_2M),
        (base + 3 * SIZE_1G, 0x5000, SIZE_4K),
    ]
    assert found.lost == ()
    assert found.complete


def test_neighbours_are_joined_across_page_sizes():
    ram, made = tables()
    base = 0xFFFF888000000000
    made.map_range(base, 0, SIZE_2M)
    made.map_range(base + SIZE_2M, SIZE_2M, 8 * SIZE_2M, SIZE_2M)
    made.map(base + 9 * SIZE_2M, 0, SIZE_4K)
    found = kernel_walk(ram, made).mappings
    assert columns(found.vaddr, found.paddr, found.size) == [
        (base, 0, 9 * SIZE_2M),
        (base + 9 * SIZE_2M, 0, 4096),
    ]


def test_the_last_page_of_the_address_space():
    ram, made = tables()
    made.map(2**64 - 4096, 0x3000)
    found = kernel_walk(ram, made).mappings
    assert columns(found.vaddr, found.paddr, found.size) == [(2**64 - 4096, 0x3000, 4096)]


def test_physical_address_of_51_bits():
    ram, made = tables()
    made.map(0xFFFFC90000000000, (1 << 52) - 4096)
    assert pages(kernel_walk(ram, made)) == {0xFFFFC90000000000: (1 << 52) - 4096}


def test_shared_table_is_walked_once():
    ram, made = tables()
    base = 0xFFFFEC0000000000
    made.map_range(base, 0x10000, 16 * SIZE_4K)
    for index in range(1, 512):
        made.share(base + index * SIZE_2M, base, 1)
    found = kernel_walk(ram, made)
    assert pages(found) == {base + done: 0x10000 + done for done in range(0, 0x10000, SIZE_4K)}
    assert found.aliases == 511


def test_the_lowest_address_keeps_a_shared_table():
    """Whatever order the tables have in memory: the walk's result does not depend on it."""
    ram, made = tables()
    low, high = 0xFFFF888000000000, 0xFFFF888000000000 + 4 * SIZE_1G
    made.map(high, 0x10000)  # its tables are allocated first, at lower physical addresses
    made.slot(low, 1)
    made.share(low, high, 1)
    assert made.table_of(low, 1) > made.table_of(high, 1)
    assert pages(kernel_walk(ram, made)) == {low: 0x10000}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_cycle_ends(level):
    ram, made = tables()
    base = 0xFFFF888000000000
    made.map(base, 0x5000)
    made.put(made.slot(base + SIZE_1G if level < 3 else 0xFFFFC90000000000, level), made.root | KERNEL)
    made.put(made.root + 8 * 511, made.root | KERNEL)  # and the root in itself
    found = kernel_walk(ram, made)
    assert pages(found)[base] == 0x5000
    assert found.tables < 3000
    plain = {
        vaddr + done: paddr + done
        for vaddr, paddr, size in (
            (leaf.vaddr, leaf.paddr, leaf.size) for leaf in walk_plain(ram.read_or_none, made.root)
        )
        for done in range(0, size, SIZE_4K)
        if vaddr >= KERNEL_HALF
    }
    assert pages(found).items() <= plain.items()


@pytest.mark.parametrize("level,span", [(0, SIZE_2M), (1, SIZE_1G), (2, 1 << 39)])
def test_table_outside_of_memory_loses_its_range_only(level, span):
    ram, made = tables()
    base = 0xFFFF888000000000
    made.map(base, 0x5000)
    victim = base + (1 << 39) + span
    made.put(made.slot(victim, level + 1), (1 << 40) | KERNEL)
    made.map(victim + span, 0x6000)
    found = kernel_walk(ram, made)
    assert pages(found) == {base: 0x5000, victim + span: 0x6000}
    (lost,) = found.lost
    assert (lost.level, lost.span) == (("pte", "pmd", "pud")[level], span)
    assert columns(lost.paddr, lost.vaddr) == [(1 << 40, victim)]


def test_root_outside_of_memory():
    ram, _made = tables()
    form = x86_64.paging_form(4)
    found = walk(ram_memory(ram), form, 1 << 45, Window(form.kernel.start, form.kernel.end))
    assert len(found.mappings) == 0
    assert [lost.level for lost in found.lost] == ["pgd"]


def test_skipped_area_costs_nothing():
    kernel = make_kernel(espfix=True)
    found = kernel_walk(kernel.ram, kernel.tables, skip=((ESPFIX_START, ESPFIX_END),))
    assert pages(found) == kernel.kernel_pages()
    assert not any(ESPFIX_START <= vaddr < ESPFIX_END for vaddr in found.mappings.vaddr.tolist())


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("sme_mask", [0, 1 << 51])
@pytest.mark.parametrize("direct_size", [SIZE_4K, SIZE_2M, SIZE_1G])
def test_synthetic_kernel(levels, sme_mask, direct_size):
    kernel = make_kernel(levels=levels, sme_mask=sme_mask, direct_size=direct_size)
    assert pages(kernel_walk(kernel.ram, kernel.tables)) == kernel.kernel_pages()


@pytest.mark.parametrize("levels", [4, 5])
def test_translate_says_how_it_got_there(levels):
    ram, made = tables(levels)
    base = 0xFFFF888000000000
    made.map(base + SIZE_2M, 0x200000, SIZE_2M)
    form = x86_64.paging_form(levels)
    found = translate(ram_memory(ram), form, made.root, base + SIZE_2M + 0x12345)
    assert (found.paddr, found.page_size) == (0x212345, SIZE_2M)
    assert [step.level for step in found.steps] == ["pgd", "p4d", "pud", "pmd"][
        0 if levels == 5 else 1 :
    ] or levels == 4
    assert found.steps[0].table == made.root
    assert found.steps[-1].entry == 0x200000 | KERNEL | PSE | 1 << 63


def test_translate_failures():
    ram, made = tables()
    form = x86_64.paging_form(4)
    base = 0xFFFF888000000000
    made.map(base, 0x5000)
    made.put(made.slot(base + SIZE_2M, 1), (1 << 40) | KERNEL)
    with pytest.raises(NotMappedError) as unmapped:
        translate(ram_memory(ram), form, made.root, base + 0x1000)
    assert (unmapped.value.level, unmapped.value.entry) == ("pte", 0)
    with pytest.raises(PageAbsentError) as absent:
        translate(ram_memory(ram), form, made.root, base + SIZE_2M)
    assert absent.value.address == 1 << 40
    with pytest.raises(NotMappedError, match="canonical"):
        translate(ram_memory(ram), form, made.root, 0x8000_0000_0000)
