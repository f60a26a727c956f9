"""How a command of ours looks to gdb: help, words, errors once and without a traceback, safe output.

A command is a class with a docstring, which is its help, and ``run``.  What comes from a dump goes
through ``safe_text`` before it is said; ``say`` lets no control character pass, whoever forgot.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Any

import gdb

from kdump_elftool.errors import IdentityError, KdumpError
from kdump_elftool.gdbside.at_work import patience
from kdump_elftool.gdbside.language import in_c

_UNKNOWN = "make the core with 'tovelf -m vmlinux', or load the vmlinux: symbol-file -o OFFSET vmlinux"
_CONTROL = re.compile(r"[^\x20-\x7e\t]")


class Command(gdb.Command):  # type: ignore[misc]
    """Base of all commands; ``NAME`` is what the user types, the docstring its help."""

    NAME = ""
    COMPLETES = gdb.COMPLETE_NONE

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_USER, self.COMPLETES)

    def invoke(self, text: str, _from_tty: bool) -> None:
        """Called by gdb."""
        self.dont_repeat()
        try:
            with patience.at_work(self.NAME), in_c():
                self.run(gdb.string_to_argv(text))
        except KdumpError as error:
            hint = error.hint or (_UNKNOWN if isinstance(error, IdentityError) else "")
            hint = f"\nhint: {hint}" if hint else ""
            raise gdb.GdbError(_one_line(error.message) + _one_line(hint, newline=True)) from None
        except (gdb.error, OSError) as error:
            raise gdb.GdbError(_one_line(str(error))) from None

    @abstractmethod
    def run(self, words: list[str]) -> None:
        """Do it.  Raises KdumpError and gdb.GdbError for what the user should know."""


def say(line: str) -> None:
    """One line to the user."""
    gdb.write(_CONTROL.sub("?", line) + "\n")
    patience.heard()


def warn(text: str) -> None:
    """What the user should know about what is shown."""
    gdb.write(f"warning: {_CONTROL.sub('?', text)}\n", gdb.STDERR)


def usage(command: Command) -> Any:
    """The error for words that make no sense: raise it."""
    lines = [line.strip() for line in (command.__doc__ or "").splitlines()]
    words = next((line for line in lines if line.partition(" ")[0] == command.NAME), command.NAME)
    return gdb.GdbError(
        f"that makes no sense to {command.NAME}: it is {words} ('help {command.NAME}' says more)"
    )


def _one_line(text: str, *, newline: bool = False) -> str:
    return "".join(char if char == "\n" and newline else _CONTROL.sub("?", char) for char in text)
