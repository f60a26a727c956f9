"""Backtraces of many tasks as text: equal ones once, with the tasks that have them.

Of frames nothing is known here but where they are and what a debugger calls that place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kdump_elftool.plain.target import Target
from kdump_elftool.safe_text import printable

NEEDS = ("SYMBOL(_stext)",)
"""What this asks of a kernel."""
_INDENT = "    "
_MODULES_BELOW = 16 << 20
"""So far below its half of addresses 32-bit Arm has modules: MODULES_VADDR, arch/arm/include/asm/memory.h."""


class Step(NamedTuple):
    """One frame.  ``made_up``: of an inlined function, which has no return address of its own."""

    pc: int
    made_up: bool
    function: str | None
    place: str | None


class Owner(NamedTuple):
    """Whose backtrace it is.  ``cpu`` is where it was running, else None; ``state`` a letter as in ps.

    ``comm`` is text that may be shown.
    """

    lwp: int
    comm: str
    state: str
    cpu: int | None


class Backtrace(NamedTuple):
    """The frames, newest first, and why there are no more, if there should be."""

    steps: tuple[Step, ...]
    end: str | None = None


class Group(NamedTuple):
    """Tasks that stand at the same place."""

    owners: list[Owner]
    backtrace: Backtrace


def lowest_kernel_address(target: Target, *, has_modules_below: bool) -> int:
    """Below it is user space; 0 where the two are not apart by address, or that is not known."""
    text = target.symbol("_stext") or 0
    if not text >> (8 * target.word - 1):
        return 0
    if target.word == 8:
        return 1 << 63
    return (text & 0xF0000000) - (_MODULES_BELOW if has_modules_below else 0)


def grouped(found: Iterable[tuple[Owner, Backtrace]]) -> list[Group]:
    """What was running first, then what waits uninterruptibly, then the others, the most common first."""
    groups: dict[Backtrace, Group] = {}
    for owner, backtrace in found:
        groups.setdefault(backtrace, Group([], backtrace)).owners.append(owner)
    return sorted(groups.values(), key=_rank)


def group_lines(group: Group, width: int) -> Iterator[str]:
    """A group as lines; those of more than ``width`` characters are broken, 0 is no limit."""
    yield from _wrapped(_heading(group.owners), [_owner(owner) for owner in group.owners], width)
    yield from backtrace_lines(group.backtrace, width)


def ended_line(owner: Owner) -> str:
    """In the place of the backtrace of a task that has ended."""
    return f"{_owner(owner)} has ended: it has no stack"


def backtrace_lines(backtrace: Backtrace, width: int) -> Iterator[str]:
    """One frame a line, as gdb's ``bt`` shows it without arguments."""
    for number, step in enumerate(backtrace.steps):
        function = "??" if step.function is None else printable(step.function)
        where = "" if step.made_up else f"{step.pc:#018x} in " if step.pc >> 32 else f"{step.pc:#010x} in "
        line = f"#{number:<3}{where}{function} ()"
        if step.place is None:
            yield line
            continue
        place = f"at {printable(step.place)}"
        if width and len(line) + 1 + len(place) > width:
            yield line
            yield _INDENT + place
        else:
            yield f"{line} {place}"
    if backtrace.end is not None:
        yield f"({backtrace.end})"


def _rank(group: Group) -> tuple[int, int, int]:
    running = [owner.cpu for owner in group.owners if owner.cpu is not None]
    if running:
        return 0, min(running), 0
    waiting = any(owner.state == "D" for owner in group.owners)
    return 1 if waiting else 2, -len(group.owners), group.owners[0].lwp


def _heading(owners: list[Owner]) -> str:
    return "1 task:" if len(owners) == 1 else f"{len(owners)} tasks:"


def _owner(owner: Owner) -> str:
    where = "" if owner.cpu is None else f", on CPU {owner.cpu}"
    return f"{owner.lwp} {owner.comm} ({owner.state}{where})"


def _wrapped(heading: str, words: list[str], width: int) -> Iterator[str]:
    """Words with commas behind a heading, as many on a line as fit."""
    line = heading
    for at, word in enumerate(words):
        word += "," if at + 1 < len(words) else ""
        if width and len(line) + 1 + len(word) > width and line.strip():
            yield line
            line = _INDENT[:-1]
        line += " " + word
    yield line
