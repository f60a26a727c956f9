"""Interval tables against a model that looks at every byte."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdump_elftool.addr import merge_ranges, subtract_ranges, u64
from kdump_elftool.memory.extents import ZERO_FILL, Extents, intersect, normalise, overlay
from tests.builders.dumps import columns

BASES = st.sampled_from([0, 2**46, 2**63, 2**64 - 300])
EXTENT = st.tuples(st.integers(0, 60), st.integers(0, 25), st.integers(0, 1000) | st.just(ZERO_FILL))
RANGE = st.tuples(st.integers(0, 80), st.integers(0, 20))


def norm(base: int, listed, function=normalise) -> Extents:
    return function(
        u64([base + start for start, _, _ in listed]), u64([size for _, size, _ in listed]),
        u64([position for _, _, position in listed]),
    )  # fmt: skip


def model(listed) -> dict[int, int]:
    """Address -> position: the largest extent, the first listed among equals."""
    out: dict[int, int] = {}
    for start, size, position in sorted(listed, key=lambda extent: -extent[1]):
        for done in range(size):
            out.setdefault(start + done, ZERO_FILL if position == ZERO_FILL else position + done)
    return out


def written_over(listed) -> dict[int, int]:
    """Address -> position when each extent is written over those before it."""
    out: dict[int, int] = {}
    for start, size, position in listed:
        for done in range(size):
            out[start + done] = ZERO_FILL if position == ZERO_FILL else position + done
    return out


@given(
    BASES,
    st.lists(EXTENT, max_size=12) | st.lists(EXTENT, min_size=20, max_size=60),
    st.sampled_from([(normalise, model), (overlay, written_over)]),
)
def test_disjoint_extents_equal_the_model(base, listed, functions):
    function, plain = functions
    found = norm(base, listed, function)
    got = {}
    rows = columns(found.start, found.size, found.position)
    for start, size, position in rows:
        assert size > 0
        for done in range(size):
            assert start + done - base not in got
            got[start + done - base] = ZERO_FILL if position == ZERO_FILL else position + done
    assert got == plain(listed)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


@given(BASES, st.lists(EXTENT, max_size=12))
def test_normalised_extents_are_merged_and_stay_as_they_are(base, listed):
    found = norm(base, listed)
    again = normalise(found.start, found.size, found.position)
    assert columns(again.start, again.size, again.position) == columns(
        found.start, found.size, found.position
    )


@given(BASES, st.lists(EXTENT, max_size=12), st.lists(st.integers(0, 99), max_size=8))
def test_locate_equals_the_model(base, listed, points):
    found = norm(base, listed)
    index, inside = found.locate(u64([base + point for point in points]))
    held = model(listed)
    assert inside.tolist() == [point in held for point in points]
    for point, at in zip(
        np.array(points)[inside].tolist() if points else [], index[inside].tolist(), strict=True
    ):
        position = int(found.position[at])
        moved = position if position == ZERO_FILL else position + base + point - int(found.start[at])
        assert moved == held[point]


@given(BASES, st.lists(EXTENT, max_size=10), st.lists(RANGE, max_size=6))
def test_intersect_equals_the_model(base, listed, queries):
    ranges = norm(base, listed).ranges()
    pieces = intersect(
        ranges, u64([base + start for start, _ in queries]), u64([size for _, size in queries])
    )
    held = model(listed).keys()
    for owner, (start, size) in enumerate(queries):
        mine = [
            (low - base, length)
            for which, low, length in columns(pieces.owner, pieces.start, pieces.size)
            if which == owner
        ]
        points = [low + done for low, length in mine for done in range(length)]
        assert points == sorted(held & set(range(start, start + size)))
        assert all(length > 0 for _, length in mine)


@given(BASES, st.lists(RANGE, max_size=8), st.lists(RANGE, max_size=8))
def test_subtract_and_merge_equal_sets(base, whole, holes):
    first = merge_ranges(u64([base + a for a, _ in whole]), u64([base + a + n for a, n in whole]))
    second = merge_ranges(u64([base + a for a, _ in holes]), u64([base + a + n for a, n in holes]))
    points = {a + done for a, n in whole for done in range(n)}
    assert {x - base for a, b in columns(first.start, first.end) for x in range(a, b)} == points
    left = subtract_ranges(first, second)
    expected = points - {a + done for a, n in holes for done in range(n)}
    rows = columns(left.start, left.end)
    assert {x - base for a, b in rows for x in range(a, b)} == expected
    assert all(a[1] < b[0] for a, b in itertools.pairwise(rows))
    assert left.total == len(expected)
