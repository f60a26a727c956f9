"""The coverage line: share, at most five ranges, then a count; all of them when asked."""

from __future__ import annotations

import json

import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.formats.base import Lost
from kdump_elftool.jobs.coverage import Coverage


def lost(count: int, why: str = "truncated at file offset 0x900", space: str = "paddr") -> Lost:
    starts = [0x1000 + 0x10000 * index for index in range(count)]
    return Lost(space, why, Ranges(u64(starts), u64([start + 0x4000 for start in starts])))


def test_complete():
    coverage = Coverage.of(100 * 4096, 0, ())
    assert (coverage.line(), coverage.is_partial) == ("100.0 % of 100 pages", False)


def test_the_form_of_the_contract():
    coverage = Coverage.of(131072 * 4096, 10355 * 4096, (lost(3),))
    assert coverage.line() == (
        "92.1 % of 131072 pages; lost 3 ranges: 0x1000-0x5000 truncated at file offset 0x900; "
        "0x11000-0x15000 truncated at file offset 0x900; 0x21000-0x25000 truncated at file offset 0x900"
    )
    assert coverage.is_partial


def test_one_range_is_singular():
    assert "lost 1 range: " in Coverage.of(4096000, 4096, (lost(1),)).line()


@pytest.mark.parametrize("count", [5, 6, 1000])
def test_at_most_five_ranges_then_a_count(count):
    line = Coverage.of(4096000, 4096, (lost(count - 2), lost(2, "pte table unreadable", "vaddr"))).line()
    assert line.count("0x") - line.count("offset 0x") == 10
    assert line.endswith(f"; and {count - 5} more") == (count > 5)
    assert f"lost {count} ranges" in line


def test_everything_on_request():
    coverage = Coverage.of(4096000, 4096, (lost(40), lost(2, "pte table unreadable", "vaddr")))
    line = coverage.line(everything=True)
    assert line.count("truncated") == 40
    assert "; vaddr 0x1000-0x5000 pte table unreadable" in line
    assert "more" not in line


def test_virtual_and_physical_ranges_are_told_apart():
    assert "vaddr 0x1000-0x5000" in Coverage.of(4096000, 0, (lost(1, "gone", "vaddr"),)).line()


@pytest.mark.parametrize(
    ("total", "missing", "shown"),
    [
        (1_000_000, 1, "99.9 %"),
        (2, 1, "50.0 %"),
        (3, 3, "0.0 %"),
        (1_000_000, 999_999, "0.0 %"),
        (0, 0, "0.0 %"),
    ],
)
def test_never_rounded_up_to_100(total, missing, shown):
    assert Coverage.of(total * 4096, missing * 4096, (lost(1),)).line().startswith(shown)


def test_a_page_that_is_there_in_part_is_missing():
    assert Coverage.of(10 * 4096, 1, (lost(1),)).covered == 9


def test_json():
    document = json.loads(json.dumps(Coverage.of(4096 * 100, 4096, (lost(2000),)).as_json()))
    assert (document["covered_pages"], document["total_pages"], document["lost_ranges"]) == (99, 100, 2000)
    assert len(document["lost"]) == 1000
    assert document["lost"][0] == {
        "space": "paddr",
        "start": "0x1000",
        "end": "0x5000",
        "why": "truncated at file offset 0x900",
    }
