"""Page selection by columns against a plain loop, for the struct pages of several kernels."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.errors import IdentityError
from kdump_elftool.kernel import pages
from kdump_elftool.kernel.memmap import Memmap, MemmapPart
from kdump_elftool.kernel.pages import LEVELS, Category, account, classify, page_fields
from kdump_elftool.kernel.vmcoreinfo import parse
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory

SIZE = 64
BASE = 0xFFFFEA0000000000
COMMON = """SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page.mapping)=24
OFFSET(page.private)=40
OFFSET(page._mapcount)=48
OFFSET(page._refcount)=52
LENGTH(zone.free_area)=11
"""
# what the kernels of those series print (their own VMCOREINFO notes)
KERNELS = {
    "5.10": """OFFSET(page.compound_head)=8
OFFSET(page.compound_dtor)=16
OFFSET(page.compound_order)=17
NUMBER(PG_lru)=4
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=19
NUMBER(PG_slab)=9
NUMBER(PG_hwpoison)=22
NUMBER(PG_head_mask)=65536
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(HUGETLB_PAGE_DTOR)=2
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-257
""",
    "6.6": """OFFSET(page.compound_head)=8
NUMBER(PG_lru)=5
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=19
NUMBER(PG_slab)=9
NUMBER(PG_head_mask)=64
NUMBER(PG_hugetlb)=8
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-257
""",
    "7.2": """OFFSET(page.compound_info)=8
NUMBER(PG_lru)=5
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=17
NUMBER(PG_hwpoison)=21
NUMBER(PG_head_mask)=64
NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240
NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)=-150994944
""",
}


@dataclass(frozen=True)
class Page:
    """The words of a struct page that matter."""

    flags: int = 0
    head: int = 0
    mapping: int = 0
    private: int = 0
    mapcount: int = -1
    dtor: int = 0
    order: int = 0

    def pack(self) -> bytes:
        data = bytearray(SIZE)
        struct.pack_into("<QQ", data, 0, self.flags, self.head)
        struct.pack_into("<BB", data, 16, self.dtor, self.order)
        struct.pack_into("<Q", data, 24, self.mapping)
        struct.pack_into("<Q", data, 40, self.private)
        struct.pack_into("<i", data, 48, self.mapcount)
        return bytes(data)


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]


def memory_of(array: bytes) -> VirtualMemory:
    extents = Extents(u64([0]), u64([len(array)]), u64([0]))
    physical = PhysicalMemory(Bytes(array), extents, extents.ranges())
    return VirtualMemory.of(physical, u64([BASE]), u64([0]), u64([len(array)]))


def plain(found: list[Page], text: str, drop: frozenset[Category]) -> list[int]:
    """One page after the other, as the kernel's documentation would have it."""
    info = parse(text.encode())
    number = info.number
    result = [0] * len(found)
    index = 0
    while index < len(found):
        page = found[index]
        following = found[index + 1] if index + 1 < len(found) else Page()
        slab = page.mapcount == number("PAGE_SLAB_MAPCOUNT_VALUE")
        if number("PG_slab") is not None:
            slab = slab or bool(page.flags >> number("PG_slab") & 1)
        anon = bool(page.mapping & 1) and not slab
        order, hugetlb = 0, False
        if page.flags & number("PG_head_mask") and index + 1 < len(found):
            if number("PAGE_HUGETLB_MAPCOUNT_VALUE") is not None:
                order = following.flags & 0xFF
                hugetlb = page.mapcount == number("PAGE_HUGETLB_MAPCOUNT_VALUE")
            elif number("PG_hugetlb") is not None:
                order = following.flags & 0xFF
                hugetlb = bool(following.flags >> number("PG_hugetlb") & 1)
            else:
                order, hugetlb = following.order, following.dtor == number("HUGETLB_PAGE_DTOR")
            if order >= 32 or index % (1 << order):
                order = 0
        swapcache = page.flags >> number("PG_swapcache") & page.flags >> number("PG_swapbacked") & 1
        cache = bool(page.flags >> number("PG_lru") & 1 or swapcache) and not anon
        category, count = Category.KEPT, 1
        if page.head & 1:
            pass
        elif (
            Category.FREE in drop
            and not slab
            and page.mapcount == number("PAGE_BUDDY_MAPCOUNT_VALUE")
            and page.private < 11
        ):
            category, count = Category.FREE, 1 << page.private
        elif Category.FREE in drop and page.mapcount == number("PAGE_UNACCEPTED_MAPCOUNT_VALUE"):
            category, count = Category.FREE, 1 << 10
        elif Category.CACHE in drop and cache:
            category, count = Category.CACHE, 1 << order
        elif Category.USER in drop and (anon or hugetlb):
            category, count = Category.USER, 1 << order
        elif number("PG_hwpoison") is not None and page.flags >> number("PG_hwpoison") & 1:
            category, count = Category.POISON, 1 << order
        elif not slab and page.mapcount == number("PAGE_OFFLINE_MAPCOUNT_VALUE"):
            category, count = Category.OFFLINE, 1 << order
        if category and Category.POISON in drop:
            result[index : index + count] = [category] * len(result[index : index + count])
            index += count
        else:
            index += 1
    poison = number("PG_hwpoison")
    if poison is not None and Category.POISON in drop:
        # each page has its own mark, tails too
        result = [
            Category.POISON if not code and page.flags >> poison & 1 else code
            for code, page in zip(result, found, strict=True)
        ]
    return result


