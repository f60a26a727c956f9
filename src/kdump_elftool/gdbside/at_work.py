"""What keeps gdb busy says so to who waits for it: to a terminal, never into a log."""

from __future__ import annotations

import os

import gdb

from kdump_elftool.plain.patience import Patience

_STDERR = 2
_LARGE = 64 << 20
"""Bytes of a file whose types gdb does not read in a moment."""
_told: list[str] = []


def to_terminal(text: str) -> None:
    """Beside the output."""
    if os.isatty(_STDERR):
        gdb.write(text, gdb.STDERR)


patience = Patience(to_terminal)


def types_are_read() -> None:
    """Called before gdb looks for a type: that may take all of a vmlinux, once, and gdb says nothing then."""
    name = gdb.current_progspace().filename
    if name is None or name in _told:
        return
    _told.append(name)
    try:
        large = os.stat(name).st_size >= _LARGE
    except OSError:
        return
    if large:
        patience.write("(gdb looks for types in the vmlinux: the first time that may take a while)\n")
        patience.heard()
