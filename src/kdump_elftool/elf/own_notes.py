"""Notes of our own in an output core: owner ``kdump-elftool`` (docs/notes.md).

gdb's reader decides by type number whatever the owner is, and takes type 1 for NT_PRSTATUS when
the size fits one, so the descriptor is padded beyond every architecture's ``elf_prstatus``.
"""

from __future__ import annotations

import json

import numpy as np

from kdump_elftool.elf.constants import AT_ENTRY, AT_NULL, NT_AUXV
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.structs import ElfKind

OWNER = b"kdump-elftool"
TYPE_SUMMARY = 1
_LARGER_THAN_ANY_PRSTATUS = 1024


def summary_note(summary: object) -> Note:
    """``summary`` as JSON in a note, padded with spaces."""
    text = json.dumps(summary, separators=(",", ":")).encode("ascii")
    return Note(OWNER, TYPE_SUMMARY, text.ljust(_LARGER_THAN_ANY_PRSTATUS))


def auxv_note(kind: ElfKind, entry: int) -> Note:
    """NT_AUXV with AT_ENTRY: gdb moves a position-independent vmlinux so that it starts there."""
    table = np.array([(AT_ENTRY, entry), (AT_NULL, 0)], dtype=kind.auxv)
    return Note(b"CORE", NT_AUXV, table.tobytes())
