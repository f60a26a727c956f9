"""Tasks that wait uninterruptibly: where, for what, and for whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kdump_elftool.plain.backtraces import Backtrace, Step
from kdump_elftool.plain.locks import NEEDS as LOCK_NEEDS
from kdump_elftool.plain.locks import Wait
from kdump_elftool.plain.target import Target
from kdump_elftool.plain.task_states import ENDED
from kdump_elftool.plain.tasks import Task
from kdump_elftool.safe_text import printable

_BOUNDS = ("__sched_text_start", "__sched_text_end")
NEEDS = (*(f"SYMBOL({name})" for name in _BOUNDS), *LOCK_NEEDS)
"""What this asks of a kernel."""
_SHOWN = 100


class Blocked(NamedTuple):
    """A task, the function that waits, and the lock; None where there is none, or it is not known."""

    task: Task
    at: Step | None
    wait: Wait | None


def scheduler_text(target: Target) -> tuple[int, int]:
    """Where the functions are that wait for others: as get_wchan() leaves them out (in_sched_functions())."""
    low, high = (target.symbol(name) or 0 for name in _BOUNDS)
    return (low, high) if low < high else (0, 0)


def waits_at(backtrace: Backtrace, scheduler: tuple[int, int]) -> Step | None:
    """The first function outside of the scheduler and the locks.

    None as well behind a place of theirs without a name: without symbols, gdb guesses who called it.
    """
    low, high = scheduler
    for step in backtrace.steps:
        if step.made_up:
            continue
        if not low <= step.pc < high:
            return step
        if step.function is None:
            return None
    return None


def blocked_lines(blocked: Sequence[Blocked], tasks: Mapping[int, Task]) -> Iterator[str]:
    """A task and what it waits for; at the end who waits for each other in a circle."""
    for each in blocked:
        ended = each.at is None and each.task.state in ENDED
        yield f"{_name(each.task)} " + ("has ended" if ended else f"in {_place(each.at)}")
        if each.wait is not None:
            yield f"    {_lock(each.wait, tasks)}"
    for circle in circles(blocked):
        shown = [*circle[:_SHOWN], circle[0]]
        yield "deadlock: " + " waits for ".join(str(tasks[vaddr].lwp) for vaddr in shown)


def circles(blocked: Sequence[Blocked]) -> Iterator[list[int]]:
    """Tasks each of which waits for what the next one holds, and the last for what the first one holds."""
    holder = {
        each.task.vaddr: each.wait.owner
        for each in blocked
        if each.wait is not None and each.wait.owner and not each.wait.relation.startswith("last")
    }
    done: set[int] = set()
    for start in holder:
        path: list[int] = []
        places: dict[int, int] = {}
        task = start
        while task in holder and task not in done and task not in places:
            places[task] = len(path)
            path.append(task)
            task = holder[task]
        if task in places:
            yield path[places[task] :]
        done.update(path)


def _name(task: Task) -> str:
    return f"{task.lwp} {printable(task.comm)} ({task.state})"


def _place(step: Step | None) -> str:
    if step is None:
        return "a place that is not known"
    function = printable(step.function) if step.function is not None else f"{step.pc:#x}"
    return function if step.place is None else f"{function} at {printable(step.place)}"


def _lock(wait: Wait, tasks: Mapping[int, Task]) -> str:
    owner = tasks.get(wait.owner)
    if owner is not None:
        holder = f"{wait.relation} {_name(owner)}"
    else:
        holder = (
            wait.relation if wait.relation.startswith("held") and not wait.relation.endswith("by") else ""
        )
    return f"{wait.kind} at {wait.lock:#x}" + (f", {holder}" if holder else ", by whom is not known")
