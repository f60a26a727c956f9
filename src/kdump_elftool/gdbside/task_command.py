"""``kd-task``: what a task is."""

from __future__ import annotations

import re

import gdb

from kdump_elftool.errors import FaultError, KdumpError
from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.find_task import listed_tasks
from kdump_elftool.gdbside.memory_commands import paging_form, physical
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.task_details import detail_lines, read_details
from kdump_elftool.plain.tasks import Task
from kdump_elftool.plain.user_memory import command_line, has_memory
from kdump_elftool.safe_text import printable

_WIDTH = 10
_LONGEST = 1000
_PID = re.compile(r"-?\d{1,10}", re.ASCII)


class TaskCommand(Command):
    """Show what a task is: its address, process, state, flags, stack, age, user and parent.

    kd-task PID...

    PID is a thread; the idle task of CPU n is -(n+1). In expressions: $kd_task(PID). The command line is
    in the memory of the process, which cores made with 'tovelf -l user' or '-l all' have."""

    NAME = "kd-task"

    def run(self, words: list[str]) -> None:
        """Labels and values, an empty line between tasks."""
        if not words or not all(map(_PID.fullmatch, words)):
            raise usage(self)
        kernel = target()
        tasks = {task.lwp: task for task in listed_tasks(kernel).tasks}
        for number, word in enumerate(words):
            if number:
                say("")
            _show(kernel, tasks, int(word))


def _show(kernel: GdbTarget, tasks: dict[int, Task], pid: int) -> None:
    if pid not in tasks:
        raise gdb.GdbError(f"there is no task {pid}")
    for label, value in detail_lines(kernel, read_details(kernel, tasks[pid])):
        say(f"{label + ':':<{_WIDTH}} {value}")
    if tasks[pid].tid and has_memory(kernel, tasks[pid].vaddr):
        say(f"{'command:':<{_WIDTH}} {_command_line(kernel, tasks[pid])}")


def _command_line(kernel: GdbTarget, task: Task) -> str:
    try:
        words = command_line(kernel, physical(kernel), paging_form(kernel), task.vaddr)
    except FaultError:
        return "in memory of the process that is not in this core"
    except (KdumpError, gdb.GdbError) as error:
        return f"not known: {error}"
    return printable(words.rstrip(b"\0").replace(b"\0", b" "), _LONGEST)
