"""``kd-blocked`` on machines in which tasks do wait for locks that others hold; and tasks that have ended.

The guest's program knows who holds what, since it arranged that; /proc said in which state and where each
task was; drgn reads the locks; newer kernels name the holders in their log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lab.dumps import LabDump, drgn_says, gdb, kdump_elftool, selected_rows

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMPS = [LabDump(row.name, row.scenario, "qemu.elf") for row in selected_rows() if row.scenario == "blocked"]
KINDS = {
    "waits-mutex": ("pipe", "mutex at {}, held by"),
    "waits-mutex-2": ("pipe", "mutex at {}, held by"),
    "waits-position": ("position", "mutex at {}, held by"),
    "waits-writing": ("inode", "rw_semaphore for writing at {}, held for writing by"),
    "waits-reading": ("inode", "rw_semaphore for reading at {}, held for writing by"),
    "waits-reader": ("inode", "rw_semaphore for writing at {}, last taken for reading by"),
    "waits-futex": ("futex", "rt_mutex at {}, held by"),
}
"""By the name of who waits: what drgn finds the lock by, and what is said of it."""
ENDED = {"is-ended", "ended-leader"}
"""Whose stacks are gone: a zombie, and the first thread of a process in which another one lives."""
D = 8
"""Tasks that the program leaves in that state: these without the last, a reader, and a vfork's parent."""


class Said(NamedTuple):
    """A line of the guest's program (lab/blocked.c)."""

    pid: int
    state: str
    wchan: str
    owner: int
    descriptor: int


@dataclass(frozen=True)
class Machine:
    """What the guest said, what drgn says, and what gdb showed: with symbols, and without them.

    ``table`` is what ``ps`` shows of the dump, and of the core; ``warned`` what was said in the making of it.
    """

    said: dict[str, Said]
    log: str
    judged: dict[str, Any]
    shown: tuple[str, str]
    traces: tuple[str, str]
    """Of the task that sleeps in a module: by its file and the vmlinux, and by the dump alone."""
    of_tasks: tuple[list[str], ...]
    """What each of ``questions()`` is answered, in both kinds of sessions."""
    table: tuple[list[dict[str, Any]], ...]
    warned: str

    def name(self, pid: int) -> str:
        (name,) = [name for name, said in self.said.items() if said.pid == pid]
        return f"{pid} {name} ({self.said[name].state})"


def told(dump: LabDump) -> dict[str, Said]:
    lines = re.findall(r"lab blocked: (\S+) (\d+) (\S) (\S+) (\d+) (-?\d+)", "\n".join(dump.truth["dmesg"]))
    return {
        name: Said(int(pid), state, wchan, int(owner), int(descriptor))
        for name, pid, state, wchan, owner, descriptor in lines
    }


def questions(said: dict[str, Said]) -> list[str]:
    """About tasks that have ended."""
    pids = {name: said[name].pid for name in ENDED}
    return [
        "ps -a",
        "ps -t",
        "kd-info",
        *(f"{command} {pids[name]}" for name in sorted(ENDED) for command in ("kd-task", "kd-bt")),
    ]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("blocked")
    said = told(dump)
    assert KINDS.keys() < said.keys()
    waits = [[said[name].pid, said[name].descriptor, kind] for name, (kind, _) in KINDS.items()]
    inside = {"inside": said["in-module"].pid, "module": str(dump.directory / "debug-modules" / "nbd.ko")}
    judged = drgn_says("oracle_blocked.py", dump.path, dump.vmlinux, folder, waits=waits, **inside)
    velf = folder / "velf"
    done = kdump_elftool("tovelf", "-p", "--json", "-o", velf, dump.path)
    assert done.returncode == 0, done.stderr
    warned = done.stderr
    tables = [json.loads(kdump_elftool("ps", "--json", each).stdout)["tasks"] for each in (dump.path, velf)]
    symbols = f"symbol-file -o {json.loads(done.stdout)['kaslr_offset']} {dump.vmlinux}"
    init = kdump_elftool("gdbinit").stdout.strip()
    mark = "echo \\n@\\n"
    commands = ["kd-blocked", f"kd-blocked {said['waits-futex'].pid}"]
    commands += [each for question in questions(said) for each in (mark, question)]
    start = [f"source {init}", "set width 0", f"core-file {velf}"]
    shown = [gdb(*start, *more, mark, *commands) for more in ([symbols], [])]
    assert not any("Traceback" in each.stderr or "Error" in each.stderr for each in shown), shown
    log = kdump_elftool("dmesg", dump.path).stdout
    (with_symbols, *more), (without, *others) = (each.stdout.split("\n@\n")[1:] for each in shown)
    with_files, alone = traces(dump, said["in-module"].pid, velf, folder)
    texts, of_tasks = (with_symbols, without), (more, others)
    yield Machine(said, log, judged, texts, (with_files, alone), of_tasks, tuple(tables), warned)
    velf.unlink()


def traces(dump: LabDump, pid: int, velf: Path, folder: Path) -> Iterator[str]:
    """``kd-bt`` of a process, as ``gdb`` opens the dump."""
    found = [["-m", str(dump.vmlinux), "--modules", str(dump.directory / "debug-modules")], []]
    for words in found:
        with pytest.MonkeyPatch.context() as patch:
            if not words:
                # nobody has told this one where the vmlinux is
                patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            done = kdump_elftool(
                "gdb", "--batch", "--velf", velf, *words, dump.path, "--", "-ex", f"kd-bt {pid}"
            )
        assert done.returncode == 0, done.stderr
        yield done.stdout.partition(f" task: {pid} in-module (S)\n")[2]


