"""Free pages by the allocator's lists, whole and damaged."""

from __future__ import annotations

import pytest

from kdump_elftool.errors import IdentityError
from kdump_elftool.kernel.freelists import FreeLists, free_by_lists
from kdump_elftool.kernel.memmap import Memmap, MemmapPart
from kdump_elftool.kernel.pages import Category, account, page_fields
from kdump_elftool.kernel.words import Words
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

KEYS = {
    "PAGESIZE": 4096,
    "SIZE_page": 56,
    "OFFSET_page__flags": 0,
    "OFFSET_page___mapcount": 12,
    "OFFSET_page__private": 16,
    "OFFSET_page__mapping": 24,
    "OFFSET_page__lru": 40,
    "NUMBER_PG_lru": 5,
    "SIZE_zone": 1536,
    "SIZE_free_area": 48,
    "SIZE_list_head": 16,
    "OFFSET_list_head__next": 0,
    "OFFSET_pglist_data__node_zones": 0,
    "OFFSET_pglist_data__nr_zones": 8000,
    "OFFSET_zone__free_area": 256,
    "OFFSET_free_area__free_list": 0,
    "LENGTH_zone__free_area": 11,
    "LENGTH_free_area__free_list": 2,
    "SYMBOL_contig_page_data": BASE + 0x10000,
}
MAP, NODE = 0x100000, 0x10000
MEMMAP = Memmap("flat", 4096, 56, (MemmapPart(0x10, 2000, BASE + MAP),))


def lru(pfn: int) -> int:
    return MAP + (pfn - 0x10) * 56 + 40


def head(zone: int, order: int, kind: int) -> int:
    return NODE + zone * 1536 + 256 + order * 48 + kind * 16


def chain(space: KernelSpace, start: int, *pfns: int, back_to: int | None = None) -> None:
    """Link a list's head to these frames and the last one back to the head."""
    places = [start, *map(lru, pfns)]
    for place, following in zip(places, [*places[1:], start if back_to is None else back_to], strict=True):
        space.put(place, "Q", BASE + following)


@pytest.fixture
def space() -> KernelSpace:
    space = KernelSpace()
    space.put(NODE + 8000, "i", 2)
    for zone in range(2):
        for order in range(11):
            for kind in range(2):
                chain(space, head(zone, order, kind))
    return space


def free(space: KernelSpace, **changes: object) -> FreeLists:
    return free_by_lists(Words(space.virtual()), info_of(**{**KEYS, **changes}), MEMMAP)


def frames(found: FreeLists) -> list[tuple[int, int]]:
    return [
        (start // 4096, end // 4096)
        for start, end in zip(found.ranges.start.tolist(), found.ranges.end.tolist(), strict=True)
    ]


def test_every_zone_order_and_type(space):
    chain(space, head(0, 0, 0), 0x11, 0x99, 0x55)
    chain(space, head(0, 3, 1), 0x40)
    chain(space, head(1, 10, 0), 0x400)
    found = free(space)
    assert frames(found) == [(0x11, 0x12), (0x40, 0x48), (0x55, 0x56), (0x99, 0x9A), (0x400, 0x800)]
    assert found.broken == 0


def test_nothing_free(space):
    assert frames(free(space)) == []
    assert free(space).broken == 0


def test_zones_without_memory_have_no_lists(space):
    chain(space, head(1, 0, 0), 0x33)
    space.put(NODE + 8000, "i", 4)  # the further ones hold zeros
    assert frames(free(space)) == [(0x33, 0x34)]
    assert free(space).broken == 0


def test_a_circle_ends_its_list_only(space):
    chain(space, head(0, 0, 0), 0x11, 0x12, 0x13, back_to=lru(0x12))
    chain(space, head(0, 1, 0), 0x20)
    found = free(space)
    assert frames(found) == [(0x11, 0x14), (0x20, 0x22)]
    assert found.broken == 1


@pytest.mark.parametrize(
    "wild", [-BASE + 0xDEAD000, MAP + 41, MAP - 16, MAP + 3000 * 56 + 40, 1 << 46], ids=hex
)
def test_a_wild_pointer_ends_its_list_only(space, wild):
    chain(space, head(0, 0, 1), 0x11, 0x13, back_to=wild)
    chain(space, head(0, 2, 0), 0x20)
    found = free(space)
    assert frames(found) == [(0x11, 0x12), (0x13, 0x14), (0x20, 0x24)]
    assert found.broken == 1


def test_a_block_that_does_not_fit_its_order_is_kept(space):
    chain(space, head(0, 4, 0), 0x21, 0x30)
    assert frames(free(space)) == [(0x30, 0x40)]


@pytest.mark.parametrize("name", ["zone__free_area", "free_area__free_list"])
def test_absurd_lengths_stay_bounded(space, name):
    chain(space, head(0, 0, 0), 0x11)
    space.put(NODE + 8000, "i", 2**31 - 1)
    found = free(space, **{f"LENGTH_{name}": 1 << 60})
    assert (0x11, 0x12) in frames(found)


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith(("SIZE_z", "SIZE_f", "OFFSET_free"))])
def test_missing_key_is_named(space, key):
    lines = {name: value for name, value in KEYS.items() if name != key}
    with pytest.raises(IdentityError, match=key.partition("_")[2].replace("__", r"\.")):
        free_by_lists(Words(space.virtual()), info_of(**lines), MEMMAP)


@pytest.mark.parametrize(("level", "dropped"), [("kernel", 9), ("inuse", 9)])
def test_account_drops_what_the_lists_name(space, level, dropped):
    chain(space, head(0, 0, 0), 0x11)
    chain(space, head(0, 3, 0), 0x40)
    fields = page_fields(info_of(**KEYS), 8)
    assert fields.buddy_type is None
    found = account(space.virtual(), MEMMAP, fields, level, space.present, free(space).ranges)
    assert found.counts[Category.FREE] == dropped
    assert found.dropped.total == dropped * 4096
