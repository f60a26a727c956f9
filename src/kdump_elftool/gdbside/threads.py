"""gdb's threads and the tasks they are, by the table in a core that was made with ``tovelf -p``."""

from __future__ import annotations

from typing import Any, NamedTuple

import gdb

from kdump_elftool.gdbside.target import GdbTarget
from kdump_elftool.plain.backtraces import Owner
from kdump_elftool.plain.task_states import ENDED

ONLY_CPUS = (
    "the core has what the CPUs ran and no other task: "
    "'kdump-elftool tovelf -p' makes one in which each task is a thread"
)
_UNKNOWN = "?"


class TaskThread(NamedTuple):
    """A thread of gdb's.  ``pid`` is its process; -1 and no address where the core has no table of tasks."""

    thread: Any
    owner: Owner
    pid: int
    task: int | None


def task_threads(kernel: GdbTarget) -> list[TaskThread]:
    """All threads in the order of the core: what the CPUs ran, then the others by number.

    Where it has no table of tasks there is one for each CPU, in the order of the CPUs.
    """
    table = kernel.tasks_by_lwp()
    found = sorted(gdb.selected_inferior().threads(), key=_number)
    if not table:
        return [_cpu_thread(thread, cpu) for cpu, thread in enumerate(found)]
    return [_task_thread(thread, thread.ptid[1], table.get(thread.ptid[1])) for thread in found]


def ended_tasks(kernel: GdbTarget) -> list[TaskThread]:
    """Those in the core's table that have ended and so have no stack: gdb has no thread of them."""
    found = gdb.selected_inferior().threads()
    threads = {thread.ptid[1] for thread in found}
    rows = [(lwp, row) for lwp, row in kernel.tasks_by_lwp().items() if lwp not in threads]
    return [_task_thread(None, lwp, row) for lwp, row in rows if _text(row, "state") in ENDED]


def _number(thread: Any) -> int:
    return int(thread.num)


def _cpu_thread(thread: Any, cpu: int | None) -> TaskThread:
    return TaskThread(thread, Owner(thread.ptid[1], "CPU", _UNKNOWN, cpu), -1, None)


def _task_thread(thread: Any, lwp: int, row: dict[str, Any] | None) -> TaskThread:
    if row is None:
        return _cpu_thread(thread, None)
    cpu = _whole(row, "cpu") if row.get("on_cpu") is True else None
    owner = Owner(lwp, _text(row, "comm")[:64], _text(row, "state")[:1] or _UNKNOWN, cpu)
    try:
        task: int | None = int(_text(row, "task"), 16)
    except ValueError:
        task = None
    pid = _whole(row, "pid")
    return TaskThread(thread, owner, -1 if pid is None else pid, task)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _whole(row: dict[str, Any], key: str) -> int | None:
    value = row.get(key)
    return value if type(value) is int else None
