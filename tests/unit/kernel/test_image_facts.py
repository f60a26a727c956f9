"""What VMCOREINFO would say, from types of every age of the kernel."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.image_facts import image_facts


class Types:
    """A source that knows what it is given."""

    def __init__(self, **numbers: int) -> None:
        self.values = {f"NUMBER({name})": value for name, value in numbers.items()}

    def with_offsets(self, *names: str) -> Types:
        self.values |= {f"OFFSET({name})": 48 for name in names}
        return self

    def find(self, kind: str, name: str, /) -> Fact | None:
        value = self.values.get(f"{kind}({name})")
        return None if value is None else Fact(f"{kind}({name})", value, "test")


def numbers(types: Types) -> dict[str, object]:
    return {
        fact.name.removeprefix("NUMBER(").rstrip(")"): fact.value
        for fact in image_facts(types)
        if fact.name.startswith("NUMBER(")
    }


MARKS = "PAGE_{}_MAPCOUNT_VALUE".format


def test_types_in_the_top_byte():
    """As 7.2.13 of Debian prints them."""
    types = Types(
        PG_lru=5, PG_head=6, PGTY_buddy=0xF0, PGTY_offline=0xF1, PGTY_hugetlb=0xF4, PGTY_slab=0xF5,
        PGTY_unaccepted=0xF7,
    )  # fmt: skip
    assert numbers(types) == {
        "PG_lru": 5,
        "PG_head_mask": 64,
        MARKS("BUDDY"): -268435456,
        MARKS("OFFLINE"): -251658240,
        MARKS("HUGETLB"): -201326592,
        MARKS("SLAB"): -184549376,
        MARKS("UNACCEPTED"): -150994944,
    }


def test_types_that_are_bits():
    types = Types(PG_buddy=0x40000000, PG_offline=0x20000000, PG_slab=0x02000000)
    assert numbers(types) == {
        MARKS("BUDDY"): ~0x40000000,
        MARKS("OFFLINE"): ~0x20000000,
        MARKS("SLAB"): ~0x02000000,
    }


@pytest.mark.parametrize(
    ("flags", "offsets", "expected"),
    [
        ({"PG_slab": 9}, ["page._mapcount", "page.page_type"], {"PG_slab": 9, MARKS("BUDDY"): -129}),
        ({"PG_slab": 7}, ["page._mapcount"], {"PG_slab": 7, MARKS("BUDDY"): -128}),
        ({}, ["page._mapcount", "page.page_type"], {MARKS("BUDDY"): -129, MARKS("SLAB"): ~0x1000}),
        ({"PG_slab": 7}, [], {"PG_slab": 7}),
        ({"PG_hugetlb": 5}, [], {"PG_hugetlb": 5}),
        ({"HUGETLB_PAGE_DTOR": 2}, [], {"HUGETLB_PAGE_DTOR": 2}),
    ],
)
def test_types_that_were_macros(flags, offsets, expected):
    assert numbers(Types(**flags).with_offsets(*offsets)) == expected


def test_numbers_that_cannot_be():
    assert numbers(Types(PG_head=64, PGTY_buddy=0x100, PG_slab=9)) == {}
    assert numbers(Types(PG_buddy=0x40, PG_head=-1)) == {}
