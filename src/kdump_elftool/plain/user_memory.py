"""Memory of a process, by its own page table: its command line.

Reference: fs/proc/base.c (get_mm_cmdline()).
"""

from __future__ import annotations

from typing import Protocol

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.pagewalk import Form, Physical, walk
from kdump_elftool.plain.target import PAGE, Target, unsigned
from kdump_elftool.plain.vmas import page_table
from kdump_elftool.plain.walking import WalkError

NEEDS = (
    *("OFFSET(task_struct.mm)", "OFFSET(mm_struct.pgd)"),
    *("OFFSET(mm_struct.arg_start)", "OFFSET(mm_struct.arg_end)"),
)
"""What this asks of a kernel."""
LONGEST = 4096
"""Bytes of a command line that are worth reading."""


class Translated(Physical, Protocol):
    """Physical memory that also tells where kernel addresses lie."""

    def paddr_of(self, vaddr: int) -> int | None:
        """None for an address that is not there."""


def has_memory(target: Target, task: int) -> bool:
    """Whether a task has memory of its own."""
    return bool(_member(target, task, "task_struct.mm"))


def command_line(target: Target, memory: Translated, form: Form, task: int) -> bytes:
    """The words, each with a null behind it.  Raises FaultError, WalkError, IdentityError."""
    mm = _member(target, task, "task_struct.mm")
    start, end = (_member(target, mm, f"mm_struct.{name}") for name in ("arg_start", "arg_end"))
    if not 0 < start < end:
        raise WalkError("where it is is not known")
    root = memory.paddr_of(page_table(target, task))
    if root is None:
        raise FaultError("vaddr", page_table(target, task), "not in the core")
    data = b""
    at, end = start, min(end, start + LONGEST)
    while at < end:
        step = min(PAGE - at % PAGE, end - at)
        data += memory.read_physical(walk(memory, form, root, at).paddr, step)
        at += step
    return data


def _member(target: Target, vaddr: int, name: str) -> int:
    """A pointer; 0 where it is not known or not there."""
    offset = target.offset(name)
    try:
        return 0 if offset is None or not vaddr else unsigned(target, vaddr + offset, target.word)
    except FaultError:
        return 0
