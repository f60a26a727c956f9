"""The letter of a task's state, as the kernel itself gives it in /proc/PID/stat.

Which letter a bit has changed over the years: X and Z changed places in v3.15, P became a bit of its own and
I the highest one in v4.14.  The kernel has them in ``task_state_array``, lowest bit first; where that cannot
be read, they are those of v4.14 on.

References: fs/proc/array.c (task_state_array, get_task_state()), include/linux/sched.h (TASK_REPORT,
__task_state_index()).
"""

from __future__ import annotations

import re

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.target import Target, unsigned

NEEDS = ("SYMBOL(task_state_array)",)
"""What this reader asks of a kernel."""
LETTERS = "RSDTtXZPI"
ENDED = "XZ"
"""Of a task that runs no more; somebody has yet to wait for it."""
EXITED = (0x10, 0x20, 0x30)
"""``exit_state`` of such a task: EXIT_ZOMBIE and EXIT_DEAD, which changed places, and both (EXIT_TRACE)."""
_MOST_LETTERS = 16
_LONGEST_TEXT = 24
_EXIT_LETTERS = 7
_PARKED = 7
_TEXT = re.compile(rb"([A-Za-z]) \([a-z -]{1,20}\)\0")
_UNINTERRUPTIBLE = 0x2
_IDLE = 0x402
_ASLEEP = 0x8000 | 0x1000
"""TASK_FROZEN (v6.1 on) and TASK_RTLOCK_WAIT (v5.15 on) count as uninterruptible."""


def state_letters(target: Target) -> str:
    """The letters that this kernel uses, by the highest bit of a state that is set; the first is for none."""
    table = target.symbol("task_state_array")
    found = ""
    if table is not None:
        for index in range(_MOST_LETTERS):
            letter = _letter(target, table + index * target.word)
            if letter is None:
                break
            found += letter
    plausible = found[:5].upper() == "RSDTT" and sorted(found[5:7]) == ["X", "Z"]
    return found if plausible else LETTERS


def reported_bits(letters: str) -> int:
    """The bits of a state that are shown, TASK_REPORT; the others say how a task sleeps or wakes."""
    return (1 << (_PARKED if letters[_PARKED : _PARKED + 1] == "P" else _EXIT_LETTERS - 1)) - 1


def state_letter(state: int, exit_state: int, letters: str = LETTERS) -> str:
    """The letter of a task with these members."""
    report = reported_bits(letters)
    shown = (state | exit_state) & report
    if "I" in letters and state & _IDLE == _IDLE:
        shown = report + 1
    if state & _ASLEEP:
        shown = _UNINTERRUPTIBLE
    return letters[shown.bit_length()]


def _letter(target: Target, vaddr: int) -> str | None:
    """The letter of the text that is pointed to from ``vaddr``."""
    text = b""
    try:
        at = unsigned(target, vaddr, target.word)
        while len(text) < _LONGEST_TEXT and not text.endswith(b"\0"):
            text += target.read(at + len(text), 1)
    except FaultError:
        return None
    found = _TEXT.match(text)
    return None if found is None else found[1].decode("ascii")
