"""Lists of tasks as ``ps`` prints them: in the seed's columns, in all columns, as a tree.

The seed's rows are a process each, with its further threads below; names of terminals are those of
``signal->tty`` (include/linux/tty.h).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.tasks import Task
from kdump_elftool.safe_text import printable

NEEDS = ("OFFSET(task_struct.signal)", "OFFSET(signal_struct.tty)", "OFFSET(tty_struct.name)")
"""What the seed's rows ask of a kernel beside its tasks."""
SEED_HEADER = "PID\ttty\tCMD\t\tTASK_STRUCT"
_TTY_NAME = 64
_SHOWN_TTY = 7
_DEEPEST = 20
"""Further down a tree grows no wider."""


class Choice(NamedTuple):
    """Which tasks to show; empty: all."""

    states: str = ""
    name: str = ""
    pids: frozenset[int] = frozenset()

    def takes(self, task: Task) -> bool:
        """``name`` is a pattern as in a shell; ``pids`` are of processes or threads."""
        return (
            (not self.states or task.state in self.states)
            and (not self.name or fnmatchcase(task.comm.decode("latin-1"), self.name))
            and (not self.pids or bool(self.pids & {task.tid, task.tgid}))
        )


def seed_lines(target: Target, tasks: Iterable[Task]) -> Iterator[str]:
    """As the seed's ``ps``: tasks in the order of the kernel's lists."""
    yield SEED_HEADER
    process = None
    for task in tasks:
        place = f"((struct task_struct *) {task.vaddr:#x})"
        if task.tgid == process and task.tid != task.tgid:
            yield f"    {task.tid}\t{place}"
        else:
            yield f"{task.tid}\t{tty_name(target, task.vaddr)}\t{printable(task.comm):<16}{place}"
            process = task.tgid


def tty_name(target: Target, vaddr: int) -> str:
    """The controlling terminal of the task at ``vaddr``; ``?`` where there is none or it cannot be read."""
    offsets = [target.offset(question[7:-1]) for question in NEEDS]
    signal, tty, name = (offset or 0 for offset in offsets)
    if None in offsets:
        return "?"
    try:
        at = unsigned(target, unsigned(target, vaddr + signal, target.word) + tty, target.word)
        text = target.read(at + name, _TTY_NAME).split(b"\0", 1)[0] if at else b""
    except FaultError:
        return "?"
    return printable(text, _SHOWN_TTY) or "?"


def all_columns(tasks: Iterable[Task]) -> Iterator[str]:
    """A row a task, by process and thread; the idle tasks of the CPUs come first."""
    rows = sorted(tasks, key=lambda task: (task.tgid, task.tid, -task.lwp))
    width = max((len(f"{task.vaddr:#x}") for task in rows), default=0)
    yield column_names(width)
    for task in rows:
        yield _row(task, width, printable(task.comm))


def tree_lines(tasks: Iterable[Task]) -> Iterator[str]:
    """Processes below their parents; further threads, in braces, below their process."""
    rows = sorted(tasks, key=lambda task: (task.tgid, task.tid, -task.lwp))
    width = max((len(f"{task.vaddr:#x}") for task in rows), default=0)
    leaders: dict[int, Task] = {}
    for task in rows:
        if task.tid == task.tgid:
            leaders.setdefault(task.tid, task)
    below: dict[int, list[Task]] = {}
    roots = []
    for task in rows:
        parent = leaders.get(task.ppid if task.tid == task.tgid else task.tgid)
        if parent is None or parent is task or task.idle_cpu >= 0:
            roots.append(task)
        else:
            below.setdefault(parent.vaddr, []).append(task)
    yield column_names(width)
    seen: set[int] = set()
    # what only goes round in a circle has no root: that comes last
    for root in (*roots, *rows):
        waiting = [(root, 0)]
        while waiting:
            task, depth = waiting.pop()
            if task.vaddr in seen:
                continue
            seen.add(task.vaddr)
            name = printable(task.comm) if task.tid == task.tgid else f"{{{printable(task.comm)}}}"
            yield _row(task, width, "  " * min(depth, _DEEPEST) + name)
            waiting += [(child, depth + 1) for child in reversed(below.get(task.vaddr, []))]


def column_names(width: int) -> str:
    """The header; ``width`` is that of an address."""
    return f"{'PID':>7} {'TID':>7} {'PPID':>7} ST {'CPU':>3} {'TASK':<{width}} COMM"


def columns(
    pid: int, tid: int, ppid: int, state: str, cpu: int, task: str, comm: str, *, on_cpu: bool
) -> str:
    """A row; the task a CPU is running is marked as in crash, what is not known is a dash."""
    parent, place = (str(value) if value >= 0 else "-" for value in (ppid, cpu))
    mark = ">" if on_cpu else " "
    return f"{mark}{pid:>6} {tid:>7} {parent:>7} {state:>2} {place:>3} {task} {comm}"


def _row(task: Task, width: int, comm: str) -> str:
    address = f"{task.vaddr:#x}".ljust(width)
    return columns(task.tgid, task.tid, task.ppid, task.state, task.cpu, address, comm, on_cpu=task.on_cpu)
