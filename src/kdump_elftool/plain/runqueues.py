"""The run queue of each CPU, one by one: the plain reference of ``kernel.runqueues``.

Through the per-CPU variable ``runqueues``; where no table names it, from the tasks, whose scheduling entities
name the queue of the CPU they run on or ran on last.  References: kernel/sched/sched.h (struct rq),
include/linux/sched.h (struct sched_entity).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain import percpu
from kdump_elftool.plain.percpu import MOST_CPUS, find_percpu
from kdump_elftool.plain.target import Target, unsigned

_BY_TASKS = ("task_struct.se", "sched_entity.cfs_rq", "cfs_rq.rq", "rq.cpu", "task_struct.pid")
NEEDS = (
    "SYMBOL(runqueues)",
    "OFFSET(rq.curr)",
    "OFFSET(rq.idle)",
    *(f"OFFSET({name})" for name in _BY_TASKS),
    *percpu.NEEDS,
)
"""What this reader asks of a kernel."""


class RunQueue(NamedTuple):
    """What a CPU runs, and its idle task (addresses; 0: not known)."""

    cpu: int
    curr: int
    idle: int


def run_queues(target: Target, tasks: Iterable[int]) -> list[RunQueue]:
    """The queues by CPU number, of which ``tasks`` may be needed to find them; empty when they cannot be."""
    curr, idle = target.offset("rq.curr"), target.offset("rq.idle")
    if curr is None or idle is None:
        return []
    found = _by_percpu(target, curr, idle)
    return found if any(queue.idle for queue in found) else _by_tasks(target, tasks, curr, idle)


def _by_percpu(target: Target, curr: int, idle: int) -> list[RunQueue]:
    symbol = target.symbol("runqueues")
    areas = None if symbol is None else find_percpu(target)
    if symbol is None or areas is None:
        return []
    return [
        RunQueue(cpu, _pointer(target, at + curr), _pointer(target, at + idle))
        for cpu, at in areas.addresses(symbol)
    ]


def _by_tasks(target: Target, tasks: Iterable[int], curr: int, idle: int) -> list[RunQueue]:
    offsets = [target.offset(name) for name in _BY_TASKS]
    if any(offset is None for offset in offsets):
        return []
    se, cfs_rq, rq, cpu_at, pid_at = (offset or 0 for offset in offsets)
    followed = sorted({_pointer(target, task + se + cfs_rq) for task in tasks} - {0})
    queues = sorted({_pointer(target, at + rq) for at in followed} - {0})
    found: dict[int, RunQueue] = {}
    for at in queues:
        its_idle = _pointer(target, at + idle)
        try:
            cpu = unsigned(target, at + cpu_at, 4)
            pid = unsigned(target, its_idle + pid_at, 4)
        except FaultError:
            continue
        if cpu < MOST_CPUS and pid == 0:
            found.setdefault(cpu, RunQueue(cpu, _pointer(target, at + curr), its_idle))
    return [found[cpu] for cpu in sorted(found)]


def _pointer(target: Target, vaddr: int) -> int:
    """0 where it cannot be read."""
    try:
        return unsigned(target, vaddr, target.word)
    except FaultError:
        return 0
