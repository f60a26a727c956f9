"""All tasks of a kernel as columns: processes, their threads, idle tasks.

Processes are on the list of ``init_task.tasks``; the threads of one are on
``signal->thread_head`` through ``task->thread_node`` (v3.14 on), or, in kernels without that, on the ring of
``task->thread_group`` (gone in v6.7).  Idle tasks are on no list: each CPU's run queue names its own.

References: include/linux/sched.h, include/linux/sched/signal.h, fs/proc/array.c (get_task_state(),
task_state_array), kernel/sched/sched.h (struct rq).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import I64, U64, Bools, Index, u64
from kdump_elftool.errors import IdentityError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.lists import ListReader
from kdump_elftool.kernel.runqueues import RunQueues
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

COMM_SIZE = 16
"""TASK_COMM_LEN."""
_WIDTHS = (1, 2, 4)
STATES = "RSDTtXZPI"
_UNINTERRUPTIBLE = 0x2
_IDLE = 0x402
_ASLEEP = 0x8000 | 0x1000
"""TASK_FROZEN (v6.1 on) and TASK_RTLOCK_WAIT (v5.15 on) count as uninterruptible."""
_EXITED = (0x10, 0x20, 0x30)
"""``exit_state`` of what has ended: EXIT_ZOMBIE and EXIT_DEAD, which changed places, and both as one."""
_LARGEST = 1 << 20
_SHOWN = 5
REQUIRED = (
    ("SYMBOL", "init_task"),
    ("OFFSET", "task_struct.tasks"),
    ("OFFSET", "task_struct.pid"),
    ("OFFSET", "task_struct.tgid"),
    ("OFFSET", "task_struct.comm"),
    ("OFFSET", "task_struct.stack"),
)


@dataclass(frozen=True)
class Tasks:
    """One row a task.  ``tgid`` is the process, ``tid`` the thread (the kernel's ``pid``).

    ``idle_cpu`` is the CPU whose idle task this is, else -1; ``cpu`` where the task runs or ran last,
    -1 if not known; ``ppid`` -1 if not known; ``state`` a letter as in ps, ``?`` if not known.
    ``stack`` is 0 of a task that has ended and given it back.
    """

    task: U64
    tgid: I64
    tid: I64
    ppid: I64
    cpu: I64
    idle_cpu: I64
    state: npt.NDArray[np.uint8]
    comm: tuple[bytes, ...]
    stack: U64
    on_cpu: Bools

    def __len__(self) -> int:
        return len(self.task)

    @property
    def lwp(self) -> I64:
        """The thread's number in a core: its tid; of the idle task of CPU n -(n + 1)."""
        return np.where(self.idle_cpu >= 0, -self.idle_cpu - 1, self.tid)


@dataclass(frozen=True)
class TaskReader:
    """Reads tasks with what is known of their layout."""

    memory: VirtualMemory
    known: Knowledge
    order: str
    word: int

    def listed(self) -> tuple[U64, list[str]]:
        """Addresses of all tasks that are on a list, and what is worth a warning.  Raises IdentityError."""
        self._require()
        warnings: list[str] = []
        return self._listed(warnings), warnings

    def tasks(self, listed: U64, queues: RunQueues | None, letters: str = STATES) -> tuple[Tasks, list[str]]:
        """The idle tasks and those ``listed`` that make sense, and what is worth a warning.

        ``letters`` are those of this kernel's states (``plain.task_states``).
        """
        warnings: list[str] = []
        idle = queues.idle if queues else u64([self.known.symbol("init_task") or 0])
        idle_cpu = np.array(queues.cpu if queues else (0,), dtype=np.int64)
        there = idle != 0
        task = np.concatenate([idle[there], listed])
        idle_of = np.concatenate([idle_cpu[there], np.full(len(listed), -1, dtype=np.int64)])
        _, first = np.unique(task, return_index=True)
        rows = np.sort(first)
        return self._columns(task[rows], idle_of[rows], letters, warnings), warnings

    def _require(self) -> None:
        missing = self.known.missing(REQUIRED)
        by_node = ("signal_struct.thread_head", "task_struct.thread_node", "task_struct.signal")
        if any(self.known.offset(name) is None for name in by_node) and (
            self.known.offset("task_struct.thread_group") is None
        ):
            missing += tuple(f"OFFSET({name})" for name in by_node)
        if missing:
            raise IdentityError(
                missing[0],
                f"the tasks cannot be found: {', '.join(missing)} not known",
                hint=self.known.hint("give the kernel's vmlinux with -m, or the lines in a file with -e"),
            )

    def _listed(self, warnings: list[str]) -> U64:
        """The processes but init_task, with their threads."""
        lists = ListReader(self.memory, self.order, self.word)
        tasks = np.uint64(self.known.offset("task_struct.tasks") or 0)
        init_task = np.uint64(self.known.symbol("init_task") or 0)
        found = lists.walk(u64([init_task]) + tasks)
        if len(found.broken):
            warnings.append(
                f"the list of processes is damaged: {len(found.node)} were reached from its two ends"
            )
        leaders = found.node - tasks
        head = self.known.offset("signal_struct.thread_head")
        node = self.known.offset("task_struct.thread_node")
        signal = self.known.offset("task_struct.signal")
        if head is not None and node is not None and signal is not None:
            heads = self._pointers(leaders + np.uint64(signal)) + np.uint64(head)
        else:
            node = self.known.offset("task_struct.thread_group") or 0
            heads = leaders + np.uint64(node)
        threads = lists.walk(heads)
        if len(threads.broken):
            warnings.append(f"the lists of threads of {len(threads.broken)} processes are damaged")
        members = np.concatenate([leaders, threads.node - np.uint64(node)])
        place = np.concatenate([np.arange(len(leaders)), threads.owner])
        order = np.argsort(place, kind="stable")
        return members[order]

    def _columns(self, task: U64, idle_cpu: I64, letters: str, warnings: list[str]) -> Tasks:
        comm, readable = self._bytes(task, "comm", COMM_SIZE)
        stack = self._pointers(task + np.uint64(self.known.offset("task_struct.stack") or 0))
        tid = self._field(task, "pid", 4, -1)
        tgid = self._field(task, "tgid", 4, -1)
        # with thread_info in the task, release_task_stack() takes the stack of what has ended (v4.9 on)
        ended = np.isin(self._field(task, "exit_state", 4, 0), _EXITED)
        good = readable & ((stack != 0) | ended) & (tid >= 0) & (tgid >= 0) & (tid < _LARGEST * 4)
        good &= (tid > 0) | (idle_cpu >= 0)
        # a thread id belongs to one task: a second one comes from a damaged list
        lwp = np.where(idle_cpu >= 0, -idle_cpu - 1, tid)
        first = np.zeros(len(task), dtype=np.bool_)
        rows = np.flatnonzero(good)
        first[rows[np.unique(lwp[rows], return_index=True)[1]]] = True
        warnings += [
            f"the task at {vaddr:#x} makes no sense and is left out"
            for vaddr in task[~first][:_SHOWN].tolist()
        ]
        if int((~first).sum()) > _SHOWN:
            warnings.append(f"{int((~first).sum())} tasks in all make no sense")
        rows = np.flatnonzero(first)
        kept = task[rows]
        return Tasks(
            task=kept,
            tgid=tgid[rows],
            tid=tid[rows],
            ppid=self._ppid(kept),
            cpu=np.where(idle_cpu[rows] >= 0, idle_cpu[rows], self._cpu(kept, stack[rows])),
            idle_cpu=idle_cpu[rows],
            state=self._state(kept, letters),
            comm=tuple(bytes(comm[row]).split(b"\0", 1)[0] for row in rows.tolist()),
            stack=stack[rows],
            on_cpu=self._field(kept, "on_cpu", 4, 0) != 0,
        )

    def _ppid(self, task: U64) -> I64:
        """The parent's process; -1 where it is not known."""
        for name in ("real_parent", "parent"):
            offset = self.known.offset(f"task_struct.{name}")
            if offset is not None:
                return self._field(self._pointers(task + np.uint64(offset)), "tgid", 4, -1)
        return np.full(len(task), -1, dtype=np.int64)

    def _cpu(self, task: U64, stack: U64) -> I64:
        """``task_struct.cpu`` or, before v4.9 and from v5.16 on, that of the thread_info.

        Which is in the task, or, without CONFIG_THREAD_INFO_IN_TASK, at the bottom of its stack.
        """
        if self.known.offset("task_struct.cpu") is not None:
            return self._field(task, "cpu", 4, -1)
        inside, cpu = self.known.offset("task_struct.thread_info"), self.known.offset("thread_info.cpu")
        if cpu is None:
            return np.full(len(task), -1, dtype=np.int64)
        found = self._numbers((stack if inside is None else task + np.uint64(inside)) + np.uint64(cpu), 4, -1)
        return found if inside is not None else np.where(stack != 0, found, -1)

    def _state(self, task: U64, letters: str) -> npt.NDArray[np.uint8]:
        """A letter each, as /proc/PID/stat shows."""
        name = "__state" if self.known.offset("task_struct.__state") is not None else "state"
        if self.known.offset(f"task_struct.{name}") is None:
            return np.full(len(task), ord("?"), dtype=np.uint8)
        width = 4 if name == "__state" else self.known.size("task_struct.state") or self.word
        # a long's low half has all states; on big-endian machines it is the second one
        state = self._field(task, name, min(width, self.word), 0) & 0xFFFFFFFF
        ending = self._field(task, "exit_state", 4, 0) & 0xFFFFFFFF
        report = 0x7F if letters[7:8] == "P" else 0x3F
        shown = (state | ending) & report
        if "I" in letters:
            shown = np.where((state & _IDLE) == _IDLE, report + 1, shown)
        shown = np.where((state & _ASLEEP) != 0, _UNINTERRUPTIBLE, shown)
        highest = np.zeros(len(task), dtype=np.intp)
        for bit in range(8):
            highest[(shown >> bit & 1) != 0] = bit + 1
        return np.frombuffer(letters.encode(), dtype=np.uint8)[highest]

    def _pointers(self, vaddr: U64) -> U64:
        return Words(self.memory, self.order, self.word).column(vaddr)[0]

    def _bytes(self, task: U64, name: str, size: int) -> tuple[npt.NDArray[np.uint8], Bools]:
        return self.memory.gather(task + np.uint64(self.known.offset(f"task_struct.{name}") or 0), size)

    def _field(self, task: U64, name: str, size: int, default: int) -> I64:
        """A member of ``size`` bytes, unless the kernel's types say otherwise: on_cpu is one byte in v7."""
        offset = self.known.offset(f"task_struct.{name}")
        if offset is None:
            return np.full(len(task), default, dtype=np.int64)
        told = self.known.size(f"task_struct.{name}")
        return self._numbers(task + np.uint64(offset), told if told in _WIDTHS else size, default)

    def _numbers(self, vaddr: U64, size: int, default: int) -> I64:
        blocks, readable = self.memory.gather(vaddr, size)
        values = blocks.reshape(-1).view(f"{self.order}i{size}").astype(np.int64)
        return np.where(readable, values, default)


def rows_of(tasks: Tasks, task: U64) -> Index:
    """The row of each task address, -1 where it is none of them."""
    order = np.argsort(tasks.task)
    at = np.minimum(np.searchsorted(tasks.task[order], task), max(len(order) - 1, 0))
    if not len(order):
        return np.full(len(task), -1, dtype=np.intp)
    rows = order[at]
    return np.where(tasks.task[rows] == task, rows, -1)
