"""The gdb commands about tasks on dumps of 32-bit machines, against what the guests listed themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.dumps import LabDump, kdump_elftool, one_of_each_row
from tests.lab.in_gdb import shown_in_gdb

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMPS = [dump for dump in one_of_each_row() if dump.arch in ("i386", "arm", "mipsel", "mips")]
FAILED = re.compile("Traceback|Error|Exception|unknown|not known")
PASSING = ("kworker", "sleep", "sh")
"""Tasks that come and go between the guest's list and the dump."""


@dataclass(frozen=True)
class Shown:
    """What gdb printed for each command, and the tasks that ps lists by number."""

    dump: LabDump
    listed: dict[int, str]
    outputs: dict[str, str]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("kd_tasks") / "velf"
    words = ("-m", dump.vmlinux, *dump.operands)
    registers = ("--cpu-regs", dump.path.with_name("registers.txt")) if dump.file == "qemu.raw" else ()
    done = kdump_elftool("tovelf", "-p", "--json", "-o", velf, *words, *registers)
    assert done.returncode == 0, done.stderr
    offset = json.loads(done.stdout)["kaslr_offset"] or "0"
    ps = json.loads(kdump_elftool("ps", "--json", *words).stdout)["tasks"]
    listed = {task["lwp"]: task["comm"] for task in ps}
    commands = [
        "kd-info",
        "kd-task " + " ".join(map(str, listed)),
        "kd-bt all",
        "kd-blocked " + " ".join(map(str, listed)),
        "kd-percpu runqueues.cpu",
        "kd-percpu runqueues",
        'python print(gdb.parse_and_eval("$kd_task(1)")["comm"].string())',
    ]
    symbols = f"symbol-file -o {offset} {dump.vmlinux}"
    yield Shown(dump, listed, shown_in_gdb(velf, commands, symbols))
    velf.unlink()


def test_info(shown: Shown) -> None:
    text = shown.outputs["kd-info"]
    truth = shown.dump.truth
    assert re.search(rf"^release: +{re.escape(truth['release'])} \(\w+\)$", text, re.M)
    assert re.search(rf"^tasks: +{len(shown.listed)}: ", text, re.M)
    assert not FAILED.search(text)


def test_tasks_are_the_guests(shown: Shown) -> None:
    (text,) = [value for command, value in shown.outputs.items() if command.startswith("kd-task")]
    found = {
        int(tid): (int(pid), comm)
        for comm, tid, pid in re.findall(r"^comm: +(.*)\npid: +(\d+), process (\d+)", text, re.M)
        if int(tid)
    }
    expected = {task["tid"]: (task["pid"], task["comm"]) for task in shown.dump.truth["tasks"]}
    for tid in set(found) ^ set(expected):
        assert (found.get(tid) or expected[tid])[1].startswith(PASSING), tid
    both = set(found) & set(expected)
    assert len(both) > (25 if shown.dump.is_small else 40)
    different = [tid for tid in both if found[tid] != expected[tid]]
    assert all(expected[tid][1].startswith("kworker") for tid in different)  # named after what they do


def test_backtraces_go_to_where_tasks_sleep(shown: Shown) -> None:
    groups = shown.outputs["kd-bt all"].split("\n\n")
    seen = {}
    for group in groups:
        heading, *frames = group.splitlines()
        owners = heading.partition(": ")[2]
        for lwp, comm, cpu in re.findall(r"(-?\d+) (.{1,16}?) \(\S(, on CPU \d+)?\)(?:, |$)", owners):
            assert int(lwp) not in seen
            seen[int(lwp)] = comm
            if not cpu:
                names = [frame.split(" in ")[-1].split()[0] for frame in frames if frame.startswith("#")]
                assert "schedule" in names or "schedule_idle" in names or "ret_from_fork" in names, group
    assert seen == shown.listed
    assert 5 < len(groups) < len(seen)


def test_percpu(shown: Shown) -> None:
    """Each run queue has the number of its CPU in it."""
    cpus = sum(lwp < 0 for lwp in shown.listed)
    assert shown.outputs["kd-percpu runqueues"].count("= {struct rq}") == cpus
    numbers = re.findall(r"^CPU (\d+): 0x[0-9a-f]+ = (\d+)$", shown.outputs["kd-percpu runqueues.cpu"], re.M)
    assert [int(cpu) for cpu, _ in numbers] == [int(value) for _, value in numbers]
    # the kernel of a single CPU has no such member
    assert len(numbers) == (cpus if shown.listed[-1] != "swapper" else 0)


def test_blocked_and_function(shown: Shown) -> None:
    (text,) = [value for command, value in shown.outputs.items() if command.startswith("kd-blocked")]
    assert len(re.findall(r"^-?\d+ .* \(\S\) in \S", text, re.M)) == len(shown.listed)
    assert list(shown.outputs.values())[-1] == "init\n"
