"""The seed's own flow: makedyn, then plain ``gdb vmlinux vmcore``; gdb moves the symbols by AT_ENTRY."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.dumps import LabDump, gdb, kdump_elftool

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")


def test_gdb_moves_a_makedyn_vmlinux_by_itself(tmp_path: Path) -> None:
    DUMP.check()
    vmlinux, velf = tmp_path / "vmlinux", tmp_path / "velf"
    before = DUMP.vmlinux.stat()
    done = kdump_elftool("makedyn", "-o", vmlinux, DUMP.vmlinux)
    assert done.returncode == 0, done.stderr
    assert DUMP.vmlinux.stat().st_mtime_ns == before.st_mtime_ns == vmlinux.stat().st_mtime_ns

    done = kdump_elftool("tovelf", "-l", "all", "-i", DUMP.path, "-m", vmlinux, "-o", velf)
    assert done.returncode == 0, done.stderr
    shown = gdb("thread apply all bt", "info symbol panic", args=(str(vmlinux), str(velf)))
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stdout + shown.stderr
    vmlinux.unlink()
    velf.unlink()
