"""ARM guests: pages, log, info, topelf and in-place conversion."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from kdump_elftool.kernel.pages import Category
from kdump_elftool.safe_text import log_text
from tests.lab.arm import DUMPS, FRAMES, KDUMPS, SEED, words_for
from tests.lab.dumps import GDB_MULTIARCH, LabDump, drgn_says, kdump_elftool
from tests.lab.in_gdb import stacks_in_gdb
from tests.lab.test_pages import classified

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_what_pages_are_is_drgns(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    judged = drgn_says("oracle_pages.py", dump.path, dump.vmlinux, tmp_path, seed=SEED, count=FRAMES)
    codes, known = classified(dump.path)
    wrong = [
        (hex(pfn), theirs, ours)
        for pfn, theirs in judged["frames"]
        if (ours := Category(codes[pfn]).name if known[pfn] else "UNKNOWN") != theirs
    ]
    assert not wrong, f"{len(wrong)} of {FRAMES}: {wrong[:10]}"
    assert len(judged["frames"]) == FRAMES
    seen = Counter(category for _, category in judged["frames"])
    assert all(seen[name] for name in ("KEPT", "FREE", "CACHE", "USER")), seen
    assert int((codes == Category.FREE).sum()) == judged["free"]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_the_log_is_the_guests(dump: LabDump) -> None:
    done = kdump_elftool("dmesg", "-r", *words_for(dump))
    assert (done.returncode, done.stderr) == (0, "")
    lines, told = done.stdout.splitlines(), [log_text(line.encode()) for line in dump.truth["dmesg"]]
    first = told.index(lines[0])
    assert lines[: len(told) - first] == told[first:]
    assert len(told) > 100
    assert (dump.scenario == "kdump") == any("Kernel panic - not syncing" in line for line in lines)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_info(dump: LabDump) -> None:
    done = kdump_elftool("info", *words_for(dump), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["arch"] == "arm"
    assert told["release"] == dump.truth["release"]
    assert told["page_table_levels"] == (3 if "lpae" in dump.row else 2)
    assert told["coverage"]["covered_pages"] == told["coverage"]["total_pages"]
    if dump.scenario == "kdump":
        assert told["panic_pid"] == dump.truth["crasher"]["pid"]
        assert told["panic_message"] == "sysrq triggered crash"


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_reduced_and_in_place(dump: LabDump, tmp_path: Path) -> None:
    """topelf's file is one for a 32-bit machine: changed in place gdb shows all tasks; and back again."""
    small = tmp_path / "small"
    done = kdump_elftool("topelf", "-q", "-l", "kernel", "-o", small, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert small.stat().st_size < dump.path.stat().st_size // 4
    checksum = hashlib.sha256(small.read_bytes()).hexdigest()
    done = kdump_elftool("tovelf", "-q", "--in-place", "-p", "-m", dump.vmlinux, small)
    assert (done.returncode, done.stderr) == (0, "")
    symbols = f"symbol-file {dump.vmlinux}"
    frames, shown = stacks_in_gdb(small, tmp_path, symbols, "p linux_banner", program=GDB_MULTIARCH)
    assert dump.truth["release"] in shown
    assert len(frames) > 80
    assert sum(len(stack) > 3 for stack in frames.values()) > 0.9 * len(frames)
    done = kdump_elftool("tovelf", "-q", "--undo", small)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(small.read_bytes()).hexdigest() == checksum