def frames(trace: str) -> list[tuple[str, str, int]]:
    """The function, the file and the line of each; no file and line 0 where gdb knows none."""
    found = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(\)(?: at (\S+):(\d+))?$", trace, re.M)
    return [(name, source, int(line or 0)) for name, source, line in found]


def blocks(text: str) -> dict[str, list[str]]:
    """The lines of each task under its name in parentheses."""
    found: dict[str, list[str]] = {}
    task = ""
    for line in text.splitlines():
        if line.startswith("    "):
            found[task].append(line.strip())
        else:
            task, _, place = line.partition(" in ")
            found[task] = [place]
    return found


def test_who_waits(machine: Machine) -> None:
    """What was in state D, by the guest and by drgn, and nothing else; and the one that was asked for."""
    wanted = {machine.name(said.pid) for said in machine.said.values() if said.state == "D"}
    assert len(wanted) == D
    assert wanted == {machine.name(pid) for pid in machine.judged["blocked"]}
    futex = machine.name(machine.said["waits-futex"].pid)
    for text in machine.shown:
        assert blocks(text).keys() == wanted | {futex}


def test_where_they_wait(machine: Machine) -> None:
    """The function of /proc/PID/wchan, with its line; without symbols none is made up."""
    with_symbols, without = map(blocks, machine.shown)
    for said in machine.said.values():
        name = machine.name(said.pid)
        if name in with_symbols:
            assert re.fullmatch(rf"{said.wchan} at \S+\.[ch]:\d+", with_symbols[name][0]), name
            assert without[name][0] == "a place that is not known"


def test_what_they_wait_for(machine: Machine) -> None:
    """The lock of which drgn says the same owner as the program, in both kinds of sessions."""
    for text in machine.shown:
        found = blocks(text)
        for (waiter, (_, form)), (lock, owner) in zip(KINDS.items(), machine.judged["holders"], strict=True):
            said = machine.said[waiter]
            assert owner == said.owner
            assert found[machine.name(said.pid)][1:] == [f"{form.format(lock)} {machine.name(owner)}"]
        for name in ("holds-reading", "waits-child"):
            assert len(found[machine.name(machine.said[name].pid)]) == 1


def test_the_kernel_says_the_same(machine: Machine) -> None:
    """Its own report of tasks that hang, which is why it panicked; since v6.15 with the holders."""
    hung = {int(pid) for pid in re.findall(r"INFO: task \S+:(\d+) blocked for more than", machine.log)}
    # who can be killed is left out of it: the reader, the vfork's parent
    killable = {machine.said[name].pid for name in ("holds-reading", "waits-child")}
    assert hung == set(machine.judged["blocked"]) - killable
    blockers = re.findall(r"task \S+:(\d+) .*likely owned by task \S+:(\d+)", machine.log)
    owners = {said.pid: said.owner for said in machine.said.values()}
    assert all(owners[int(pid)] == int(owner) for pid, owner in blockers)
    assert {int(pid) for pid, _ in blockers} == (hung if machine.judged["knows"] else set())


def test_functions_of_a_module_in_a_backtrace(machine: Machine) -> None:
    """With the lines of its file, as drgn has them; and by the dump's own names, without any file."""
    judged = [tuple(frame) for frame in machine.judged["inside"]]
    assert any(name.startswith("nbd_") for name, *_ in judged)
    with_files, without = map(frames, machine.traces)
    assert with_files == [(name, source, line) for name, _, _, source, line in judged]
    # of the entry's assembly the kernel knows another label
    assert [name for name, *_ in without[:-1]] == [
        name for name, _, inlined, *_ in judged[:-1] if not inlined
    ]
    assert without[-1][0].startswith(judged[-1][0])


def test_all_tasks_are_listed(machine: Machine) -> None:
    """Those that have ended too, in the states that drgn finds them in."""
    wanted = sorted(map(tuple, machine.judged["tasks"]))
    ended = {tid for _, tid, state in wanted if state in "ZX"}
    assert ended == {machine.said[name].pid for name in ENDED}
    for table in machine.table:
        rows = [(row["pid"], row["tid"], row["state"]) for row in table]
        assert sorted(row for row in rows if row[1]) == wanted
    for every, tree, info, *_ in machine.of_tasks:
        rows = re.findall(r"^[> ] *(\d+) +(\d+) +[-\d]+ +(\S) ", every, re.M)
        assert sorted((int(pid), int(tid), state) for pid, tid, state in rows if tid != "0") == wanted
        assert [tid for tid, state in re.findall(r"^[> ] *(\d+) .* ([ZX]) ", tree, re.M)] == [
            str(tid) for tid in sorted(ended)
        ]
        assert re.search(rf"^tasks: .*\b{len(ended)} Z\b", info, re.M)


def test_tasks_that_have_ended(machine: Machine) -> None:
    """They are shown as what they are, and nobody is warned of them; another thread has frames."""
    assert "makes no sense" not in machine.warned
    assert "readable registers" not in machine.warned
    for *_, leader, of_leader, zombie, of_zombie in machine.of_tasks:
        for text, name in ((leader, "ended-leader"), (zombie, "is-ended")):
            assert re.search(rf"^comm: +{name}$", text, re.M)
            assert re.search(rf"^pid: +{machine.said[name].pid}, process", text, re.M)
            assert re.search(r"^state: +Z, last on CPU \d$", text, re.M)
            assert "the task has ended" in text
        lines = [f"{machine.name(machine.said[name].pid)} has ended: it has no stack" for name in ENDED]
        assert of_zombie.strip() in lines
        heading, *trace, last = of_leader.strip().splitlines()
        assert heading == f"1 task: {machine.name(machine.said['lives-on'].pid)}"
        assert trace[0].startswith("#0")
        assert last in lines
