"""The document of what is supported: made of results alone, and results outlive a run that was stopped."""

from __future__ import annotations

import pytest

from lab import support
from lab.config import LabError, load_config
from lab.support import Count, Result, aspect_of, document, read_junit, read_result

REPORT = """<testsuites><testsuite>
<testcase classname="tests.lab.test_velf" name="a[x]"/>
<testcase classname="tests.lab.test_velf" name="b[x]"><failure message="no"/></testcase>
<testcase classname="tests.lab.test_dmesg" name="c[x]"/>
<testcase classname="tests.lab.test_numa" name="d[x]"><skipped message="another row"/></testcase>
<testcase classname="tests.lab.test_tasks" name="e[x]"><error message="no"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(support, "RESULTS", tmp_path / "results.json")
    return tmp_path / "results.json"


def result(name: str, **counts: Count) -> Result:
    return Result(name, "k", "c", "2026-01-02", "6.1.0-50-686", "QEMU 7.2.22, gdb 13.1", counts)


def test_a_report_becomes_counts():
    assert read_junit(REPORT) == {"memory": Count(1, 2), "log": Count(1, 1), "threads": Count(0, 1)}
    assert read_junit(REPORT, by_module=True) == {
        "velf": Count(1, 2), "dmesg": Count(1, 1), "tasks": Count(0, 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "test", "aspect"),
    [
        ("test_arm64", "test_translations_are_drgns", "memory"),
        ("test_arm64", "test_tasks_and_frames_are_drgns", "threads"),
        ("test_arm64", "test_what_pages_are_is_drgns", "pages"),
        ("test_dmesg", "test_levels", "pages"),
        ("test_velf", "test_a", "memory"),
        ("test_in_place", "test_undo", "other"),
    ],
)
def test_the_column_of_a_test(module, test, aspect):
    assert aspect_of(module, test) == aspect


def test_every_word_is_in_the_name_of_a_test():
    files = list((support.ROOT / "tests" / "lab").glob("test_*.py"))
    names = " ".join(path.stem for path in files) + " ".join(path.read_text() for path in files)
    assert [word for words in support.ASPECTS.values() for word in words if word not in names] == []


def test_the_document_claims_what_was_run_and_nothing_else():
    rows = load_config().rows
    empty = document(rows)
    assert "@" not in empty
    table, _, rest = empty.partition("has not tested yet")
    assert not any(row.name in table for row in rows)
    assert all(f"`{row.name}`" in rest for row in rows)
    support._remember(result("i386.live", memory=Count(9, 9), threads=Count(2, 3)))
    support._remember(result("generated", x86_64=Count(70, 70)))
    (line,) = [line for line in document(rows).splitlines() if "i386.live" in line]
    assert line.startswith("|")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:9] == ["i386", "i386.live", "6.1.0-50-686", "live", "9", "**2 of 3**", "", "", ""]
    assert cells[9:] == ["2026-01-02", "QEMU 7.2.22, gdb 13.1"]
    assert "| x86_64 | 70 of 70 | 2026-01-02 |" in document(rows)


def test_a_result_is_read_back_and_a_damaged_one_is_none(results):
    written = support._remember(result("i386.live", memory=Count(9, 9)))
    assert read_result("i386.live") == written
    assert written.is_good
    assert not result("i386.live", memory=Count(8, 9)).is_good
    assert not result("i386.live").is_good, "nothing ran"
    support._remember(result("i386.kdump", log=Count(1, 1)))
    assert read_result("i386.live") == written
    results.write_text('{"i386.live": {"name": "i386.live"}}')
    assert read_result("i386.live") is None
    results.write_text("{")
    with pytest.raises(LabError, match="delete it"):
        support._remember(written)
