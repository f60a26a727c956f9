"""``kd-bt``: backtraces of tasks, equal ones once."""

from __future__ import annotations

import re
from collections.abc import Callable

import gdb

from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.frames import Unwinder, selection_kept
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.gdbside.threads import ONLY_CPUS, TaskThread, ended_tasks, task_threads
from kdump_elftool.plain.backtraces import ended_line, group_lines, grouped

_FORM = re.compile(r"state=(?P<state>[A-Za-z]+)|cpu=(?P<cpu>\d{1,10})|(?P<pid>-?\d{1,10})", re.ASCII)


class Backtraces(Command):
    """Show backtraces of tasks; of those that are equal one, with all its tasks.

    kd-bt [PID... | all | state=LETTERS | cpu=N]

    PID is a process, all of whose threads are shown, or a single thread; the idle task of CPU n is
    -(n+1). LETTERS are those of ps: 'kd-bt state=D' shows what waits uninterruptibly. Without an
    argument: the thread that is selected. What a CPU ran comes first, then tasks in state D, then
    what most tasks have in common.

    Each task is a thread of gdb's in a core that 'tovelf -p' made; other cores have only what the CPUs
    ran. 'thread find NAME', 'thread N' and 'bt' show arguments and locals."""

    NAME = "kd-bt"

    def run(self, words: list[str]) -> None:
        """Groups, an empty line between them."""
        kernel = target()
        threads = task_threads(kernel)
        has_all = any(each.task is not None for each in threads)
        ended: list[TaskThread] = []
        if words == ["all"] or not words:
            chosen = threads if words else _selected(threads)
        else:
            wanted = [_wanted(self, word) for word in words]
            chosen = [each for each in threads if any(test(each) for test in wanted)]
            ended = [each for each in ended_tasks(kernel) if any(test(each) for test in wanted)]
        if not chosen and not ended:
            raise gdb.GdbError("there is no such task" + ("" if has_all else f"; {ONLY_CPUS}"))
        show(kernel, chosen)
        for each in ended:
            say(ended_line(each.owner))
        if words and not has_all:
            say(f"({ONLY_CPUS})")


def show(kernel: GdbTarget, chosen: list[TaskThread]) -> None:
    """Their backtraces."""
    unwinder = Unwinder(kernel)
    with selection_kept():
        found = [(each.owner, unwinder.backtrace(each.thread)) for each in chosen]
    width = int(gdb.parameter("width") or 0)
    for number, group in enumerate(grouped(found)):
        if number:
            say("")
        for line in group_lines(group, width):
            say(line)


def _selected(threads: list[TaskThread]) -> list[TaskThread]:
    thread = gdb.selected_thread()
    return [each for each in threads if thread is not None and each.thread.num == thread.num]


def _wanted(command: Command, word: str) -> Callable[[TaskThread], bool]:
    found = _FORM.fullmatch(word)
    if found is None:
        raise usage(command)
    if found["state"]:
        return lambda each: each.owner.state in found["state"]
    if found["cpu"]:
        return lambda each: each.owner.cpu == int(found["cpu"])
    pid = int(found["pid"])
    return lambda each: pid in (each.pid, each.owner.lwp)
