"""A synthetic dump with tasks in it: on lists, on CPUs, asleep with saved registers.

Two CPUs: CPU 0 runs the task with tid 1, CPU 1 its idle task, which is on no list.  What the kernel
would tell by BTF and kallsyms is in ``extra``, the lines of an ``-e`` file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tests.builders.kernel import KernelSpec, SyntheticKernel, make_kernel
from tests.builders.notes import x86_64_prstatus
from tests.builders.tasks import OFFSETS, TASK_SIZE, TaskMemory, make_tasks, put_task

AT = 0x200000
"""Physical address of the tasks; their stacks follow."""
PERCPU = 0x3C0000
AREAS = (0x3C1000, 0x3C3000)
"""Physical addresses of the two per-CPU areas; per-CPU symbols count from 0."""
RUNQUEUES, CRASH_NOTES = 0x100, 0x800
RQ = {"curr": 0x20, "idle": 0x28, "cpu": 0x30}
IDLE_1 = 0x3B0000
SP_IN_STACK = 0x3000
THREAD_SP = OFFSETS["task_struct.thread"] + OFFSETS["thread_struct.sp"]
FRAME = ("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr")
SCHEDULE_AT, SWITCH_TO_AT, CALL_AT = 0x4000, 0x6000, 0x321
"""In the image: the two functions, and the call of one from the other."""


@dataclass(frozen=True)
class TaskKernel:
    """``asleep``: by tid the registers that the kernel saved."""

    kernel: SyntheticKernel
    tasks: TaskMemory
    extra: str
    asleep: Mapping[int, Mapping[str, int]]

    def paddr(self, vaddr: int) -> int:
        """Of an address in the direct map."""
        return vaddr - self.kernel.bases["page_offset"]

    def task_of(self, tid: int) -> int:
        """Address of the task with this tid."""
        return next(row[0] for row in self.tasks.expected if row[2] == tid)

    def write(self, vaddr: int, data: bytes) -> None:
        """Into the dump."""
        self.kernel.ram.write(self.paddr(vaddr), data)

    def put(self, tid: int, member: str, data: bytes) -> None:
        """Into a member of a task."""
        self.write(self.task_of(tid) + OFFSETS[f"task_struct.{member}"], data)

    def bury(self, tid: int) -> None:
        """What finish_task_switch() leaves of a task that has ended and that nobody has waited for."""
        for member, value in (("__state", 0x80), ("exit_state", 0x20), ("stack", 0), ("on_cpu", 0)):
            self.put(tid, member, struct.pack("<Q" if member == "stack" else "<I", value))

    def set_sp(self, tid: int, sp: int) -> None:
        """The stack pointer that the kernel saved of a task that sleeps."""
        self.write(self.task_of(tid) + THREAD_SP, struct.pack("<Q", sp))


def make_task_kernel(processes: list[int], *, old: bool = False, **changes: object) -> TaskKernel:
    """``old``: registers saved as before v4.9, and nothing but the text tells how."""
    kernel = make_kernel(KernelSpec(), **changes)
    base = kernel.bases["page_offset"]
    tasks = make_tasks("both", processes, base=base + AT)
    kernel.ram.write(AT, bytes(tasks.data))
    made = TaskKernel(kernel, tasks, _extra(kernel, tasks, old), {})
    _cpus(made)
    asleep = {}
    for vaddr, _, tid, _ in tasks.expected:
        if tid != 1:
            asleep[tid] = _sleep(made, vaddr, tid, old)
    if old:
        text, call = kernel.spec.text_paddr, SCHEDULE_AT + CALL_AT
        kernel.ram.write(text + call, b"\xe8" + struct.pack("<i", SWITCH_TO_AT - (call + 5)))
    return TaskKernel(kernel, tasks, made.extra, asleep)


def _extra(kernel: SyntheticKernel, tasks: TaskMemory, old: bool) -> str:
    base = kernel.bases["page_offset"]
    symbols = {
        "init_task": tasks.base,
        "nr_cpu_ids": base + PERCPU,
        "__cpu_present_mask": base + PERCPU + 8,
        "__per_cpu_offset": base + PERCPU + 16,
        "crash_notes": base + PERCPU + 64,
        "runqueues": RUNQUEUES,
        "__schedule": kernel.text_vaddr + SCHEDULE_AT,
        "__switch_to": kernel.text_vaddr + SWITCH_TO_AT,
    }
    offsets = {**OFFSETS, **{f"rq.{name}": at for name, at in RQ.items()}}
    if not old:
        offsets |= {f"inactive_task_frame.{name}": 8 * at for at, name in enumerate(FRAME)}
    lines = [f"SYMBOL({name})={value:x}" for name, value in symbols.items()]
    lines += [f"OFFSET({name})={value}" for name, value in offsets.items()]
    return "\n".join(lines) + "\n"


def _cpus(made: TaskKernel) -> None:
    """Per-CPU areas, run queues, the idle task of CPU 1."""
    ram, base = made.kernel.ram, made.kernel.bases["page_offset"]
    ram.write(PERCPU, struct.pack("<QQQQ", 2, 0b11, *(base + area for area in AREAS)))
    ram.write(PERCPU + 64, struct.pack("<Q", CRASH_NOTES))
    idle = TaskMemory(bytearray(TASK_SIZE), "both", "<", 8, base + IDLE_1)
    put_task(idle, idle.base, 0, 0, b"swapper/1", 0)
    idle.put(idle.base + OFFSETS["task_struct.stack"], 8, base + IDLE_1 + 0x4000)
    ram.write(IDLE_1, bytes(idle.data))
    for cpu, curr, its_idle in ((0, made.task_of(1), made.tasks.base), (1, idle.base, idle.base)):
        ram.write(AREAS[cpu] + RUNQUEUES, bytes(0x100))
        ram.write(AREAS[cpu] + RUNQUEUES + RQ["curr"], struct.pack("<QQi", curr, its_idle, cpu))
        ram.write(AREAS[cpu] + CRASH_NOTES, bytes(0x200))
        made.write(curr + OFFSETS["task_struct.on_cpu"], struct.pack("<i", 1))


def _sleep(made: TaskKernel, vaddr: int, tid: int, old: bool) -> dict[str, int]:
    sp = made.tasks.base + 0x10000 * (tid + 1) + SP_IN_STACK
    made.write(vaddr + THREAD_SP, struct.pack("<Q", sp))
    values = [0x1000 * tid + number for number in range(len(FRAME))]
    made.write(sp, struct.pack("<7Q", *values))
    if old:
        behind = made.kernel.text_vaddr + SCHEDULE_AT + CALL_AT + 5
        return {"rip": behind, "rbp": values[0], "rsp": sp + 16}
    saved = dict(zip(("r15", "r14", "r13", "r12", "rbx", "rbp", "rip"), values, strict=True))
    return {**saved, "rsp": sp + 56}


def save_crash_note(made: TaskKernel, cpu: int, pid: int, registers: Mapping[str, int]) -> None:
    """What crash_save_cpu() leaves of a CPU: an ELF note in its own per-CPU area."""
    desc = x86_64_prstatus(pid, registers).desc
    note = struct.pack("<III", 5, len(desc), 1) + b"CORE\0\0\0\0" + desc
    made.kernel.ram.write(AREAS[cpu] + CRASH_NOTES, note)
