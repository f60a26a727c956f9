"""The run queue of each CPU: the task it runs and its idle task.

``runqueues`` is a per-CPU variable.  Where no table names it (kernels whose kallsyms list functions
alone), the queues are found from the tasks: each task's scheduling entity names the queue of the
CPU it runs on or ran on last, and there is no CPU without a task of its own (ksoftirqd, migration).

References: kernel/sched/sched.h (struct rq, struct cfs_rq: ``rq`` with CONFIG_FAIR_GROUP_SCHED),
include/linux/sched.h (struct sched_entity).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import I64, U64, Bools
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.percpu import MOST_CPUS, PerCpu
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunQueues:
    """What each CPU of ``cpu`` runs, and its idle task (addresses; 0: not known)."""

    cpu: tuple[int, ...]
    curr: U64
    idle: U64


@dataclass(frozen=True)
class RunQueueReader:
    """Reads run queues with what is known of their layout."""

    memory: VirtualMemory
    known: Knowledge
    order: str
    word: int

    def by_percpu(self, percpu: PerCpu) -> RunQueues | None:
        """Through the per-CPU variable; None when it or its layout is not known."""
        symbol, members = self.known.symbol("runqueues"), self._members()
        if symbol is None or members is None:
            return None
        curr, idle = members
        base = percpu.address(symbol)
        return RunQueues(percpu.cpu, self._pointers(base + curr)[0], self._pointers(base + idle)[0])

    def by_tasks(self, task: U64) -> RunQueues | None:
        """Through the tasks at these addresses; None when no queue makes sense."""
        names = ("task_struct.se", "sched_entity.cfs_rq", "cfs_rq.rq", "rq.cpu", "task_struct.pid")
        offsets = [self.known.offset(name) for name in names]
        members = self._members()
        if members is None or any(offset is None for offset in offsets):
            return None
        se, cfs_rq, rq, cpu_at, pid_at = (np.uint64(offset or 0) for offset in offsets)
        curr_at, idle_at = members
        queues = self._followed(self._followed(task + se + cfs_rq) + rq)
        cpu, readable = self._ints(queues + cpu_at)
        curr, _ = self._pointers(queues + curr_at)
        idle, has_idle = self._pointers(queues + idle_at)
        pid, has_pid = self._ints(idle + pid_at)
        good = readable & has_idle & has_pid & (cpu >= 0) & (cpu < MOST_CPUS) & (pid == 0)
        cpu, curr, idle = cpu[good], curr[good], idle[good]
        _, first = np.unique(cpu, return_index=True)
        if not len(first):
            return None
        log.info("run queues: of %d CPUs, found from the tasks", len(first))
        return RunQueues(tuple(cpu[first].tolist()), curr[first], idle[first])

    def _members(self) -> tuple[np.uint64, np.uint64] | None:
        curr, idle = self.known.offset("rq.curr"), self.known.offset("rq.idle")
        return None if curr is None or idle is None else (np.uint64(curr), np.uint64(idle))

    def _followed(self, vaddr: U64) -> U64:
        """The different addresses that pointers hold, without null."""
        pointer, readable = self._pointers(vaddr)
        return np.unique(pointer[readable & (pointer != 0)])

    def _pointers(self, vaddr: U64) -> tuple[U64, Bools]:
        return Words(self.memory, self.order, self.word).column(vaddr)

    def _ints(self, vaddr: U64) -> tuple[I64, Bools]:
        blocks, readable = self.memory.gather(vaddr, 4)
        return blocks.reshape(-1).view(f"{self.order}i4").astype(np.int64), readable
