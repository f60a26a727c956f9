"""Backtraces by gdb's own unwinder, thread by thread; what a place is called is asked once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gdb

from kdump_elftool.gdbside.at_work import patience
from kdump_elftool.gdbside.target import GdbTarget
from kdump_elftool.plain.backtraces import Backtrace, Step, lowest_kernel_address

LONGEST = 200
"""Frames of one backtrace: more than any kernel stack holds, fewer than a loop would make."""
_MADE_UP = (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME)
_EM_ARM = 40
_EM_MIPS = 8
_GOOD_ENDS = (gdb.FRAME_UNWIND_NO_REASON, gdb.FRAME_UNWIND_OUTERMOST)


class Unwinder:
    """Walks frames and remembers names; lives as long as one command."""

    def __init__(self, kernel: GdbTarget) -> None:
        self._steps: dict[tuple[int, int, bool, bool, bool], Step] = {}
        has_modules_below = kernel.core is not None and kernel.core.machine == _EM_ARM
        self._lowest = lowest_kernel_address(kernel, has_modules_below=has_modules_below)
        self._mask = (1 << 8 * kernel.word) - 1
        self._guesses = guesses(kernel)

    def backtrace(self, thread: Any) -> Backtrace:
        """The frames of a thread, which is selected afterwards; those of user space are left out."""
        steps: list[Step] = []
        patience.tick()
        try:
            thread.switch()
            if self._guesses:
                without_advice()
            end = self._walk(gdb.newest_frame(), steps)
        except gdb.error as error:
            end = f"no further: {error}"
        while steps and steps[-1].pc == 0:
            steps.pop()
        return Backtrace(tuple(steps), end)

    def _walk(self, frame: Any, steps: list[Step]) -> str | None:
        nth, before = 0, None
        while frame is not None:
            pc = frame.pc() & self._mask  # of a 32-bit MIPS gdb has it signed
            if pc == self._mask and steps:
                return None
            if 0 < pc < self._lowest:  # behind the kernel's entry, where gdb may only guess
                return None if steps else f"in user space at {pc:#x}"
            if len(steps) >= LONGEST:
                return f"cut after {LONGEST} frames"
            nth = nth + 1 if pc == before else 0
            before = pc
            steps.append(self._step(frame, pc, nth, not steps))
            older = frame.older()
            if older is None:
                reason = frame.unwind_stop_reason()
                return None if reason in _GOOD_ENDS or pc == 0 else _why(reason)
            frame = older
        return None

    def _step(self, frame: Any, pc: int, nth: int, newest: bool) -> Step:
        """Several frames share a pc where functions are inlined; only of a caller it is behind a call."""
        made_up = frame.type() in _MADE_UP
        key = (pc, nth, made_up, newest, is_entry_that_called(frame))
        if key not in self._steps:
            sal = source_of(frame)
            place = f"{sal.symtab.filename}:{sal.line}" if sal.symtab is not None and sal.line else None
            self._steps[key] = Step(pc, made_up, frame.name(), place)
        return self._steps[key]


def is_entry_that_called(frame: Any) -> bool:
    """Whether a frame of saved registers stands behind a call, and was not interrupted itself."""
    if frame.type() != gdb.SIGTRAMP_FRAME:
        return False
    newer = frame.newer()
    return newer is not None and newer.type() != gdb.SIGTRAMP_FRAME


def source_of(frame: Any) -> Any:
    """Of what called, the line of the call; gdb has the next instruction where registers are saved."""
    return gdb.find_pc_line(frame.pc() - 1) if is_entry_that_called(frame) else frame.find_sal()


def guesses(kernel: GdbTarget) -> bool:
    """Whether gdb looks for the start of a function in its code, where no symbol says where that is."""
    return kernel.core is not None and kernel.core.machine == _EM_MIPS


def without_advice() -> None:
    """Have gdb find the newest frames of the selected thread: if it cannot, its advice is not shown."""
    try:
        gdb.execute("python gdb.newest_frame().older()", to_string=True)
    except gdb.error:
        pass  # whoever asks for the frames next hears of it


@contextmanager
def selection_kept() -> Iterator[None]:
    """Whatever is done to the selected thread and frame, they are the same afterwards."""
    thread = gdb.selected_thread()
    without_advice()
    try:
        frame = gdb.selected_frame()
    except gdb.error:
        frame = None
    try:
        yield
    finally:
        if thread is not None and thread.is_valid():
            thread.switch()
            if frame is not None and frame.is_valid():
                frame.select()


def _why(reason: int) -> str:
    return f"no further: {gdb.frame_stop_reason_string(reason)}"
