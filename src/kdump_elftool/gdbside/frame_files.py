"""Call frames of the kernel that gdb has loaded, each file read once.

That is of the vmlinux alone: those of modules are not linked, and their functions go without.
"""

from __future__ import annotations

from typing import Any

import gdb

from kdump_elftool.gdbside.call_frames import CallFrames, Row
from kdump_elftool.gdbside.elf_file import ElfFile

MARK = "_stext"
"""A symbol of every vmlinux and no module: what it moved by is what the kernel moved by."""


class FrameFiles:
    """Rows by run-time addresses."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[CallFrames, int] | None] = {}
        self._marks: dict[str, int] = {}

    def row(self, pc: int) -> Row | None:
        """What holds at pc; None where no vmlinux says."""
        name = _file_of(pc)
        if name is None:
            return None
        if name not in self._files:
            self._files[name] = _load(name)
        found = self._files[name]
        here = None if found is None else self._mark(name)
        if found is None or here is None:
            return None
        frames, linked = found
        return frames.row(pc - here + linked)

    def _mark(self, name: str) -> int | None:
        """Where it was when it was last found: gdb finds none while its language is Rust."""
        here = _run_time(MARK)
        if here is not None:
            self._marks[name] = here
        return self._marks.get(name)


def _load(name: str) -> tuple[CallFrames, int] | None:
    try:
        with open(name, "rb") as file:
            elf = ElfFile(file)
            frames, mark = elf.content(b".debug_frame"), elf.symbol(MARK.encode())
    except (OSError, ValueError):
        return None
    return None if frames is None or mark is None else (CallFrames(frames), mark)


def _file_of(pc: int) -> str | None:
    """The file that has the debugging information of the code at pc."""
    symtab: Any = gdb.find_pc_line(pc).symtab
    return None if symtab is None else symtab.objfile.filename


def _run_time(symbol: str) -> int | None:
    try:
        return int(gdb.parse_and_eval("(unsigned long)&" + symbol))
    except (gdb.error, ValueError):
        return None
