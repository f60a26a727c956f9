"""The gdb commands about tasks on real dumps, with drgn as their judge: one gdb for each core."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.plain.locks import LockFinder, Wait
from kdump_elftool.plain.tasks import all_tasks
from tests.lab.dumps import (
    GDB,
    GDB_MULTIARCH,
    HERE,
    IN_CI,
    LabDump,
    drgn_says,
    kdump_elftool,
    one_of_each_kernel,
    one_of_each_row,
    selected_dumps,
)
from tests.lab.in_gdb import shown_in_gdb

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

ARM64 = [dump for dump in one_of_each_row() if dump.arch == "aarch64" and not dump.made_by.guest.fragments]
ALL_DUMPS = [dump for dump in (*selected_dumps(), *ARM64) if dump.file in ("vmcore", "qemu.elf")]
DUMPS = one_of_each_kernel(ALL_DUMPS) if IN_CI else ALL_DUMPS
VARIABLES = ("runqueues.nr_running", "runqueues.cpu", "runqueues.clock", "runqueues", "kernel_cpustat")
FRAME = re.compile(r"^#\d+ +(?:0x([0-9a-f]+) in )?(\S+) \(\)", re.M)
GROUP = re.compile(r"^\d+ tasks?: (.*)\n((?:.|\n.)*)", re.M)
OWNER = re.compile(r"(-?\d+) (.{,16}?) \((\S)(?:, on CPU (\d+))?\)(?:, |$)")


@dataclass(frozen=True)
class Shown:
    """What gdb printed for each command, and what drgn says of the original dump."""

    dump: LabDump
    said: dict[str, Any]
    outputs: dict[str, str]
    poor: dict[str, str]
    functions: dict[str, Any]

    def __getitem__(self, command: str) -> str:
        return self.outputs[command]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("kd_tasks")
    velf, poor = folder / "velf", folder / "poor"
    done = kdump_elftool("tovelf", "-p", "-l", "user", "--json", "-o", velf, dump.path)
    assert done.returncode == 0, done.stderr
    offset = json.loads(done.stdout)["kaslr_offset"] or "0"
    assert kdump_elftool("tovelf", "-q", "-o", poor, dump.path).returncode == 0
    said = drgn_says("oracle_kd_tasks.py", dump.path, dump.vmlinux, folder)
    known = ["kd-info", "kd-task " + " ".join(said["tasks"]), "kd-bt all"]
    wanted, functions = folder / "wanted.json", folder / "functions.json"
    wanted.write_text(json.dumps({"tasks": list(said["tasks"]), "cpus": list(said["current"])}))
    percpu = [f"kd-percpu {name}" for name in VARIABLES]
    commands = [*known, *percpu, "kd-bt", "kd-bt 1 cpu=0", f"source {HERE / 'gdb_kd_functions.py'}"]
    program = GDB_MULTIARCH if dump in ARM64 else GDB
    symbols = f"symbol-file -o {offset} {dump.vmlinux}"
    files = {"KD_WANTED": str(wanted), "KD_ANSWER": str(functions)}
    outputs = shown_in_gdb(velf, commands, symbols, program=program, **files)
    poor_outputs = shown_in_gdb(poor, [*known, "kd-percpu runqueues"], program=program)
    yield Shown(dump, said, outputs, poor_outputs, json.loads(functions.read_text()))
    velf.unlink()
    poor.unlink()


def fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z ]+): +(.*)$", text, re.M))


def test_info(shown: Shown) -> None:
    """What info says of the dump, and what drgn counts."""
    told = json.loads(kdump_elftool("info", "--json", shown.dump.path).stdout)
    for found in (fields(shown["kd-info"]), fields(shown.poor["kd-info"])):
        assert found["release"] == f"{shown.said['release']} ({shown.said['machine']})"
        assert found["panic message"] == (told.get("panic_message") or "none in the log")
        if told.get("panic_pid") is not None:
            assert (
                found["by"] == f"CPU {told['panic_cpu']}, pid {told['panic_pid']}, comm {told['panic_comm']}"
            )
        count, states = found["tasks"].split(": ")
        assert int(count) == len(shown.said["tasks"])
        by_state = {state: int(number) for number, state in re.findall(r"(\d+) (\S)", states)}
        wanted = [task["state"] for task in shown.said["tasks"].values()]
        assert by_state == {state: wanted.count(state) for state in set(wanted)}
        taints = shown.said["taints"]
        assert found["tainted"] == "no" if not taints else found["tainted"].endswith(f"({taints:#x})")


@pytest.mark.parametrize("core", ["with tasks and symbols", "with neither"])
def test_task(shown: Shown, core: str) -> None:
    """Every member of every task that drgn finds."""
    outputs = shown.outputs if core == "with tasks and symbols" else shown.poor
    (text,) = [value for command, value in outputs.items() if command.startswith("kd-task")]
    found = [fields(part) for part in text.split("\n\n")]
    assert len(found) == len(shown.said["tasks"]) > 40
    for task, said in zip(found, shown.said["tasks"].values(), strict=True):
        where = "on" if said["on_cpu"] else "last on"
        threads = f", {said['threads']} threads" if said["threads"] > 1 else ""
        tgid, comm, parent = said["parent"]
        command = {} if said["mm"] == "0x0" else {"command": said["command"]}
        if command and outputs is shown.poor:
            command = {"command": "in memory of the process that is not in this core"}
        assert task == {
            "task": said["task"],
            "comm": said["comm"],
            "pid": f"{said['tid']}, process {said['tgid']}{threads}",
            "state": f"{said['state']}, {where} CPU {said['cpu']}",
            "flags": task["flags"],
            "stack": task["stack"],
            "started": f"{said['started'] // 10**9}.{said['started'] % 10**9:09} s after boot",
            "user": "uid {}, euid {}, gid {}, egid {}".format(*said["ids"]),
            "parent": f"{tgid} {comm}, {parent}",
            "children": str(said["children"]),
            "memory": "none of its own" if said["mm"] == "0x0" else f"mm_struct {said['mm']}",
            **command,
        }
        assert task["flags"].split(" ")[0] == said["flags"]
        assert task["stack"].split(",")[0] == said["stack"]


def kernel_part(frames: list[list[Any]]) -> list[list[str]]:
    """Up to user space, of which drgn may have seen some words."""
    user = next((at for at, (pc, _) in enumerate(frames) if not pc >> 63), len(frames))
    return [[f"{pc:x}", name] for pc, name in frames[:user]]


def test_backtraces(shown: Shown) -> None:
    """Each task once, with the addresses and functions that drgn finds."""
    groups = GROUP.findall(shown["kd-bt all"])
    stacks = {}
    for heading, body in groups:
        owners = OWNER.findall(heading)
        assert len(owners) == heading.count("(")
        for lwp, comm, state, cpu in owners:
            said = shown.said["tasks"][lwp]
            assert (comm, state, cpu) == (said["comm"], said["state"], str(said["cpu"]) if cpu else "")
            assert bool(cpu) == said["on_cpu"]
            assert lwp not in stacks
            stacks[lwp] = FRAME.findall(body)
    assert set(stacks) == set(shown.said["tasks"])
    assert len({body for _, body in groups}) == len(groups) < len(stacks)
    compared = 0
    for lwp, frames in shown.said["stacks"].items():
        wanted = kernel_part(frames or [])
        found = [[address.lstrip("0"), function] for address, function in stacks[lwp] if address]
        assert [pc for pc, _ in found] == [pc for pc, _ in wanted], lwp
        named = [pair for pair in zip(found, wanted, strict=True) if pair[1][1]]
        assert [function for (_, function), _ in named] == [name for _, (_, name) in named], lwp
        compared += len(named)
    assert compared > 3 * len(stacks)


def test_percpu(shown: Shown) -> None:
    """Where a variable is, a member of one, and its value where it is a number."""
    for name in VARIABLES:
        lines = shown[f"kd-percpu {name}"].splitlines()
        found = {}
        for line in lines:
            cpu, at, value = re.fullmatch(r"CPU (\d+): (0x[0-9a-f]+) = (.*)", line).groups()
            found[cpu] = (at, value)
        said = shown.said["percpu"][name]
        assert {cpu: at for cpu, (at, _) in found.items()} == {cpu: at for cpu, (at, _) in said.items()}
        assert [value for _, value in found.values()] == [
            f"{{struct {'rq' if name == 'runqueues' else name}}}" if value is None else str(value)
            for _, value in said.values()
        ]
    poor = re.findall(r"^CPU (\d+): (0x[0-9a-f]+)$", shown.poor["kd-percpu runqueues"], re.M)
    assert dict(poor) == {cpu: at for cpu, (at, _) in shown.said["percpu"]["runqueues"].items()}


def test_functions(shown: Shown) -> None:
    for lwp, said in shown.said["tasks"].items():
        at, tid, kind = shown.functions["tasks"][lwp]
        assert (at, tid, kind.removeprefix("struct ")) == (said["task"], said["tid"], "task_struct *")
    running = {str(said["cpu"]): said["tid"] for said in shown.said["tasks"].values() if said["on_cpu"]}
    assert shown.functions["current"] == running
    assert shown.functions["percpu"] == {
        cpu: at for cpu, (at, _) in shown.said["percpu"]["runqueues"].items()
    }


def test_a_core_without_tasks_says_how_to_have_them(shown: Shown) -> None:
    assert "tovelf -p" in shown.poor["kd-bt all"]
    assert shown.poor["kd-bt all"].count(" task: ") + shown.poor["kd-bt all"].count(" tasks: ") > 0


@dataclass(frozen=True)
class Planted:
    """A kernel some words of which are others than in its dump."""

    target: DumpTarget
    words: dict[int, bytes]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def put(self, vaddr: int, value: int, size: int = 8) -> None:
        self.words[vaddr] = value.to_bytes(size, "little")

    def read(self, vaddr: int, size: int, /) -> bytes:
        data = bytearray(self.target.read(vaddr, size))
        for at, word in self.words.items():
            low, high = max(at, vaddr), min(at + len(word), vaddr + size)
            if low < high:
                data[low - vaddr : high - vaddr] = word[low - at : high - at]
        return bytes(data)


def plant(kernel: Planted, locks: dict[str, int], kind: str, lock: int, waiters: dict[int, int]) -> None:
    """Waiters by the address of their task in the list of a lock, as drgn says that they are laid out."""
    waiter = "mutex_waiter" if kind == "mutex" else "rwsem_waiter"
    nodes = [at + locks[f"{waiter}.list"] for at in waiters.values()]
    if f"{kind}.first_waiter" in locks:
        kernel.put(lock + locks[f"{kind}.first_waiter"], next(iter(waiters.values())))
    else:
        nodes.append(lock + locks[f"{kind}.wait_list"])
    for number, node in enumerate(nodes):
        kernel.put(node, nodes[(number + 1) % len(nodes)])
        kernel.put(node + 8, nodes[number - 1])
    for task, at in waiters.items():
        kernel.put(at + locks[f"{waiter}.task"], task)
        kernel.put(at - 0x100, lock)
        if kind == "rw_semaphore":
            kernel.put(at + locks["rwsem_waiter.type"], 1, 4)


def test_locks_as_the_kernel_lays_them_out(shown: Shown) -> None:
    """Sleeping tasks made to wait: by the types of this very kernel, of which drgn says how they look."""
    locks = shown.said["locks"]
    with InputFile.open(str(shown.dump.path)) as file:
        opened = open_dump(file)
        kernel = Planted(DumpTarget.of(opened, open_kernel(opened, KernelRequest())), {})
        tasks = all_tasks(kernel).tasks
        one, two, three, four, owner = [task for task in tasks if task.state == "S" and task.tid > 2][:5]
        stack = {
            task: int(shown.said["tasks"][str(task.tid)]["stack"], 16) for task in (one, two, three, four)
        }
        mutex, semaphore = stack[one] + 0x1000, stack[four] + 0x1000
        waiters = {task.vaddr: stack[task] + 0x2000 for task in (one, two, three)}
        plant(kernel, locks, "mutex", mutex, {at: waiters[at] for at in (one.vaddr, two.vaddr)})
        kernel.put(mutex + locks["mutex.owner"], owner.vaddr | 1)
        plant(kernel, locks, "rw_semaphore", semaphore, {three.vaddr: waiters[three.vaddr]})
        kernel.put(semaphore + locks["rw_semaphore.owner"], owner.vaddr)
        kernel.put(semaphore + locks["rw_semaphore.count"], 3)
        finder = LockFinder(kernel, tasks)
        by_mutex = Wait("mutex", mutex, owner.vaddr, "held by")
        assert [finder.wait(task) for task in (one, two)] == [by_mutex] * 2
        by_semaphore = Wait("rw_semaphore for reading", semaphore, owner.vaddr, "held for writing by")
        assert finder.wait(three) == by_semaphore
        assert all(finder.wait(task) is None for task in tasks if task.vaddr not in waiters)
