"""Where struct page is: flat, discontiguous and sparse memory, and tables that tell lies."""

from __future__ import annotations

import tracemalloc

import pytest

from kdump_elftool.errors import IdentityError
from kdump_elftool.kernel.memmap import Memmap, MemmapPart, SparseGeometry, find_memmap
from kdump_elftool.kernel.pages import Category, account, page_fields
from kdump_elftool.kernel.words import Words
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

GEOMETRY = SparseGeometry(27, 46)
SECTION = 1 << 15  # frames
PAGES = {"PAGESIZE": 4096, "SIZE_page": 64}
NODES = {
    "OFFSET_pglist_data__node_start_pfn": 0,
    "OFFSET_pglist_data__node_spanned_pages": 8,
    "OFFSET_pglist_data__node_mem_map": 16,
}
FIELDS = {
    "OFFSET_page__flags": 0,
    "OFFSET_page__mapping": 24,
    "OFFSET_page__private": 40,
    "OFFSET_page___mapcount": 48,
    "NUMBER_PG_lru": 5,
    "NUMBER_PAGE_BUDDY_MAPCOUNT_VALUE": -129,
    "LENGTH_zone__free_area": 11,
}
ROOTS, TABLE, VARIABLE, MAP = 0x1000, 0x4000, 0x3000, 0x100000
"""Offsets of the roots, of sections, of a pointer to the roots, and of the array itself."""


def coded(number: int, flags: int, vaddr: int = BASE + MAP) -> int:
    """section_mem_map: the array's address less the section's first frame, and flag bits."""
    return (vaddr - number * SECTION * 64) & (2**64 - 1) | flags


def find(space: KernelSpace, **values: object) -> Memmap:
    return find_memmap(Words(space.virtual()), info_of(**PAGES, **values), GEOMETRY)


# ---- one array, or one per node -----------------------------------------------------------------


def test_flat():
    space = KernelSpace()
    node = space.put(0x800, "QQQ", 1, 500, BASE + MAP)
    found = find(space, **NODES, SYMBOL_mem_map=BASE + 0x700, SYMBOL_contig_page_data=node)
    assert found == Memmap("flat", 4096, 64, (MemmapPart(1, 500, BASE + MAP),))


def test_several_nodes_with_holes_and_gaps_in_their_list():
    space = KernelSpace((1 << 30, 5 << 30))
    first = space.put(0x800, "QQQ", 0, 600, BASE + MAP)
    second = space.put(0x900, "QQQ", 1 << 18, 700, BASE + MAP + 0x10000)
    empty = space.put(0xA00, "QQQ", 0x50000, 0, BASE + MAP)
    unmapped = space.put(0xB00, "QQQ", 0x60000, 10, 0)
    nodes = space.put(ROOTS, "6Q", second, 0, empty, first, 0x1234, unmapped)
    found = find(space, **NODES, SYMBOL_node_data=nodes, LENGTH_node_data=6)
    assert found.model == "discontiguous"
    assert found.parts == (
        MemmapPart(0, 600, BASE + MAP),
        MemmapPart(1 << 18, 700, BASE + MAP + 0x10000),
    )


def test_nodes_that_interleave_give_each_frame_once():
    space = KernelSpace()
    first = space.put(0x800, "QQQ", 0, 600, BASE + MAP)
    second = space.put(0x900, "QQQ", 500, 300, BASE + MAP + 0x10000)
    nodes = space.put(ROOTS, "QQ", first, second)
    found = find(space, **NODES, SYMBOL_node_data=nodes, LENGTH_node_data=2)
    assert found.parts == (
        MemmapPart(0, 600, BASE + MAP),
        MemmapPart(600, 200, BASE + MAP + 0x10000 + 100 * 64),
    )


# ---- sections -------------------------------------------------------------------------------------


