"""The tasks of the kernel for commands, and from a pid to its task."""

from __future__ import annotations

import gdb

from kdump_elftool.gdbside.command import warn
from kdump_elftool.gdbside.target import GdbTarget
from kdump_elftool.plain.tasks import TaskWalk, all_tasks


def listed_tasks(kernel: GdbTarget) -> TaskWalk:
    """All tasks by the kernel's lists; the user is told where those are damaged."""
    found = all_tasks(kernel)
    if found.broken:
        lists = "a list of tasks is" if found.broken == 1 else f"{found.broken} lists of tasks are"
        warn(f"{lists} damaged: some tasks may be missing")
    return found


def task_address(kernel: GdbTarget, lwp: int) -> int:
    """The task_struct of a thread; the idle task of CPU n is -(n + 1).

    From the core's own table where it has one, else from the kernel's lists.  Raises gdb.GdbError.
    """
    for row in kernel.tasks():
        if row.get("lwp") == lwp:
            try:
                return int(str(row.get("task")), 16)
            except ValueError:
                break
    for task in all_tasks(kernel).tasks:
        if task.lwp == lwp:
            return task.vaddr
    raise gdb.GdbError(f"there is no task {lwp}")
