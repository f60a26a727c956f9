"""ARM guests: every task a thread, with the frames that gdb shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.arm import CPUS, DUMPS, KDUMPS, words_for
from tests.lab.dumps import GDB_MULTIARCH, LabDump, drgn_says, kdump_elftool
from tests.lab.in_gdb import by_thread, stacks_in_gdb

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]


@dataclass(frozen=True)
class Threads:
    """A velf with a thread a task, and what gdb shows of each: return addresses, and the text of ``bt``."""

    dump: LabDump
    velf: Path
    summary: dict
    stacks: dict[int, list[int]]
    shown: dict[int, str]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def threads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threads]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("arm") / "velf"
    more: list[str | Path] = ["-p", "-m", dump.vmlinux, "--json", "-o", velf]
    if dump.file == "qemu.raw":
        more += ["--cpu-regs", dump.directory / "registers.txt"]
    done = kdump_elftool("tovelf", *words_for(dump), *more)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["warnings"] == []
    symbols = f"symbol-file -o {summary['kaslr_offset']} {dump.vmlinux}"
    stacks, shown = stacks_in_gdb(velf, velf.parent, symbols, "thread apply all bt", program=GDB_MULTIARCH)
    yield Threads(dump, velf, summary, stacks, by_thread(shown))
    velf.unlink()


def test_every_task_of_the_guest_is_a_thread(threads: Threads) -> None:
    """And an idle task for each CPU; workers of the kernel come and go by themselves."""
    told = {task["tid"]: task["comm"] for task in threads.dump.truth["tasks"]}
    expected = set(told) | {-cpu - 1 for cpu in range(CPUS)}
    listed = kdump_elftool("ps", *words_for(threads.dump), "-m", threads.dump.vmlinux, "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    comms = {task["lwp"]: task["comm"] for task in json.loads(listed.stdout)["tasks"]}
    assert set(comms) == set(threads.stacks)
    for lwp in set(comms) ^ expected:
        assert comms.get(lwp, told.get(lwp, "")).startswith("kworker"), lwp
    same = [lwp for lwp in told if comms.get(lwp) == told[lwp]]
    assert len(same) > 70
    assert threads.summary["nr_threads"] == len(comms)


def test_frames_have_names_and_lines(threads: Threads) -> None:
    """Sleeping tasks stand in schedule; each CPU in its panic, its idle loop, or wherever it was stopped."""
    on_cpu = {thread["lwp"] for thread in threads.summary["threads"]}
    assert len(on_cpu) == CPUS
    for lwp, text in threads.shown.items():
        if lwp not in on_cpu:
            assert re.search(
                r"^#[1-3] .*\bschedule(_idle|_timeout)? \(.* at kernel/sched/core\.c:\d+$", text, re.M
            ), (
                lwp,
                text,
            )
            assert len(threads.stacks[lwp]) >= 4
    whole = "\n".join(threads.shown.values())
    if threads.dump.scenario == "kdump":
        crasher = threads.dump.truth["crasher"]["pid"]
        for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger", "vfs_write"):
            assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", threads.shown[crasher]), function
    assert re.search(r"\bdo_idle\b.* at kernel/sched/idle\.c:\d+", whole)
    assert re.search(r"\bdo_wait\b.* at kernel/exit\.c:\d+", threads.shown[1])


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_tasks_and_frames_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    """Return addresses of every sleeping task, up to where drgn's unwinder stops."""
    dump.check()
    judged = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, tmp_path)
    velf = tmp_path / "velf"
    done = kdump_elftool("tovelf", "-q", "-p", "-m", dump.vmlinux, "-o", velf, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    stacks, _ = stacks_in_gdb(velf, tmp_path, f"symbol-file {dump.vmlinux}", program=GDB_MULTIARCH)
    assert set(stacks) == set(map(int, judged["tasks"]))
    compared = 0
    for lwp, frames in judged["stacks"].items():
        ours = stacks[int(lwp)]
        length = min(len(frames), len(ours))
        assert length >= min(4, len(frames)), lwp
        assert frames[:length] == ours[:length], (lwp, list(map(hex, frames)), list(map(hex, ours)))
        compared += length
    assert compared > 4 * len(stacks)