def test_sparse_static():
    """A flat array of sections, as without SPARSEMEM_EXTREME."""
    space = KernelSpace((0, 1 << 29))
    for number in (0, 2):
        space.put(TABLE + number * 16, "Q", coded(number, 3, BASE + MAP + number * 0x100))
    found = find(space, SYMBOL_mem_section=BASE + TABLE, SIZE_mem_section=16, LENGTH_mem_section=64)
    assert found.model == "sparse"
    assert found.parts == (
        MemmapPart(0, SECTION, BASE + MAP),
        MemmapPart(2 * SECTION, SECTION, BASE + MAP + 0x200),
    )


def test_static_array_ends_where_it_ends():
    space = KernelSpace((0, 1 << 29))
    for number in range(4):
        space.put(TABLE + number * 16, "Q", coded(number, 3))
    found = find(space, SYMBOL_mem_section=BASE + TABLE, SIZE_mem_section=16, LENGTH_mem_section=3)
    assert len(found.parts) == 3


@pytest.mark.parametrize("indirect", [False, True], ids=["address", "variable"])
@pytest.mark.parametrize(
    "flags", [0b111, 0b1111, 0b11111, 0b101011], ids=lambda flags: f"{flags.bit_length()} bits"
)
@pytest.mark.parametrize("size", [16, 24, 32])
def test_sparse_extreme(size, flags, indirect):
    """Roots of sections: 4096 is no multiple of 24, a root then ends with a rest."""
    space = KernelSpace((0, 1 << 36))
    in_second = 4096 // size + 1
    space.put(ROOTS, "QQ", BASE + TABLE, BASE + TABLE + 0x1000)
    space.put(TABLE + 3 * size + 8, "Q", coded(3, flags))
    space.put(TABLE + 0x1000 + size + 8, "Q", coded(in_second, flags, BASE + MAP + 0x40))
    variable = space.put(VARIABLE, "Q", BASE + ROOTS)
    found = find(
        space,
        SYMBOL_mem_section=variable if indirect else BASE + ROOTS,
        SIZE_mem_section=size,
        LENGTH_mem_section=2048,
        OFFSET_mem_section__section_mem_map=8,
    )
    assert found.parts == (
        MemmapPart(3 * SECTION, SECTION, BASE + MAP),
        MemmapPart(in_second * SECTION, SECTION, BASE + MAP + 0x40),
    )


def test_section_sizes_of_vmcoreinfo_win():
    space = KernelSpace((0, 1 << 32))
    space.put(TABLE, "Q", coded(0, 3))
    found = find(
        space,
        SYMBOL_mem_section=BASE + TABLE,
        SIZE_mem_section=16,
        LENGTH_mem_section=8,
        NUMBER_SECTION_SIZE_BITS=30,
        NUMBER_MAX_PHYSMEM_BITS=44,
    )
    assert found.parts == (MemmapPart(0, 1 << 18, BASE + MAP),)


@pytest.mark.parametrize("flags", [0, 1, 2], ids=["none", "present", "map"])
def test_sections_without_an_array(flags):
    space = KernelSpace()
    space.put(TABLE, "Q", coded(0, flags))
    with pytest.raises(IdentityError, match="struct page was not found"):
        find(space, SYMBOL_mem_section=BASE + TABLE, SIZE_mem_section=16, LENGTH_mem_section=8)


# ---- lies -----------------------------------------------------------------------------------------


def test_sections_that_point_anywhere_are_left_out():
    space = KernelSpace((0, 1 << 30))
    space.put(TABLE, "Q", coded(0, 3))
    for number, junk in enumerate((0x3, 2**64 - 1, 0xDEADBEEF00000003, 0x7FFFFFFFFFFF), start=1):
        space.put(TABLE + number * 16, "Q", junk)
    found = find(space, SYMBOL_mem_section=BASE + TABLE, SIZE_mem_section=16, LENGTH_mem_section=64)
    assert found.parts == (MemmapPart(0, SECTION, BASE + MAP),)


