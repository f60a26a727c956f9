"""Names for the frames in which the kernel saved the registers of what it interrupted.

gdb calls such a frame ``<signal handler called>``, which in a process it would be; in a kernel it is the
entry of an exception, an interrupt or a system call, and has a name.  What is nameless stays ``??``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gdb
from gdb.FrameDecorator import FrameDecorator, FrameVars

from kdump_elftool.gdbside.frames import source_of
from kdump_elftool.gdbside.target import target

NAME = "kdump-elftool-entries"
_EM_X86_64 = 62


class _Named(FrameDecorator):  # type: ignore[misc]
    """A frame whose function has the name of its code, whatever its kind."""

    def function(self) -> Any:
        """A name, and ``??`` without one."""
        frame = self.inferior_frame()
        found = None if frame.type() == gdb.SIGTRAMP_FRAME else super().function()
        return found if isinstance(found, str) else frame.name() or "??"

    def frame_args(self) -> Any:
        """Those of code without line numbers, too."""
        frame = self.inferior_frame()
        plain = frame.type() in (gdb.NORMAL_FRAME, gdb.INLINE_FRAME)
        return FrameVars(frame).fetch_frame_args() if plain else super().frame_args()

    def line(self) -> Any:
        """Of the instruction before, where the one that is next has none."""
        frame = self.inferior_frame()
        if frame.type() == gdb.SIGTRAMP_FRAME:
            return source_of(frame).line or None
        found, pc = super().line(), frame.pc()
        return found or (gdb.find_pc_line(pc - 1).line or None if pc > 0 else None)


class EntryNames:
    """A frame filter, for cores of x86_64 kernels alone: elsewhere nothing makes such frames."""

    def __init__(self) -> None:
        self.name = NAME
        self.priority = 100
        self._wanted = True

    @property
    def enabled(self) -> bool:
        """What gdb asks before each backtrace: it prints in its own way unless a filter is enabled."""
        try:
            core = target().core
        except gdb.GdbError:
            return False
        return self._wanted and core is not None and bool(core.ours) and core.machine == _EM_X86_64

    @enabled.setter
    def enabled(self, wanted: bool) -> None:
        self._wanted = wanted

    def filter(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Each frame with its name."""
        return map(_Named, frames)


def register() -> None:
    """Sourced again, the new takes the place of the old."""
    gdb.frame_filters[NAME] = EntryNames()
