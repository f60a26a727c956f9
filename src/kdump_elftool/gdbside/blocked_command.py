"""``kd-blocked``: what tasks wait for."""

from __future__ import annotations

import re

import gdb

from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.find_task import listed_tasks
from kdump_elftool.gdbside.frames import Unwinder, selection_kept
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.gdbside.threads import ONLY_CPUS, task_threads
from kdump_elftool.plain.backtraces import Backtrace
from kdump_elftool.plain.blocked import Blocked, blocked_lines, scheduler_text, waits_at
from kdump_elftool.plain.locks import LockFinder
from kdump_elftool.plain.tasks import Task

_PID = re.compile(r"-?\d{1,10}", re.ASCII)


class BlockedTasks(Command):
    """Show what the tasks in state D wait for: in which function, for which lock, and who holds that.

    kd-blocked [PID...]

    With PIDs: these, in whatever state. The function is the first one outside of the scheduler and the
    locks, as in /proc/PID/wchan. The lock is a mutex, rw_semaphore, semaphore or rt_mutex in whose list the
    task stands; of a rw_semaphore that is read, the kernel remembers the last of its readers only.
    Tasks that wait for each other in a circle are named at the end."""

    NAME = "kd-blocked"

    def run(self, words: list[str]) -> None:
        """Two lines a task."""
        if not all(map(_PID.fullmatch, words)):
            raise usage(self)
        kernel = target()
        tasks = {task.vaddr: task for task in listed_tasks(kernel).tasks}
        wanted = set(map(int, words))
        chosen = [task for task in tasks.values() if (task.lwp in wanted if words else task.state == "D")]
        missing = wanted - {task.lwp for task in chosen}
        if missing:
            raise gdb.GdbError(f"there is no task {min(missing)}")
        if not chosen:
            say("no task waits uninterruptibly")
            return
        stacks = _backtraces(kernel, {task.lwp for task in chosen})
        finder, scheduler = LockFinder(kernel, tasks.values()), scheduler_text(kernel)
        blocked = [_blocked(task, stacks.get(task.lwp), finder, scheduler) for task in chosen]
        for line in blocked_lines(blocked, tasks):
            say(line)
        if not kernel.tasks():
            say(f"({ONLY_CPUS})")


def _blocked(
    task: Task, backtrace: Backtrace | None, finder: LockFinder, scheduler: tuple[int, int]
) -> Blocked:
    if backtrace is None:
        return Blocked(task, None, finder.wait(task))
    functions = [step.function for step in backtrace.steps if step.function is not None]
    return Blocked(task, waits_at(backtrace, scheduler), finder.wait(task, functions))


def _backtraces(kernel: GdbTarget, lwps: set[int]) -> dict[int, Backtrace]:
    """By number, of those that are threads of the core."""
    unwinder = Unwinder(kernel)
    with selection_kept():
        threads = [each for each in task_threads(kernel) if each.task is not None]
        return {each.owner.lwp: unwinder.backtrace(each.thread) for each in threads if each.owner.lwp in lwps}
