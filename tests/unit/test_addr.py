"""Addresses and ranges, against plain Python integers and sets."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import (
    Ranges,
    align_down,
    align_up,
    merge_ranges,
    parse_number,
    sign_extend,
    sign_extend_column,
    subtract_ranges,
    u64,
)


def ranges(*pairs: tuple[int, int]) -> Ranges:
    return Ranges(u64([low for low, _ in pairs]), u64([high for _, high in pairs]))


def pairs(found: Ranges) -> list[tuple[int, int]]:
    return list(zip(found.start.tolist(), found.end.tolist(), strict=True))


def test_u64_keeps_all_bits_and_wraps_negatives():
    values = u64([0, 2**63 + 1, 2**64 - 1, -1, -(2**31)])
    assert values.dtype == np.uint64
    assert values.tolist() == [0, 2**63 + 1, 2**64 - 1, 2**64 - 1, 2**64 - 2**31]
    assert u64(np.array([3], dtype=np.uint32)).dtype == np.uint64


@pytest.mark.parametrize(
    ("value", "down", "up"), [(0, 0, 0), (1, 0, 4096), (4096, 4096, 4096), (2**63 + 1, 2**63, 2**63 + 4096)]
)
def test_align(value, down, up):
    assert (align_down(value, 4096), align_up(value, 4096)) == (down, up)


@pytest.mark.parametrize(
    ("value", "bits", "expected"),
    [
        (0x7FFFFFFFFFFF, 48, 0x7FFFFFFFFFFF), (0x800000000000, 48, 0xFFFF800000000000),
        (0xFFFFFFFFFFFF, 48, 2**64 - 1), (0x800000000000, 57, 0x800000000000),
        (1 << 56, 57, 0xFF00000000000000), (0xFFFF800000000000, 48, 0xFFFF800000000000), (0, 57, 0),
    ],
)  # fmt: skip
def test_sign_extend_and_its_column_form(value, bits, expected):
    assert sign_extend(value, bits) == expected
    assert sign_extend_column(u64([value]), bits).tolist() == [expected]


@pytest.mark.parametrize(
    ("text", "value"), [("0x10", 16), ("0X1f", 31), ("10", 10), (" 7 ", 7), ("0xffffffffffffffff", 2**64 - 1)]
)
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "0x", "ff", "-1", "0x10000000000000000", "1.5", "0x-1", "nan"])
def test_parse_number_refuses(text):
    with pytest.raises(ValueError):
        parse_number(text)


def test_merge_ranges_joins_touching_and_drops_empty():
    found = merge_ranges(u64([10, 0, 5, 30, 20, 40]), u64([12, 5, 9, 30, 25, 35]))
    assert pairs(found) == [(0, 9), (10, 12), (20, 25)]
    assert pairs(merge_ranges(u64([0, 1]), u64([100, 5]))) == [(0, 100)]
    assert pairs(merge_ranges(u64([2**63, 0]), u64([2**64 - 1, 2**63]))) == [(0, 2**64 - 1)]


def test_total_does_not_overflow():
    assert ranges((0, 2**63), (2**63 + 1, 2**64 - 1)).total == 2**64 - 2
    assert ranges().total == 0


def test_contains():
    found = ranges((10, 20), (30, 31))
    points = u64([9, 10, 19, 20, 30, 31, 2**64 - 1, 0])
    assert found.contains(points).tolist() == [False, True, True, False, True, False, False, False]
    assert ranges().contains(points).tolist() == [False] * 8


@pytest.mark.parametrize(
    ("whole", "holes", "left"),
    [
        ([(0, 100)], [(10, 20), (90, 200)], [(0, 10), (20, 90)]),
        ([(0, 100)], [], [(0, 100)]),
        ([(0, 100)], [(0, 100)], []),
        ([(0, 10), (20, 30)], [(5, 25)], [(0, 5), (25, 30)]),
        ([], [(0, 1)], []),
        ([(5, 6)], [(1, 5), (6, 7)], [(5, 6)]),
    ],
)
def test_subtract(whole, holes, left):
    assert pairs(subtract_ranges(ranges(*whole), ranges(*holes))) == left
