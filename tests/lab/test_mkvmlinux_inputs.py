"""What mkvmlinux makes of less usual inputs, against the distribution's vmlinux and the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.dumps import LabDump, kdump_elftool, selected_rows
from tests.lab.test_mkvmlinux import symbols

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FUNCTIONS_ONLY = [
    LabDump(row.name, row.scenario, "qemu.elf")
    for row in selected_rows()
    if row.guest.arch.name == "aarch64" and not row.guest.fragments and row.scenario == "live"
]
"""Kernels without CONFIG_KALLSYMS_ALL, with types."""


@pytest.mark.parametrize("dump", FUNCTIONS_ONLY, ids=lambda dump: dump.id)
def test_modules_of_a_kernel_whose_table_has_functions_only(dump: LabDump, tmp_path: Path) -> None:
    """Their list is in no table; the guest's /proc/kallsyms has their symbols."""
    path = tmp_path / "vmlinux.dump"
    done = kdump_elftool("mkvmlinux", dump.path, "-o", path)
    assert done.returncode == 0, done.stderr
    assert "modules" not in done.stderr
    table = symbols(path)
    path.unlink()
    ours = {(name, address) for address, _, _, name in table}
    theirs = {
        (symbol["name"], int(symbol["addr"], 16))
        for symbol in dump.truth["module_symbols"]
        if symbol["name"] not in ("$x", "$d")
    }
    assert len(theirs) > 200
    assert theirs <= ours, sorted(theirs - ours)[:20]
    files = {name for _, _, kind, name in table if kind == "FILE"}
    assert {f"[{module['name']}]" for module in dump.truth["modules"]} <= files
