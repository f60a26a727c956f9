"""A machine of three nodes with memory above 4 GB."""

from __future__ import annotations

import json

import pytest

from lab.config import CUT_BY_QEMU
from tests.lab.dumps import LabDump, kdump_elftool, selected_rows

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROWS = [row for row in selected_rows() if row.guest.name == "x64-61-numa"]
GIB = 1 << 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_memory_above_4_gb_is_there(row, tmp_path):
    dump = LabDump(row.name, row.scenario, "qemu.elf")
    dump.check()
    top = max(int(entry["end"], 16) for entry in dump.truth["iomem"] if entry["name"] == "System RAM")
    assert top >= 6 * GIB
    done = kdump_elftool("tovelf", "-l", "kernel", "-i", dump.path, "-o", tmp_path / "velf", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["coverage"]["lost"] == []
    assert result["free_pages"] > 5 * GIB // 4096


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_qemu_left_out_is_reported(row, tmp_path):
    """Its dump with paging lacks most of the memory: that is said, and nothing is read as zeros."""
    (name,) = [file for of_row, file in CUT_BY_QEMU if of_row == row.name]
    dump = LabDump(row.name, row.scenario, name)
    dump.check()
    done = kdump_elftool("tovelf", "-l", "all", "-i", dump.path, "-o", tmp_path / "velf", "--json")
    assert done.returncode == 0, done.stderr
    coverage = json.loads(done.stdout)["coverage"]
    assert coverage["covered_pages"] < coverage["total_pages"] / 2
    assert coverage["lost"]
    share = 100 * coverage["covered_pages"] / coverage["total_pages"]
    assert f"coverage: {share:.1f} % of {coverage['total_pages']} pages; lost " in done.stderr