@pytest.mark.parametrize("wide", [46, 52, 63])
def test_absurd_lengths_and_roots_stay_bounded(wide):
    """Every word of memory is a root that is full of sections that look right."""
    space = KernelSpace()
    table = coded(0, 3).to_bytes(8, "little") * 512
    space.data[TABLE : TABLE + 4096] = table
    roots = (BASE + TABLE).to_bytes(8, "little")
    space.data[0x400000:] = roots * ((len(space.data) - 0x400000) // 8)
    tracemalloc.start()
    found = find(
        space,
        SYMBOL_mem_section=BASE + 0x400000,
        SIZE_mem_section=8,
        LENGTH_mem_section=1 << 60,
        NUMBER_MAX_PHYSMEM_BITS=wide,
        NUMBER_SECTION_SIZE_BITS=27,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert 1 <= len(found.parts) <= 8  # as many sections as one gigabyte has


@pytest.mark.parametrize("spanned", [1 << 20, 1 << 60, 2**64 - 1])
def test_node_of_absurd_size_is_cut_to_the_dump(spanned):
    space = KernelSpace((1 << 40, (1 << 40) + 4096))
    node = space.put(0x800, "QQQ", 0, spanned, BASE + MAP)
    found = find(space, **NODES, SYMBOL_mem_map=BASE, SYMBOL_contig_page_data=node)
    assert sum(part.nr_pages for part in found.parts) <= 2 << 18
    assert found.parts[0] == MemmapPart(0, 1 << 18, BASE + MAP)


@pytest.mark.parametrize(
    "wrong",
    [
        {"SIZE_mem_section": 1 << 60},
        {"SIZE_mem_section": 0},
        {"SIZE_mem_section": -1},
        {"OFFSET_mem_section__section_mem_map": 1 << 50},
        {"OFFSET_mem_section__section_mem_map": -8},
        {"NUMBER_SECTION_SIZE_BITS": 70},
        {"NUMBER_SECTION_SIZE_BITS": -3},
        {"NUMBER_MAX_PHYSMEM_BITS": 10**9},
        {"PAGESIZE": 5000},
        {"PAGESIZE": 10**40},
        {"SIZE_page": 0},
    ],
    ids=str,
)
def test_impossible_numbers_are_named(wrong):
    space = KernelSpace()
    space.put(TABLE, "Q", coded(0, 3))
    good = {**PAGES, "SYMBOL_mem_section": BASE + TABLE, "SIZE_mem_section": 16, "LENGTH_mem_section": 8}
    assert find_memmap(Words(space.virtual()), info_of(**good), GEOMETRY).parts
    with pytest.raises(IdentityError):
        find_memmap(Words(space.virtual()), info_of(**{**good, **wrong}), GEOMETRY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"SIZE_page": 1 << 60},
        {"OFFSET_page__flags": 60},
        {"OFFSET_page__mapping": -8},
        {"OFFSET_page___mapcount": 1 << 40},
        {"NUMBER_PG_lru": 64},
        {"NUMBER_PG_slab": 1 << 60},
        {"NUMBER_PG_head_mask": -1},
    ],
    ids=str,
)
def test_impossible_struct_page_is_refused(wrong):
    assert page_fields(info_of(**{**PAGES, **FIELDS}), 8)
    with pytest.raises(IdentityError):
        page_fields(info_of(**{**PAGES, **FIELDS, **wrong}), 8)


def test_memory_that_no_array_covers_is_kept_and_counted():
    """The dump holds 16,384 frames, the array covers 600, of which the last 88 are not in the dump."""
    space = KernelSpace((0, 64 << 20))
    array = 8 * 1024 * 1024 - 512 * 64
    for frame in range(512):
        space.put(array + frame * 64 + 48, "i", -129 if frame < 256 else -1)
    node = space.put(0x800, "QQQ", 0, 600, BASE + array)
    info = info_of(**PAGES, **NODES, **FIELDS, SYMBOL_mem_map=BASE, SYMBOL_contig_page_data=node)
    virtual = space.virtual()
    found = account(
        virtual, find_memmap(Words(virtual), info, GEOMETRY), page_fields(info, 8), "kernel", space.present
    )
    assert found.counts[Category.FREE] == 256
    assert found.unknown == 88
    assert found.without_struct == 16384 - 600
    assert (found.dropped.start.tolist(), found.dropped.end.tolist()) == ([0], [256 * 4096])
