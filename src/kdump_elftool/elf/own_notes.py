"""Notes of our own in an output core: owner ``kdump-elftool`` (docs/notes.md).

gdb's reader decides by type number whatever the owner is, and takes type 1 for NT_PRSTATUS and
type 3 for NT_PRPSINFO when the size fits one, so the descriptors are padded beyond every
architecture's ``elf_prstatus`` and ``elf_prpsinfo``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdump_elftool.elf.constants import AT_NULL, NT_AUXV
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.structs import ElfKind, Table, bind

OWNER = b"kdump-elftool"
TYPE_SUMMARY = 1
TYPE_TASKS = 2
TYPE_UNDO = 3
TYPE_LAYOUT = 4
LAYOUT_SCHEMA = "kdump-elftool/layout/1"
_LARGER_THAN_ANY_PRSTATUS = 1024
UNDO_NOTE_SIZE = 12 + 16 + _LARGER_THAN_ANY_PRSTATUS
"""An encoded undo note: header, padded owner, descriptor."""
_UNDO_VERSION = 1
_UNDO: Table = (
    ("version", "u4", "u4"),
    ("crc32", "u4", "u4"),
    ("old_length", "u8", "u8"),
    ("new_length", "u8", "u8"),
    ("ehdr_size", "u4", "u4"),
    ("reserved", "u4", "u4"),
)


@dataclass(frozen=True)
class Undo:
    """How a file was before it was changed in place, and how long it became."""

    ehdr: bytes
    old_length: int
    new_length: int


def producer() -> str:
    """This program and its version, as it stands in what it writes."""
    # costs 30 ms, which --help and errors need not pay
    from importlib.metadata import version

    return f"kdump-elftool {version('kdump-elftool')}"


def summary_note(summary: object) -> Note:
    """``summary`` as JSON in a note, padded with spaces."""
    text = json.dumps(summary, separators=(",", ":")).encode("ascii")
    return Note(OWNER, TYPE_SUMMARY, text.ljust(_LARGER_THAN_ANY_PRSTATUS))


def task_note(tasks: object) -> Note:
    """The table of tasks as JSON.

    gdb takes any note of type 2 for the floating-point registers of the thread whose note came last, so
    this one goes before all threads.
    """
    text = json.dumps(tasks, separators=(",", ":")).encode("ascii")
    return Note(OWNER, TYPE_TASKS, text.ljust(_LARGER_THAN_ANY_PRSTATUS))


def layout_note(answers: Mapping[str, int | None]) -> Note:
    """What the gdb side asks of a kernel, ``KIND(name)``, with the answers; None is asked and not known."""
    document = {"schema": LAYOUT_SCHEMA, "answers": dict(answers)}
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    return Note(OWNER, TYPE_LAYOUT, text.ljust(_LARGER_THAN_ANY_PRSTATUS))


def auxv_note(kind: ElfKind, values: Mapping[int, int]) -> Note:
    """NT_AUXV.  By AT_ENTRY gdb moves a position-independent vmlinux so that it starts there."""
    table = np.array([*values.items(), (AT_NULL, 0)], dtype=kind.auxv)
    return Note(b"CORE", NT_AUXV, table.tobytes())


def parse_auxv(kind: ElfKind, note: Note) -> dict[int, int]:
    """The values of an NT_AUXV note up to AT_NULL; what is cut off is left out."""
    desc = note.desc if isinstance(note.desc, bytes) else b""
    size = kind.auxv.itemsize
    values: dict[int, int] = {}
    for row in np.frombuffer(desc[: len(desc) // size * size], dtype=kind.auxv):
        if row["a_type"] == AT_NULL:
            break
        values.setdefault(int(row["a_type"]), int(row["a_val"]))
    return values


def undo_note(kind: ElfKind, undo: Undo) -> Note:
    """The old ELF header and length; the size of the note is always the same."""
    head = np.zeros(1, dtype=bind(_UNDO, kind))
    head["version"] = _UNDO_VERSION
    head["old_length"], head["new_length"] = undo.old_length, undo.new_length
    head["ehdr_size"] = len(undo.ehdr)
    head["crc32"] = zlib.crc32(head.tobytes() + undo.ehdr)
    desc = head.tobytes() + undo.ehdr
    return Note(OWNER, TYPE_UNDO, desc.ljust(_LARGER_THAN_ANY_PRSTATUS, b"\0"))


def parse_undo(kind: ElfKind, note: Note) -> Undo | None:
    """What :func:`undo_note` stored; None when the descriptor cannot be one of its own."""
    dtype = bind(_UNDO, kind)
    if not isinstance(note.desc, bytes) or len(note.desc) != _LARGER_THAN_ANY_PRSTATUS:
        return None
    head = np.frombuffer(note.desc, dtype=dtype, count=1).copy()
    crc32 = int(head["crc32"][0])
    head["crc32"] = 0
    ehdr = note.desc[dtype.itemsize : dtype.itemsize + kind.ehdr.itemsize]
    if int(head["version"][0]) != _UNDO_VERSION or int(head["ehdr_size"][0]) != kind.ehdr.itemsize:
        return None
    if crc32 != zlib.crc32(head.tobytes() + ehdr):
        return None
    return Undo(ehdr, int(head["old_length"][0]), int(head["new_length"][0]))
