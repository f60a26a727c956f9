"""What a task is, beyond what a list of tasks shows.

References: include/linux/sched.h, include/linux/cred.h.  ``start_time`` is nanoseconds since v3.17, before
that a struct timespec.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.tasks import Task, TaskReader, walk_list
from kdump_elftool.safe_text import printable

_IDS = ("uid", "euid", "gid", "egid")
NEEDS = (
    *("OFFSET(task_struct.flags)", "OFFSET(task_struct.stack)", "SIZE(thread_union)"),
    *("OFFSET(task_struct.start_time)", "OFFSET(task_struct.start_time.tv_sec)"),
    *("OFFSET(task_struct.real_parent)", "OFFSET(task_struct.children)", "OFFSET(task_struct.mm)"),
    *("OFFSET(task_struct.signal)", "OFFSET(signal_struct.nr_threads)"),
    *("OFFSET(task_struct.cred)", *(f"OFFSET(cred.{name})" for name in _IDS)),
)
"""What this asks of a kernel, beside what reads tasks."""
MOST_CHILDREN = 1 << 20
NSEC = 10**9
_FLAGS = (
    (0x4, "EXITING"),
    (0x20, "WQ_WORKER"),
    (0x40, "FORKNOEXEC"),
    (0x100, "SUPERPRIV"),
    (0x200, "DUMPCORE"),
    (0x400, "SIGNALED"),
    (0x800, "MEMALLOC"),
    (0x8000, "NOFREEZE"),
    (0x200000, "KTHREAD"),
    (0x400000, "RANDOMIZE"),
    (0x4000000, "NO_SETAFFINITY"),
)
"""PF_ flags that have kept their places."""


class Details(NamedTuple):
    """``task``, and of the rest None what is not known; ``ids`` are uid, euid, gid, egid."""

    task: Task
    flags: int | None
    stack: int | None
    stack_size: int | None
    started: int | None
    parent: int | None
    threads: int | None
    children: int | None
    children_whole: bool
    ids: tuple[int, ...] | None
    mm: int | None


def read_details(target: Target, task: Task) -> Details:
    """Everything about a task that was found before.  Raises nothing."""
    reader = _Reader(target, task.vaddr)
    signal, cred = reader.word("task_struct.signal"), reader.word("task_struct.cred")
    children, whole = reader.children()
    found = [reader.at(cred, f"cred.{name}", 4) for name in _IDS] if cred else []
    ids = tuple(each for each in found if each is not None)
    return Details(
        task=task,
        flags=reader.at(task.vaddr, "task_struct.flags", 4),
        stack=reader.word("task_struct.stack"),
        stack_size=target.size("thread_union"),
        started=reader.started(),
        parent=reader.word("task_struct.real_parent"),
        threads=reader.at(signal, "signal_struct.nr_threads", 4) if signal else None,
        children=children,
        children_whole=whole,
        ids=ids if len(ids) == len(_IDS) else None,
        mm=reader.word("task_struct.mm"),
    )


def detail_lines(target: Target, details: Details) -> Iterator[tuple[str, str]]:
    """Labels and values; what is not known is left out."""
    task = details.task
    yield "task", f"{task.vaddr:#x}"
    yield "comm", printable(task.comm)
    threads = "" if not details.threads else f", {details.threads} threads" if details.threads > 1 else ""
    yield "pid", f"{task.tid}, process {task.tgid}{threads}"
    yield "state", f"{task.state}{_cpu(task)}"
    if details.flags is not None:
        names = " ".join(name for bit, name in _FLAGS if details.flags & bit)
        yield "flags", f"{details.flags:#x}" + (f" ({names})" if names else "")
    if details.stack:
        size = f", {details.stack_size} bytes" if details.stack_size else ""
        yield "stack", f"{details.stack:#x}{size}"
    elif details.stack is not None:
        yield "stack", "none: the task has ended"
    if details.started is not None:
        yield "started", f"{details.started // NSEC}.{details.started % NSEC:09} s after boot"
    if details.ids is not None:
        yield "user", "uid {}, euid {}, gid {}, egid {}".format(*details.ids)
    if details.parent:
        # init_task is the parent of the first two: an idle task, which has the number 0
        parent = TaskReader(target).task(details.parent, 0)
        name = "" if parent is None else f"{parent.tgid} {printable(parent.comm)}, "
        yield "parent", f"{name}{details.parent:#x}"
    if details.children is not None:
        more = "" if details.children_whole else ", and maybe more: their list is damaged"
        yield "children", f"{details.children}{more}"
    if details.mm is not None:
        yield "memory", f"mm_struct {details.mm:#x}" if details.mm else "none of its own"


def _cpu(task: Task) -> str:
    if task.cpu < 0:
        return ""
    return f", on CPU {task.cpu}" if task.on_cpu else f", last on CPU {task.cpu}"


class _Reader:
    def __init__(self, target: Target, vaddr: int) -> None:
        self._target = target
        self._vaddr = vaddr

    def at(self, base: int, name: str, width: int) -> int | None:
        offset = self._target.offset(name)
        try:
            return None if offset is None else unsigned(self._target, base + offset, width)
        except FaultError:
            return None

    def word(self, name: str) -> int | None:
        return self.at(self._vaddr, name, self._target.word)

    def started(self) -> int | None:
        """Nanoseconds after boot."""
        name, word = "task_struct.start_time", self._target.word
        if self._target.offset(f"{name}.tv_sec") is None:
            return self.at(self._vaddr, name, 8)
        seconds, nsec = self.word(name), self.at(self._vaddr + word, name, word)
        return None if seconds is None or nsec is None else seconds * NSEC + nsec

    def children(self) -> tuple[int | None, bool]:
        """How many, and whether that is sure."""
        offset = self._target.offset("task_struct.children")
        if offset is None:
            return None, True
        nodes, whole = walk_list(self._target, self._vaddr + offset, MOST_CHILDREN)
        return len(nodes), whole
