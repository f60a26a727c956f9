"""``kdump_gdbinit`` in the gdb of this system, whose version may be one that can't read signed addresses.

Judges: drgn by its return addresses, and the newer gdb of the root trixie by all that it shows of a frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.roots import run_in_root
from tests.lab.dumps import GDB_MULTIARCH, HERE, LabDump, drgn_says, gdb, kdump_elftool, tool_root
from tests.lab.in_gdb import by_thread, gdbinit
from tests.lab.test_arm64 import DUMPS

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.root, pytest.mark.slow]

ROOT = HERE.parents[1]
CHOSEN = [dump for dump in DUMPS if dump.file in ("vmcore", "qemu.elf") and dump.scenario != "machine"]
ENTRIES = ("el0t_64_sync", "ret_from_fork", "__primary_switched", "__secondary_switched", "el0t_64_irq")
UNSURE = re.compile("<optimized out>|<error reading|Backtrace stopped|No locals|No symbol table")
EVERYTHING = "thread apply all bt full"


@dataclass(frozen=True)
class Core:
    """A velf with a thread a task."""

    dump: LabDump
    velf: Path
    commands: tuple[str, ...]
    on_cpu: frozenset[int]


@pytest.fixture(scope="module", params=CHOSEN, ids=lambda dump: dump.id)
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("gdbside") / "velf"
    done = kdump_elftool("tovelf", "-p", "-m", dump.vmlinux, "--json", "-o", velf, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    commands = (
        "set width 0",
        f"core-file {velf}",
        f"symbol-file -o {told['kaslr_offset']} {dump.vmlinux}",
    )
    yield Core(dump, velf, commands, frozenset(thread["lwp"] for thread in told["threads"]))
    velf.unlink()


def ours(core: Core, *commands: str, **environment: str) -> str:
    done = gdb(
        *core.commands,
        "set python print-stack full",
        f"source {gdbinit()}",
        *commands,
        program=GDB_MULTIARCH,
        **environment,
    )
    assert "Error" not in done.stderr and "Exception" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def newer(core: Core, *commands: str) -> str:
    """The same in the root trixie, where the paths are the same."""
    argv = [GDB_MULTIARCH, "-nx", "-nh", "-batch", "-iex", "set debuginfod enabled off"]
    for command in (*core.commands, *commands):
        argv += ["-ex", command]
    package = gdbinit().parents[1]
    folders = (core.velf.parent, core.dump.vmlinux.parent, package)
    done = run_in_root(tool_root("trixie"), argv, {at: str(at) for at in folders}, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def known_lines(text: str) -> list[str]:
    """What a thread's frames show, without what one of them can't tell or what lies beyond the end."""
    lines = [re.sub(r" \[PAC\]", "", line) for line in text.splitlines()]
    unknown = (at for at, line in enumerate(lines) if re.match(r"#\d+ +0x\w+ in \?\?", line))
    beyond = next(unknown, len(lines))
    return [line for line in lines[:beyond] if line and not UNSURE.search(line)]


def test_frames_are_drgns(core: Core, tmp_path: Path) -> None:
    """Every return address of every sleeping task, up to where it entered the kernel or was made."""
    judged = drgn_says("oracle_tasks.py", core.dump.path, core.dump.vmlinux, tmp_path)
    answer = tmp_path / "stacks.json"
    ours(core, f"source {HERE / 'gdb_stacks.py'}", KD_ANSWER=str(answer))
    found = {int(lwp): frames for lwp, frames in json.loads(answer.read_text()).items()}
    assert set(found) == set(map(int, judged["tasks"]))
    assert len(judged["stacks"]) > 40
    for lwp, frames in judged["stacks"].items():
        stack = found[int(lwp)]
        assert stack[-1] == 0, lwp
        assert stack[:-1] == frames, (lwp, list(map(hex, frames)), list(map(hex, stack)))


@pytest.fixture(scope="module")
def mine(core: Core) -> dict[int, str]:
    return by_thread(ours(core, EVERYTHING))


def test_tasks_end_where_they_entered_the_kernel(core: Core, mine: dict[int, str]) -> None:
    for lwp in mine.keys() - core.on_cpu:
        text = mine[lwp]
        assert "Backtrace stopped" not in text
        frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(\S+) \(", text, re.M)
        assert frames[-1] == "??" and frames[-2] in ENTRIES, text
        assert "schedule" in text or frames[-2] == "ret_from_fork", text


@pytest.fixture(scope="module")
def theirs(core: Core) -> tuple[str, str]:
    """What the newer gdb shows before and after it sourced the file."""
    again = ("echo \\n--again--\\n", f"source {gdbinit()}", "maint flush register-cache", EVERYTHING)
    before, after = newer(core, EVERYTHING, *again).split("\n--again--\n")
    return before, after


def test_frames_show_what_a_newer_gdb_shows(
    core: Core, mine: dict[int, str], theirs: tuple[str, str]
) -> None:
    """Arguments and locals with their values: the registers of every frame are right, and its CFA.

    Not of the idle tasks.  start_kernel() ends in a call that does not return, and in 6.12 and 7.2 gdb 16
    takes the frame for what it is behind that: drgn has the command line where this package has it.
    """
    judged = by_thread(theirs[0])
    assert set(mine) == set(judged)
    compared = 0
    for lwp in mine.keys() - core.on_cpu:
        lines, wanted = known_lines(mine[lwp]), known_lines(judged[lwp])
        if lwp > 0:
            assert lines == wanted, lwp
            compared += len(wanted)
    assert compared > 10 * len(mine)


def test_frames_without_call_frames_show_nothing_wrong(core: Core, mine: dict[int, str]) -> None:
    """As in modules: the same return addresses, fewer values, and none that differs.

    Not of the idle tasks: the code of start_kernel() is freed, so that nothing says how large its frame is.
    """
    blind = "python import kdump_elftool.gdbside.frame_files as f; f.FrameFiles.row = lambda *_: None"
    found = by_thread(ours(core, blind, EVERYTHING))
    assert set(found) == set(mine)
    compared = 0
    for lwp in mine.keys() - core.on_cpu:
        if lwp < 0:
            continue
        lines, wanted = found[lwp].splitlines(), mine[lwp].splitlines()
        assert len(lines) == len(wanted), lwp
        sure = [pair for pair in zip(lines, wanted, strict=True) if not any(map(UNSURE.search, pair))]
        assert [line for line, _ in sure] == [line for _, line in sure], lwp
        compared += len(sure)
    assert compared > 5 * len(mine)


def test_newer_gdb_stays_as_it_is(theirs: tuple[str, str]) -> None:
    """But where it stopped since the code is not in the core: start_kernel() is freed.

    Its functions are the same; its locals gdb alone has wrong (see test_frames_show_what_a_newer_gdb_shows).
    """
    before, after = map(by_thread, theirs)
    assert before.keys() == after.keys()
    other = [lwp for lwp, shown in before.items() if after[lwp] != shown]
    for lwp in other:
        assert lwp < 0 and "Backtrace stopped" in before[lwp]
        known = [line for line in known_lines(before[lwp]) if line.startswith("#")]
        assert [line for line in known_lines(after[lwp]) if line.startswith("#")][: len(known)] == known
        assert "start_kernel" in after[lwp] and "Backtrace stopped" not in after[lwp]
    assert len(other) <= 1
