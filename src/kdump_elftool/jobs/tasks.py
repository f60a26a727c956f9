"""Every task of a dump: who it is, and the registers with which a debugger finds its frames."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Index, u64
from kdump_elftool.arch.base import PrStatusLayout, SavedContext
from kdump_elftool.elf.constants import NT_PRSTATUS
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.task_table import TaskRow
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.kernel.cpu_place import register_notes
from kdump_elftool.kernel.cpus import CORE, CpuThread, cpu_of_notes, cpus_by_base
from kdump_elftool.kernel.crash_notes import read_crash_notes
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.percpu import PerCpu, find_percpu
from kdump_elftool.kernel.qemu_notes import QEMU, qemu_cpus
from kdump_elftool.kernel.runqueues import RunQueueReader, RunQueues
from kdump_elftool.kernel.tasks import TaskReader, Tasks, rows_of
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory
from kdump_elftool.plain.task_states import state_letters
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

_SHOWN = 5
_LARGEST_STACK = 1 << 18
_RAN_ON = (
    "the kernel ran on while its memory was read: tasks on a CPU have no registers, and stacks of others may "
    "have changed in between"
)


@dataclass(frozen=True)
class TaskList:
    """All tasks, and where they were found."""

    tasks: Tasks
    percpu: PerCpu | None
    queues: RunQueues | None
    known: Knowledge
    memory: VirtualMemory
    warnings: tuple[str, ...]

    @property
    def running(self) -> list[int]:
        """The row of what each CPU runs by its run queue, -1 where that is not known."""
        return [] if self.queues is None else rows_of(self.tasks, self.queues.curr).tolist()


@dataclass(frozen=True)
class TaskThreads:
    """Register notes of all tasks: those on a CPU by CPU number, then the others by thread number.

    ``table`` are the rows of ``listed.tasks`` that became threads, in that order, then those of tasks that
    have ended, which have no stack and are no threads.  ``stacks`` are those of the threads.
    """

    notes: tuple[Note, ...]
    cpus: tuple[CpuThread, ...]
    stacks: U64
    listed: TaskList
    table: Index
    warnings: tuple[str, ...]


def list_tasks(dump: Dump, kernel: Kernel) -> TaskList:
    """Find all tasks.  Raises IdentityError naming what is not known of the kernel."""
    return tasks_by(knowledge(dump, kernel), dump, kernel)


def tasks_by(known: Knowledge, dump: Dump, kernel: Kernel) -> TaskList:
    """As :func:`list_tasks`, by what ``known`` tells."""
    memory, order, word = kernel.virtual(dump), dump.kind.order, kernel.arch.prstatus.word
    reader = TaskReader(memory, known, order, word)
    listed, warnings = reader.listed()
    percpu = find_percpu(memory, known, order, word)
    run_queues = RunQueueReader(memory, known, order, word)
    queues = run_queues.by_percpu(percpu) if percpu else None
    if queues is None or not queues.idle.any():
        queues = run_queues.by_tasks(np.append(listed, u64([known.symbol("init_task") or 0])))
    if queues is None:
        warnings.append("the run queues of the CPUs cannot be found: idle tasks but the first are missing")
    letters = state_letters(DumpTarget(order, word, known, memory))
    tasks, more = reader.tasks(listed, queues, letters)
    log.info("tasks: %d", len(tasks))
    return TaskList(tasks, percpu, queues, known, memory, (*known.advice, *warnings, *more))


def task_threads(dump: Dump, kernel: Kernel) -> TaskThreads:
    """A register note for each task.  Raises IdentityError."""
    return threads_of(list_tasks(dump, kernel), dump, kernel)


def threads_of(listed: TaskList, dump: Dump, kernel: Kernel) -> TaskThreads:
    """A register note for each task of the list.  Raises IdentityError."""
    context = kernel.arch.saved_context(listed.known, listed.memory.read)
    if context is None:
        raise IdentityError(
            "OFFSET(thread_struct.sp)",
            "it is not known where this kernel saves the registers of sleeping tasks",
            hint=listed.known.hint("give the kernel's vmlinux with -m, or the lines in a file with -e"),
        )
    builder = _Builder(dump, kernel, listed, context)
    far = next(
        (each for each in context.registers if each[1] > builder.stack_size - builder.layout.word), None
    )
    if far is not None:
        raise IdentityError(
            far[0],
            f"the kernel cannot have saved {far[0]} {far[1]} bytes into the registers of a task: a stack has "
            f"{builder.stack_size}",
            hint="the kernel's types in the dump are damaged, or a line of the -e file is wrong",
        )
    return builder.build()


def task_table(listed: TaskList, rows: Index) -> list[TaskRow]:
    """The tasks of these rows."""
    tasks, running = listed.tasks, set(listed.running)
    return [
        TaskRow(
            pid=int(tasks.tgid[row]),
            tid=int(tasks.tid[row]),
            lwp=int(tasks.lwp[row]),
            ppid=int(tasks.ppid[row]),
            state=chr(tasks.state[row]),
            cpu=int(tasks.cpu[row]),
            on_cpu=bool(tasks.on_cpu[row]) or row in running,
            task=f"{int(tasks.task[row]):#x}",
            comm=printable(tasks.comm[row]),
        )
        for row in rows.tolist()
    ]


@dataclass(frozen=True)
class _Builder:
    dump: Dump
    kernel: Kernel
    listed: TaskList
    context: SavedContext

    @property
    def layout(self) -> PrStatusLayout:
        return self.kernel.arch.prstatus

    @property
    def order(self) -> str:
        return self.dump.kind.order

    @property
    def stack_size(self) -> int:
        """THREAD_SIZE: KASAN doubles it (include/linux/sched.h, union thread_union).

        Where no type tells, it is a page at least: stacks in vmalloc space have whole pages.
        """
        told = self.listed.known.size("thread_union") or 0
        fits = self.kernel.arch.page_size <= told <= _LARGEST_STACK and told & (told - 1) == 0
        page = self.kernel.identity.form.levels[-1].span
        return told if fits else max(self.kernel.arch.stack_size, page)

    def build(self) -> TaskThreads:
        # what the registers asked has come to be known since the list was made
        tasks, listed = self.listed.tasks, self.listed
        warnings = list(dict.fromkeys((*listed.warnings, *listed.known.advice)))
        running = self.listed.running
        on_cpu, cpu_notes, cpus = self._cpu_notes(running, warnings)
        if self.dump.running:
            warnings.append(_RAN_ON)
        asleep = tasks.stack != 0
        ended = np.flatnonzero(~asleep)
        asleep[on_cpu] = False
        rows = np.flatnonzero(asleep)
        rows = rows[np.argsort(tasks.lwp[rows], kind="stable")]
        descs, good = self._saved(rows)
        lost = rows[~good]
        if len(lost):
            shown = ", ".join(str(tid) for tid in tasks.lwp[lost][:_SHOWN].tolist())
            more = ", ..." if len(lost) > _SHOWN else ""
            warnings.append(f"{len(lost)} tasks without readable registers are left out: {shown}{more}")
        notes = [Note(CORE, NT_PRSTATUS, descs[index].tobytes()) for index in np.flatnonzero(good).tolist()]
        threads = np.concatenate([np.array(on_cpu, dtype=np.intp), rows[good]])
        stacks, table = tasks.stack[threads], np.concatenate([threads, ended])
        return TaskThreads((*cpu_notes, *notes), tuple(cpus), stacks, self.listed, table, tuple(warnings))

    def _cpu_notes(
        self, running: list[int], warnings: list[str]
    ) -> tuple[list[int], list[Note], list[CpuThread]]:
        """Rows on a CPU, their notes and threads, by CPU."""
        tasks, layout = self.listed.tasks, self.layout
        descs = register_notes(self.dump, layout.size)
        numbers = self.listed.queues.cpu if self.listed.queues else ()
        tids = [int(tasks.tid[row]) if row >= 0 else -1 for row in running]
        qemu = any(note.name == QEMU for note in self.dump.notes)
        saved, by_base = self._crash_notes(numbers), self._by_base(numbers)
        cpu_of = cpu_of_notes(descs, qemu, numbers, saved, tids, layout, self.order, by_base)
        rows, notes, threads = [], [], []
        for index, number in enumerate(numbers):
            row = running[index] if index < len(running) else -1
            desc = next((descs[at] for at, cpu in enumerate(cpu_of) if cpu == index), None)
            if desc is not None:
                row = self._owner(desc, row, number)
            if row < 0 or row in rows:
                warnings.append(f"what CPU {number} was running cannot be told")
                continue
            if desc is None:
                if not self.dump.running:
                    warnings.append(f"CPU {number} did not answer: its registers are not in the dump")
                desc = bytes(layout.size)
            rows.append(row)
            lwp = int(tasks.lwp[row])
            notes.append(Note(CORE, NT_PRSTATUS, self._with_pid(desc, lwp)))
            sp, ip = (
                self._register(desc, name)
                for name in (self.kernel.arch.stack_pointer, self.kernel.arch.instruction_pointer)
            )
            threads.append(CpuThread(number, lwp, sp, ip))
        for at, cpu in enumerate(cpu_of):
            if cpu < 0:
                warnings.append(f"register note {at} of the dump belongs to no CPU that is known: left out")
        return rows, notes, threads

    def _owner(self, desc: bytes, row: int, cpu: int) -> int:
        """Whose stack the CPU stands on: in the middle of a switch the run queue is ahead of it."""
        tasks = self.listed.tasks
        sp = np.uint64(self._register(desc, self.kernel.arch.stack_pointer))
        inside = (tasks.stack <= sp) & (sp - tasks.stack < np.uint64(self.stack_size))
        here = np.flatnonzero(inside & tasks.on_cpu & (tasks.cpu == cpu))
        return int(here[0]) if len(here) == 1 else row

    def _by_base(self, numbers: tuple[int, ...]) -> list[int]:
        """The index in ``numbers`` of each of QEMU's notes, which are in the order of the register notes."""
        percpu = self.listed.percpu
        if percpu is None:
            return []
        places = {number: index for index, number in enumerate(numbers)}
        areas = dict(
            zip(percpu.address(0).tolist(), (places.get(cpu, -1) for cpu in percpu.cpu), strict=True)
        )
        return cpus_by_base(qemu_cpus(self.dump.notes), self.kernel.arch.percpu_registers, areas)

    def _crash_notes(self, numbers: tuple[int, ...]) -> list[bytes]:
        """What the kernel saved for each of these CPUs when it died; empty where it saved nothing."""
        percpu, known = self.listed.percpu, self.listed.known
        if percpu is None:
            return [b""] * len(numbers)
        descs = read_crash_notes(self.listed.memory, known, percpu, self.layout, self.order)
        saved = dict(zip(percpu.cpu, descs, strict=True))
        return [saved.get(cpu, b"") for cpu in numbers]

    def _saved(self, rows: Index) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Register notes of tasks that do not run, and which of them could be made."""
        tasks, layout, context = self.listed.tasks, self.layout, self.context
        descs = np.zeros((len(rows), layout.size), dtype=np.uint8)
        base, good = self._anchors(rows)
        self._copy_frames(descs, rows, base, good)
        for name, offset in context.in_task:
            self._copy(descs, name, tasks.task[rows] + np.uint64(offset), good)
        for name, number in context.derived:
            self._put(descs, layout.register_offset(name), base + np.uint64(number), layout.word)
        for name, number in context.constants:
            column = np.full(len(rows), number, dtype=np.uint64)
            self._put(descs, layout.register_offset(name), column, layout.word)
        self._put(descs, layout.pid_offset, tasks.lwp[rows].astype(np.uint64), 4)
        self._put(descs, layout.pid_offset + 4, tasks.ppid[rows].clip(0).astype(np.uint64), 4)
        return descs, good

    def _anchors(self, rows: Index) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Where the saved registers' offsets count from, and which tasks say so."""
        at = self.listed.tasks.task[rows] + np.uint64(self.context.pointer)
        if self.context.inside:
            return at, np.ones(len(rows), dtype=np.bool_)
        return Words(self.listed.memory, self.order, self.layout.word).column(at)

    def _copy_frames(
        self, descs: npt.NDArray[np.uint8], rows: Index, base: U64, good: npt.NDArray[np.bool_]
    ) -> None:
        """Registers that lie together; ``good`` stays for those whose stack pointer is in their own stack."""
        context, layout, word = self.context, self.layout, self.layout.word
        stack = self.listed.tasks.stack[rows]
        size = max([offset + word for _, offset in context.registers], default=word)
        if context.stack_pointer is None:  # whole frames
            good &= self._on_stack(base, stack, size)
        frame, readable = self.listed.memory.gather(np.where(good, base, stack), size)
        good &= readable
        for name, offset in context.registers:
            at = layout.register_offset(name)
            descs[:, at : at + word] = frame[:, offset : offset + word]
        if context.stack_pointer is not None:
            at = layout.register_offset(context.stack_pointer)
            sp = np.ascontiguousarray(descs[:, at : at + word]).reshape(-1).view(f"{self.order}u{word}")
            good &= self._on_stack(sp.astype(np.uint64), stack, 0)

    def _copy(self, descs: npt.NDArray[np.uint8], name: str, vaddr: U64, good: npt.NDArray[np.bool_]) -> None:
        """One register from an address of its own; ``good`` stays where it could be read."""
        at, word = self.layout.register_offset(name), self.layout.word
        descs[:, at : at + word], readable = self.listed.memory.gather(vaddr, word)
        good &= readable

    def _on_stack(self, sp: U64, stack: U64, size: int) -> npt.NDArray[np.bool_]:
        """Whether ``size`` bytes from ``sp`` on lie in the task's own stack."""
        inside: npt.NDArray[np.bool_] = (sp >= stack) & (sp - stack <= np.uint64(self.stack_size - size))
        return inside

    def _put(self, descs: npt.NDArray[np.uint8], at: int, values: U64, size: int) -> None:
        column = values.astype(f"{self.order}u8" if size == 8 else f"{self.order}u4")
        descs[:, at : at + size] = column.view(np.uint8).reshape(-1, size)

    def _with_pid(self, desc: bytes, lwp: int) -> bytes:
        row = np.frombuffer(desc, dtype=np.uint8).copy().reshape(1, -1)
        self._put(row, self.layout.pid_offset, u64([lwp]), 4)
        return row.tobytes()

    def _register(self, desc: bytes, name: str) -> int:
        at = self.layout.register_offset(name)
        return int.from_bytes(desc[at : at + self.layout.word], "little" if self.order == "<" else "big")
