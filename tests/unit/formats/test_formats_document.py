"""docs/formats.md lists what the code's registries hold, and says what each was checked with."""

from __future__ import annotations

import re
from pathlib import Path

from kdump_elftool.formats import FORMATS, LAYERS
from kdump_elftool.formats.recognised import RECOGNISED, XEN_ELF_CORE

DOCUMENT = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")


def table(first_heading: str) -> list[list[str]]:
    """Rows of the table whose first column has this heading."""
    (body,) = re.findall(rf"(?m)^\| {re.escape(first_heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]


def rows_with(second: str) -> list[list[list[str]]]:
    """Every table whose second column has this heading."""
    found = re.findall(rf"(?m)^\|[^|]*\| {re.escape(second)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
        for body in found
    ]


def test_formats():
    (rows,) = rows_with("`-I`")
    assert sorted(row[1].strip("`") for row in rows) == sorted(known.name for known in FORMATS)
    assert all(len(row) == 3 and row[2] for row in rows)


def test_layers():
    rows = table("around a dump")
    assert sorted(row[0] for row in rows) == sorted(layer.name for layer in LAYERS)
    assert all(row[1] for row in rows)


def test_recognised():
    (rows,) = rows_with("recognised by")
    names = [*dict.fromkeys(name for _, name, _ in RECOGNISED)]
    assert sorted(row[0] for row in rows) == sorted([*names, XEN_ELF_CORE[0]])
    assert all(row[1] for row in rows)


def test_each_read_format_has_a_section():
    for known in FORMATS:
        assert re.search(rf"(?m)^## Read: .*`-I {known.name}`", DOCUMENT), known.name
