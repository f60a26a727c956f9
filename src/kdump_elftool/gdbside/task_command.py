"""``kd-task``: what a task is."""

from __future__ import annotations

import re

import gdb

from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.task_details import detail_lines, read_details
from kdump_elftool.plain.tasks import Task, all_tasks

_WIDTH = 10
_PID = re.compile(r"-?\d{1,10}", re.ASCII)


class TaskCommand(Command):
    """Show what a task is: its address, process, state, flags, stack, age, user and parent.

    kd-task PID...

    PID is a thread; the idle task of CPU n is -(n+1). In expressions: $kd_task(PID). Command line and
    environment are in user memory, which a core of the level 'kernel' does not have."""

    NAME = "kd-task"

    def run(self, words: list[str]) -> None:
        """Labels and values, an empty line between tasks."""
        if not words or not all(map(_PID.fullmatch, words)):
            raise usage(self)
        kernel = target()
        tasks = {task.lwp: task for task in all_tasks(kernel).tasks}
        for number, word in enumerate(words):
            if number:
                say("")
            _show(kernel, tasks, int(word))


def _show(kernel: GdbTarget, tasks: dict[int, Task], pid: int) -> None:
    if pid not in tasks:
        raise gdb.GdbError(f"there is no task {pid}")
    for label, value in detail_lines(kernel, read_details(kernel, tasks[pid])):
        say(f"{label + ':':<{_WIDTH}} {value}")