def page_strategy(kernel: str) -> st.SearchStrategy[Page]:
    info = parse((COMMON + KERNELS[kernel]).encode())
    bits = [
        1 << value
        for name in ("PG_lru", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison")
        if (value := info.number(name)) is not None
    ] + [info.number("PG_head_mask"), 1 << 13, 2, 4]
    types = [-1, 0, 3] + [
        value
        for name in ("SLAB", "BUDDY", "HUGETLB", "OFFLINE", "UNACCEPTED")
        if (value := info.number(f"PAGE_{name}_MAPCOUNT_VALUE")) is not None
    ]
    return st.builds(
        Page,
        flags=st.sets(st.sampled_from(bits), max_size=3).map(sum),
        head=st.sampled_from([0, 0, 0, 0xFFFFEA0000000001, 0xDEAD000000000100]),
        mapping=st.sampled_from([0, 0, 0xFFFF888000000001, 0xFFFF888000000000]),
        private=st.sampled_from([0, 1, 2, 3, 5, 11, 1 << 60]),
        mapcount=st.sampled_from(types),
        dtor=st.sampled_from([0, 2, 3]),
        order=st.sampled_from([0, 1, 2, 3, 9, 60, 255]),
    )


@pytest.mark.parametrize("level", sorted(LEVELS))
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@settings(max_examples=30)
@given(data=st.data())
def test_columns_equal_the_loop(kernel: str, level: str, data: st.DataObject) -> None:
    found = data.draw(st.lists(page_strategy(kernel), min_size=1, max_size=40))
    text = COMMON + KERNELS[kernel]
    virtual = memory_of(b"".join(page.pack() for page in found))
    memmap = Memmap("sparse", 4096, SIZE, (MemmapPart(0, len(found), BASE),))
    fields = page_fields(parse(text.encode()), 8)
    chunks = list(classify(virtual, memmap, fields, LEVELS[level]))
    codes = np.concatenate([codes for _, codes, _ in chunks]).tolist()
    assert codes == plain(found, text, LEVELS[level])


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@settings(max_examples=20)
@given(data=st.data(), chunk=st.sampled_from([1, 2, 8, 16]))
def test_chunk_size_does_not_matter(kernel: str, chunk: int, data: st.DataObject) -> None:
    """Blocks reach over the ends of chunks; compound heads lie on even frames, so one at least fits."""
    found = data.draw(st.lists(page_strategy(kernel), min_size=1, max_size=40))
    heads = parse(KERNELS[kernel].encode()).number("PG_head_mask")
    found = [
        page
        if index % max(chunk, 2) != max(chunk, 2) - 1 and chunk > 1
        else Page(page.flags & ~heads, page.head, page.mapping, page.private, page.mapcount)
        for index, page in enumerate(found)
    ]
    virtual = memory_of(b"".join(page.pack() for page in found))
    memmap = Memmap("sparse", 4096, SIZE, (MemmapPart(0, len(found), BASE),))
    fields = page_fields(parse((COMMON + KERNELS[kernel]).encode()), 8)
    whole = [part[1].tolist() for part in classify(virtual, memmap, fields, LEVELS["kernel"])]
    before = pages.CHUNK_PAGES
    pages.CHUNK_PAGES = chunk
    try:
        parts = [part[1].tolist() for part in classify(virtual, memmap, fields, LEVELS["kernel"])]
    finally:
        pages.CHUNK_PAGES = before
    assert [code for part in parts for code in part] == [code for part in whole for code in part]


def test_absent_struct_pages_are_kept_and_counted() -> None:
    text = COMMON + KERNELS["6.6"]
    free = Page(mapcount=-129)
    array = b"".join(free.pack() for _ in range(256))
    extents = Extents(u64([0]), u64([SIZE * 100]), u64([0]))
    physical = PhysicalMemory(Bytes(array), extents, extents.ranges())
    virtual = VirtualMemory.of(physical, u64([BASE]), u64([0]), u64([len(array)]))
    memmap = Memmap("sparse", 4096, SIZE, (MemmapPart(0, 256, BASE),))
    fields = page_fields(parse(text.encode()), 8)
    ram = Ranges(u64([0]), u64([300 * 4096]))
    result = account(virtual, memmap, fields, "kernel", ram)
    assert result.counts[Category.FREE] == 100
    assert result.unknown == 156
    assert result.without_struct == 44
    assert result.dropped.start.tolist() == [0]
    assert result.dropped.end.tolist() == [100 * 4096]


def test_missing_key_is_named() -> None:
    with pytest.raises(IdentityError) as caught:
        page_fields(parse(b"SIZE(page)=64\n"), 8)
    assert caught.value.key == "OFFSET(page.flags)"
