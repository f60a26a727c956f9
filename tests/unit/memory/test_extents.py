"""Interval tables: hand-made cases.  tests/property compares them with a model byte by byte."""

from __future__ import annotations

import pytest

from kdump_elftool.addr import u64
from kdump_elftool.memory.extents import ZERO_FILL, Extents, intersect, normalise


def rows(extents: Extents) -> list[tuple[int, int, int]]:
    return list(zip(extents.start.tolist(), extents.size.tolist(), extents.position.tolist(), strict=True))


def norm(*listed: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    columns = zip(*listed, strict=True) if listed else ([], [], [])
    return rows(normalise(*(u64(column) for column in columns)))


def test_nothing():
    assert norm() == []
    assert norm((5, 0, 7)) == []


def test_order_and_merging():
    assert norm((0x2000, 0x1000, 0x900), (0x1000, 0x1000, 0x100)) == [
        (0x1000, 0x1000, 0x100),
        (0x2000, 0x1000, 0x900),
    ]
    assert norm((0x2000, 0x1000, 0x1100), (0x1000, 0x1000, 0x100)) == [(0x1000, 0x2000, 0x100)]
    assert norm((0, 8, ZERO_FILL), (8, 8, ZERO_FILL), (16, 8, 0)) == [(0, 16, ZERO_FILL), (16, 8, 0)]


def test_kernel_text_listed_twice_is_read_from_the_longer_one():
    text, ram = (0x400000, 0x1000, 0x5000), (0x100000, 0x1000000, 0x100000)
    assert norm(text, ram) == [ram] == norm(ram, text)


def test_partial_overlap_of_unaligned_extents():
    assert norm((10, 10, 100), (15, 11, 200)) == [(10, 5, 100), (15, 11, 200)]
    assert norm((10, 11, 100), (15, 10, 200)) == [(10, 11, 100), (21, 4, 206)]


def test_top_of_the_address_space():
    assert norm((2**64 - 4096, 4096, 0)) == [(2**64 - 4096, 4095, 0)]
    assert norm((2**64 - 4096, 2**63, 0)) == [(2**64 - 4096, 4095, 0)]
    assert norm((2**64 - 1, 1, 0)) == []


def test_among_equals_the_first_listed_wins():
    assert norm((0x1000, 0x1000, 0x100), (0x1000, 0x1000, 0x900)) == [(0x1000, 0x1000, 0x100)]
    assert norm((0x2000, 0x2000, 0x10000), (0x1000, 0x2000, 0x90000)) == [
        (0x1000, 0x1000, 0x90000), (0x2000, 0x2000, 0x10000),
    ]  # fmt: skip


def test_locate():
    extents = normalise(u64([0x1000, 0x5000, 2**60]), u64([0x1000, 0x10, 0x1000]), u64([0, 0x1000, 0x2000]))
    index, inside = extents.locate(u64([0, 0x1000, 0x1FFF, 0x2000, 0x500F, 0x5010, 2**60, 2**64 - 1]))
    assert inside.tolist() == [False, True, True, False, True, False, True, False]
    assert index[inside].tolist() == [0, 0, 1, 2]
    none = normalise(u64([]), u64([]), u64([]))
    assert none.locate(u64([5]))[1].tolist() == [False]


def test_ranges_merge_adjacent_extents():
    extents = normalise(u64([0, 0x1000, 0x3000]), u64([0x1000] * 3), u64([0x5000, 0, 0x1000]))
    ranges = extents.ranges()
    assert (ranges.start.tolist(), ranges.end.tolist()) == ([0, 0x3000], [0x2000, 0x4000])
    assert extents.total == 0x3000


@pytest.mark.parametrize(
    ("query", "pieces"),
    [
        ((0, 0x10000), [(0x1000, 0x1000), (0x3000, 0x800)]),
        ((0x1800, 0x1900), [(0x1800, 0x800), (0x3000, 0x100)]),
        ((0x2000, 0x1000), []),
        ((0x37FF, 1), [(0x37FF, 1)]),
        ((0x3800, 1), []),
    ],
)
def test_intersect(query, pieces):
    ranges = normalise(u64([0x1000, 0x3000]), u64([0x1000, 0x800]), u64([0, 0x9000])).ranges()
    found = intersect(ranges, u64([5, query[0]]), u64([1, query[1]]))
    assert list(zip(found.start.tolist(), found.size.tolist(), strict=True)) == pieces
    assert found.owner.tolist() == [1] * len(pieces)
