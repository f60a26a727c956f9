"""The table of tasks: what ``ps`` prints, and what a core with a thread for each task carries.

In a core it is the note of type 2 (docs/notes.md): JSON, which is checked like anything else that
comes out of a file before a line of it is believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields

from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.own_notes import OWNER, TYPE_TASKS

SCHEMA = "kdump-elftool/tasks/1"
_LARGEST = 1 << 31
_LONGEST = 64 << 20
"""Bytes of a table: half a million tasks."""
_LONGEST_COMM = 64
"""TASK_COMM_LEN bytes, each four characters when escaped."""


@dataclass(frozen=True)
class TaskRow:
    """One task; ``lwp`` is the thread's number in a core.

    ``ppid`` and ``cpu`` are -1 and ``state`` is ``?`` where the kernel does not tell; ``task`` is the
    address of the task_struct, ``0x..``; ``comm`` is escaped.
    """

    pid: int
    tid: int
    lwp: int
    ppid: int
    state: str
    cpu: int
    on_cpu: bool
    task: str
    comm: str


def as_json(rows: Iterable[TaskRow], schema: str = SCHEMA) -> dict[str, object]:
    """The table for programs."""
    return {"schema": schema, "tasks": [vars(row) for row in rows]}


def noted_tasks(notes: Iterable[Note]) -> list[TaskRow] | None:
    """The table that a core carries, of several the last; None without one, or if it was tampered with."""
    found = [note.desc for note in notes if (note.name, note.type) == (OWNER, TYPE_TASKS)]
    if not found:
        return None
    desc = found[-1]
    if isinstance(desc, bytes):
        return _decoded(desc)
    return _decoded(desc.file.read_at(desc.offset, desc.size)) if desc.size <= _LONGEST else None


def _decoded(desc: bytes) -> list[TaskRow] | None:
    try:
        table = json.loads(desc)
        if table["schema"] != SCHEMA:
            return None
        rows = [TaskRow(**row) for row in table["tasks"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return rows if all(map(_is_sane, rows)) else None


def _is_sane(row: TaskRow) -> bool:
    kinds = {"int": int, "str": str, "bool": bool}
    if any(type(getattr(row, field.name)) is not kinds[str(field.type)] for field in fields(row)):
        return False
    numbers = (row.pid, row.tid, row.lwp, row.ppid, row.cpu)
    texts = (row.state, row.task, row.comm)
    return (
        all(-_LARGEST <= number < _LARGEST for number in numbers)
        and all(text.isascii() and (text.isprintable() or not text) for text in texts)
        and len(row.state) == 1
        and len(row.comm) <= _LONGEST_COMM
        and row.task.startswith("0x")
        and len(row.task) <= 18
    )
