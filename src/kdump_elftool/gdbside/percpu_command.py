"""``kd-percpu``: a per-CPU variable of each CPU."""

from __future__ import annotations

from typing import Any

import gdb

from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.percpu import percpu_variable
from kdump_elftool.gdbside.target import target

_WHOLE = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION, gdb.TYPE_CODE_ARRAY)


class PerCpuCommand(Command):
    """Show where each CPU has its copy of a per-CPU variable, and its value.

    kd-percpu SYMBOL[.MEMBER...] [CPU]

    Structures and arrays are shown with their type only, unless a CPU is given. In expressions:
    $kd_percpu("SYMBOL", CPU) points to the copy of that CPU."""

    NAME = "kd-percpu"
    COMPLETES = gdb.COMPLETE_SYMBOL

    def run(self, words: list[str]) -> None:
        """One line a CPU."""
        if len(words) not in (1, 2) or not all(word.isascii() and word.isdigit() for word in words[1:]):
            raise usage(self)
        variable = percpu_variable(target(), words[0])
        chosen = [int(word) for word in words[1:]] or list(variable.places)
        for cpu in chosen:
            shown = _shown(variable.pointer(cpu), whole=len(words) == 2)
            say_lines(f"CPU {cpu}: {variable.places[cpu]:#x}{shown}")


def say_lines(text: str) -> None:
    """Each line of a text that gdb made."""
    for line in text.split("\n"):
        say(line)


def _shown(pointer: Any, *, whole: bool) -> str:
    if pointer.type.code != gdb.TYPE_CODE_PTR:
        return ""
    kind = pointer.type.target()
    if kind.strip_typedefs().code in _WHOLE and not whole:
        return f" = {{{_name(kind)}}}"
    try:
        return f" = {pointer.dereference().format_string()}"
    except gdb.error as error:
        return f": {error}"


def _name(kind: Any) -> str:
    """As C has it, whatever language gdb takes the code for: that may leave out the word struct."""
    words = {gdb.TYPE_CODE_STRUCT: "struct", gdb.TYPE_CODE_UNION: "union"}
    return f"{words[kind.code]} {kind.tag}" if kind.code in words and kind.tag else str(kind)
