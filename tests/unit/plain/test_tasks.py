"""Single tasks and CPUs as a debugger reads them; that they equal the columns is a property test."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kdump_elftool.errors import FaultError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.jobs.tasks import list_tasks, task_table
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.plain.percpu import find_percpu
from kdump_elftool.plain.task_states import LETTERS, reported_bits, state_letter, state_letters
from kdump_elftool.plain.tasks import all_tasks
from tests.builders.task_kernel import make_task_kernel
from tests.builders.tasks import OFFSETS, PlainTarget, make_tasks
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

OLD = (
    "R (running)",
    "S (sleeping)",
    "D (disk sleep)",
    "T (stopped)",
    "T (tracing stop)",
    "Z (zombie)",
    "X (dead)",
)
V3_9 = (*OLD[:4], "t (tracing stop)", *OLD[5:], "x (dead)", "K (wakekill)", "W (waking)", "P (parked)")
V4_14 = (*V3_9[:5], "X (dead)", "Z (zombie)", "P (parked)", "I (idle)")


def told(space: KernelSpace, **keys: object) -> PlainTarget:
    return PlainTarget(space.virtual(), info_of(**keys), "<", 8)


def with_array(*texts: str) -> PlainTarget:
    """A kernel with this ``task_state_array``, and something else behind it."""
    space = KernelSpace()
    for number, text in enumerate((*texts, "/proc")):
        space.put(0x1000 + 8 * number, "Q", BASE + 0x2000 + 32 * number)
        space.put(0x2000 + 32 * number, "24s", text.encode())
    return told(space, SYMBOL_task_state_array=BASE + 0x1000)


@pytest.mark.parametrize(
    ("texts", "letters"), [(OLD, "RSDTTZX"), (V3_9, "RSDTtZXxKWP"), (V4_14, "RSDTtXZPI")]
)
def test_letters_are_the_kernels_own(texts, letters):
    assert state_letters(with_array(*texts)) == letters


@pytest.mark.parametrize("texts", [(), ("S (sleeping)",), OLD[:4], ("R\x1b (running)", *OLD[1:])])
def test_letters_of_new_kernels_where_none_can_be_read(texts):
    assert state_letters(with_array(*texts)) == LETTERS
    assert state_letters(told(KernelSpace())) == LETTERS


# as the functions of v2.6.32, v3.9 and v6.1 in fs/proc/array.c give them
@pytest.mark.parametrize(
    ("texts", "state", "exit_state", "letter"),
    [
        (OLD, 0, 0, "R"),
        (OLD, 1, 0, "S"),
        (OLD, 0x82, 0, "D"),
        (OLD, 8, 0, "T"),
        (OLD, 0, 16, "Z"),
        (OLD, 64, 32, "X"),
        (V3_9, 8, 0, "t"),
        (V3_9, 0x402, 0, "D"),
        (V3_9, 64, 16, "Z"),
        (V4_14, 0x402, 0, "I"),
        (V4_14, 0x40, 0, "P"),
        (V4_14, 0x80, 16, "X"),
        (V4_14, 0x80, 32, "Z"),
        (V4_14, 0x8000, 0, "D"),
        (V4_14, 0x1000, 0, "D"),
    ],
)
def test_letter_of_a_state(texts, state, exit_state, letter):
    letters = state_letters(with_array(*texts))
    assert state_letter(state, exit_state, letters) == letter


@pytest.mark.parametrize("letters", ["RSDTTZX", "RSDTtXZPI", "RSDTtXZI", "RSDTtZXPPPPPPPPI"])
def test_every_state_has_a_letter(letters):
    for state in (*range(256), 0x402, 0x1000, 0x8000, 0xFFFFFFFF):
        assert state_letter(state, state >> 1, letters) in letters
    assert reported_bits(letters) in (0x3F, 0x7F)


def test_cpus_of_an_old_kernel():
    """Until v4.4 cpu_present_mask was a pointer to the bits."""
    space = KernelSpace()
    space.put(0x1000, "I", 4)
    space.put(0x2000, "Q", BASE + 0x2800)
    space.put(0x2800, "Q", 0b1010)
    space.put(0x3000, "4Q", *(0x10000 * number for number in range(4)))
    symbols = {"nr_cpu_ids": 0x1000, "cpu_present_mask": 0x2000, "__per_cpu_offset": 0x3000}
    percpu = find_percpu(told(space, **{f"SYMBOL_{name}": BASE + at for name, at in symbols.items()}))
    assert percpu is not None
    assert percpu.addresses(0x80) == [(1, 0x10080), (3, 0x30080)]


def test_cpu_of_a_thread_info_on_the_stack():
    """As it was everywhere before v4.9.  These stacks begin in init_task, where nothing else is read."""
    memory = make_tasks("both", [1, 2])
    for number, (vaddr, *_) in enumerate(memory.expected):
        bottom = memory.base + 0x40 * (number + 1)
        memory.put(vaddr + OFFSETS["task_struct.stack"], 8, bottom)
        memory.put(bottom + 0x10, 4, 5 + number)
    lines = {**memory.info.values, "OFFSET(thread_info.cpu)": "16"}
    del lines["OFFSET(task_struct.cpu)"]
    found = all_tasks(PlainTarget(memory.virtual(), VmcoreInfo(lines), "<", 8))
    assert [task.cpu for task in found.tasks if task.tid] == [5, 6, 7]


class Gaps(PlainTarget):
    """Memory of which a page is missing."""

    def read(self, vaddr: int, size: int, /) -> bytes:
        if vaddr < GAP + 0x1000 and vaddr + size > GAP:
            raise FaultError("vaddr", vaddr, "gone")
        return super().read(vaddr, size)


GAP = BASE + 0x1000


def test_members_on_a_missing_page_cost_themselves():
    """A task across two pages of which the first is gone: its list and pid are on the second."""
    space = KernelSpace()
    task = GAP + 0x1000 - 0x30
    members = {"state": 0x0, "on_cpu": 0x20, "tasks": 0x40, "pid": 0x60, "tgid": 0x64, "comm": 0x68}
    keys = {f"OFFSET_task_struct__{name}": at for name, at in members.items()}
    keys |= {"OFFSET_task_struct__thread_group": 0x80, "SYMBOL_init_task": BASE}
    for at, other in ((BASE, task), (task, BASE)):
        space.put(at - BASE + 0x40, "QQ", other + 0x40, other + 0x40)
        space.put(at - BASE + 0x80, "QQ", at + 0x80, at + 0x80)
    space.put(task - BASE, "Q", 2)
    space.put(task - BASE + 0x60, "II16s", 7, 7, b"half")
    whole = all_tasks(told(space, **keys)).tasks[-1]
    found = all_tasks(Gaps(space.virtual(), info_of(**keys), "<", 8)).tasks[-1]
    assert (whole.tid, whole.comm, whole.state) == (7, b"half", "D")
    assert found == whole._replace(state="R")


def test_they_are_the_tasks_of_ps(tmp_path):
    """Idle tasks by the run queues, and who is on a CPU: the command line's readers agree, row by row."""
    made = make_task_kernel([1, 3, 1, 2])
    for tid, state, cpu in ((1, 0, 0), (2, 1, 1), (3, 2, 0), (4, 0x402, 1), (5, 4, 0)):
        made.put(tid, "__state", struct.pack("<I", state))
        made.put(tid, "cpu", struct.pack("<i", cpu))
    path = tmp_path / "dump"
    path.write_bytes(made.kernel.dump())
    with InputFile.open(str(path)) as file:
        dump = open_dump(file)
        kernel = open_kernel(dump, KernelRequest(extra=parse(made.extra.encode())))
        listed = list_tasks(dump, kernel)
        rows = task_table(listed, np.arange(len(listed.tasks)))
        found = all_tasks(DumpTarget.of(dump, kernel))
    assert found.broken == 0
    assert [(task.tgid, task.tid, task.lwp, task.ppid) for task in found.tasks] == [
        (row.pid, row.tid, row.lwp, row.ppid) for row in rows
    ]
    assert [(task.state, task.cpu, task.on_cpu, hex(task.vaddr)) for task in found.tasks] == [
        (row.state, row.cpu, row.on_cpu, row.task) for row in rows
    ]
    assert [task.lwp for task in found.tasks if task.on_cpu] == [-2, 1]
    assert [task.state for task in sorted(found.tasks, key=lambda task: task.lwp)][2:7] == [*"RSDIT"]


class Counting(PlainTarget):
    """Counts what is read."""

    reads = 0

    def read(self, vaddr: int, size: int, /) -> bytes:
        Counting.reads += 1
        return super().read(vaddr, size)


def test_processes_that_share_a_list_of_threads():
    """A forgery: each of them would have the threads of all; who reads them all again never ends."""
    made = make_tasks("thread_head", [400, *[1] * 400])
    signal = OFFSETS["task_struct.signal"]
    first = made.expected[0][0]
    shared = int.from_bytes(made.data[first - made.base + signal :][:8], "little")
    for vaddr, *_ in made.expected[400:]:
        made.put(vaddr + signal, 8, shared)
    target = Counting(made.virtual(), made.info, "<", 8)
    Counting.reads = 0
    found = all_tasks(target, 2000)
    assert Counting.reads < 10_000
    assert found.broken > 0
    assert len(found.tasks) > 400
