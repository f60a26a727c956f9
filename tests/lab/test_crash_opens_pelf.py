"""crash on what topelf wrote: the same tasks and the same backtrace as on the dump itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.roots import run_in_root
from tests.lab.dumps import LabDump, kdump_elftool, tool_root

pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")


def ask_crash(root: Path, core: Path, scratch: Path) -> str:
    commands = scratch / "commands"
    commands.write_text("ps\nbt\nquit\n")
    binds = {DUMP.vmlinux.parent: "/mnt/kernel", core.parent.resolve(): "/mnt/core", scratch: "/mnt/scratch"}
    argv = [
        "crash",
        "-i",
        "/mnt/scratch/commands",
        f"/mnt/kernel/{DUMP.vmlinux.name}",
        f"/mnt/core/{core.name}",
    ]
    done = run_in_root(root, argv, binds=binds, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout[done.stdout.index("crash> ps") :]


def test_same_tasks_and_backtrace(tmp_path: Path) -> None:
    DUMP.check()
    root = tool_root("sid")
    pelf = tmp_path / "pelf"
    done = kdump_elftool("topelf", DUMP.path, "-o", pelf, "-q")
    assert done.returncode == 0, done.stderr

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    answers = [ask_crash(root, core, scratch) for core in (DUMP.path, pelf)]
    assert answers[0] == answers[1]
    assert len(re.findall(r"^[> ]+\d+ ", answers[1], re.M)) > 40
    assert "sysrq_handle_crash" in answers[1]
    pelf.unlink()
