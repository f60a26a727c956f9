"""Huge pages, whose size and destructor lie in their second struct page: everywhere that kernels had them.

Where that is, is said by set_compound_order() and set_compound_page_dtor() in include/linux/mm.h, and by
struct page in include/linux/mm_types.h, of the version that each case names.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel.memmap import Memmap, MemmapPart
from kdump_elftool.kernel.pages import LEVELS, Category, classify, page_fields
from kdump_elftool.kernel.vmcoreinfo import parse
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory
from tests.builders.tasks import Bytes

BASE = 0xFFFFEA0000000000
ORDER = 9
HUGE = 1 << ORDER
PG_LRU, PG_HEAD, PG_SWAPBACKED = 5, 14, 19
FREE_HUGE_PAGE, FREE_COMPOUND_PAGE = 0x811B6540, 0x8116D2A0
UPPER = {4: 0, 8: 0xFFFFFFFF00000000}
SIZE = {4: 32, 8: 64}
MACHINES = [("<", 8), (">", 8), ("<", 4), (">", 4)]
V3_17 = f"SYMBOL(free_huge_page)={UPPER[8] | FREE_HUGE_PAGE:x}\n"
"""Printed since v3.17; the places have no names yet."""
V4_1 = V3_17 + "OFFSET(page.compound_dtor)={next}\nOFFSET(page.compound_order)={prev}\n"
"""They have, in types only: a pointer and a long."""
V4_4 = "NUMBER(HUGETLB_PAGE_DTOR)=2\n"
"""The destructor is a number, and no offset is printed until v4.7."""
V4_7 = V4_4 + "OFFSET(page.compound_dtor)={prev}\nOFFSET(page.compound_order)={half}\n"
"""Two halves of a word, until v4.16."""


def places(word: int) -> dict[str, int]:
    """Of struct page of v3.17: flags, mapping, index, _mapcount and _count, lru, private."""
    next_at = 3 * word + 8
    return {"next": next_at, "prev": next_at + word, "half": next_at + word + word // 2}


def printed(word: int, lines: str) -> str:
    """VMCOREINFO."""
    at = places(word)
    if word == 4:
        lines = lines.replace(f"{UPPER[8] | FREE_HUGE_PAGE:x}", f"{FREE_HUGE_PAGE:x}")
    return f"""SIZE(page)={SIZE[word]}
OFFSET(page.flags)=0
OFFSET(page.mapping)={word}
OFFSET(page._mapcount)={3 * word}
OFFSET(page._count)={3 * word + 4}
OFFSET(page.lru)={at["next"]}
OFFSET(page.private)={at["next"] + 2 * word}
OFFSET(list_head.next)=0
OFFSET(list_head.prev)={word}
LENGTH(zone.free_area)=11
NUMBER(PG_lru)={PG_LRU}
NUMBER(PG_head_mask)={1 << PG_HEAD}
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-128
{lines.format(**at)}"""


def counted(order: str, word: int, info: str, second: list[dict[str, int]]) -> dict[Category, int]:
    """Pages of a huge anonymous page and of one of hugetlbfs, by category; ``second`` struct of each."""
    size, letter, at = SIZE[word], {4: "I", 8: "Q"}[word], places(word)
    array = bytearray(3 * HUGE * size)

    def put(page: int, place: int, value: int, form: str = letter) -> None:
        struct.pack_into(order + form, array, page * size + place, value)

    for page in range(3 * HUGE):
        put(page, 3 * word, -1, "i")
    for head in (HUGE, 2 * HUGE):
        put(head, 0, 1 << PG_HEAD)
    put(HUGE, 0, 1 << PG_HEAD | 1 << PG_LRU)
    put(HUGE, word, UPPER[word] | 0x88001235)
    for head, values in zip((HUGE, 2 * HUGE), second, strict=True):
        for name, value in values.items():
            put(head + 1, at[name], value, {4: "H", 8: "I"}[word] if "half" in values else letter)
    extents = Extents(u64([0]), u64([len(array)]), u64([0]))
    physical = PhysicalMemory(Bytes(array), extents, extents.ranges())
    virtual = VirtualMemory.of(physical, u64([BASE]), u64([0]), u64([len(array)]))
    memmap = Memmap("sparse", 4096, size, (MemmapPart(0, 3 * HUGE, BASE),))
    fields = page_fields(parse(info.encode()), word, order)
    codes = np.concatenate([part[1] for part in classify(virtual, memmap, fields, LEVELS["kernel"])])
    assert not codes[:HUGE].any()
    return {
        category: int((codes[HUGE:] == category).sum()) for category in map(Category, np.unique(codes[HUGE:]))
    }


def pointers(word: int) -> list[dict[str, int]]:
    return [{"next": UPPER[word] | dtor, "prev": ORDER} for dtor in (FREE_COMPOUND_PAGE, FREE_HUGE_PAGE)]


@pytest.mark.parametrize(("order", "word"), MACHINES)
@pytest.mark.parametrize("lines", [V3_17, V4_1], ids=["VMCOREINFO", "types"])
def test_words_of_the_list_until_v4_3(order, word, lines):
    assert counted(order, word, printed(word, lines), pointers(word)) == {Category.USER: 2 * HUGE}


@pytest.mark.parametrize(("order", "word"), MACHINES)
def test_size_without_the_name_of_the_destructor(order, word):
    """Before v3.17, or without hugetlbfs: how large they are is seen by itself, what hugetlbfs has is not."""
    assert counted(order, word, printed(word, ""), pointers(word)) == {
        Category.KEPT: HUGE,
        Category.USER: HUGE,
    }


@pytest.mark.parametrize(("order", "word"), MACHINES)
def test_numbers_of_half_a_word_until_v4_15(order, word):
    second = [{"prev": dtor, "half": ORDER} for dtor in (1, 2)]
    assert counted(order, word, printed(word, V4_7), second) == {Category.USER: 2 * HUGE}


@pytest.mark.parametrize(("order", "word"), MACHINES)
def test_what_newer_kernels_do_not_tell(order, word):
    """The list's first word is a tail's way to its head, whose lowest bit is set: the second is no size."""
    info = printed(word, V4_4)
    second = [{"next": UPPER[word] | 0xEA000001, "prev": value} for value in (ORDER, ORDER)]
    assert counted(order, word, info, second)[Category.USER] == 1


@pytest.mark.parametrize("distance", [3, 5, 7, 12, 40])
def test_distances_that_no_kernel_has(distance):
    lines = f"{V3_17}OFFSET(page.compound_dtor)=0\nOFFSET(page.compound_order)={distance}\n"
    assert counted("<", 8, printed(8, lines), pointers(8)).keys() <= {Category.KEPT, Category.USER}
