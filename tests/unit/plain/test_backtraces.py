"""Equal backtraces once, in an order that helps, as lines that fit."""

from __future__ import annotations

import pytest

from kdump_elftool.plain.backtraces import (
    Backtrace,
    Owner,
    Step,
    backtrace_lines,
    group_lines,
    grouped,
    lowest_kernel_address,
)
from tests.builders.locks import LockMemory

SCHEDULE = Step(0xFFFFFFFF81000010, False, "schedule", "kernel/sched/core.c:6638")
SWITCH = Step(0xFFFFFFFF81000010, True, "context_switch", "kernel/sched/core.c:5245")
NAMELESS = Step(0xC0100000, False, None, None)


def owner(lwp: int, state: str = "S", cpu: int | None = None) -> Owner:
    return Owner(lwp, f"task{lwp}", state, cpu)


def test_equal_ones_are_shown_once():
    sleeping, other = Backtrace((SWITCH, SCHEDULE)), Backtrace((SCHEDULE,))
    groups = grouped([(owner(1), sleeping), (owner(2), other), (owner(3), sleeping)])
    assert [[each.lwp for each in group.owners] for group in groups] == [[1, 3], [2]]
    assert [group.backtrace for group in groups] == [sleeping, other]


def test_what_ended_differently_is_not_equal():
    groups = grouped([(owner(1), Backtrace((SCHEDULE,))), (owner(2), Backtrace((SCHEDULE,), "no further"))])
    assert len(groups) == 2


def test_order_is_running_then_waiting_then_most_common():
    stacks = [Backtrace((SCHEDULE,) * length) for length in range(1, 6)]
    found = [
        (owner(10), stacks[0]),
        (owner(11), stacks[1]),
        (owner(12), stacks[1]),
        (owner(13, "D"), stacks[2]),
        (owner(14, "R", 1), stacks[3]),
        (owner(15, "R", 0), stacks[4]),
    ]
    assert [group.owners[0].lwp for group in grouped(found)] == [15, 14, 13, 11, 10]


def test_lines_are_those_of_gdb():
    assert list(backtrace_lines(Backtrace((SWITCH, SCHEDULE, NAMELESS), "no further"), 0)) == [
        "#0  context_switch () at kernel/sched/core.c:5245",
        "#1  0xffffffff81000010 in schedule () at kernel/sched/core.c:6638",
        "#2  0xc0100000 in ?? ()",
        "(no further)",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_lines_fit(width):
    owners = [owner(lwp) for lwp in range(100)]
    shown = [line for group in grouped((each, Backtrace((SWITCH, SCHEDULE))) for each in owners)
             for line in group_lines(group, width)]  # fmt: skip
    assert max(map(len, shown)) <= max(width, len("#1  0xffffffff81000010 in schedule ()"))
    assert " ".join(" ".join(shown).split()).startswith("100 tasks: 0 task0 (S), 1 task1 (S), 2 task2 (S)")
    assert "99 task99 (S)" in " ".join(shown)


def test_names_are_made_safe():
    hostile = Step(1 << 63, False, "a\x1b[31m", "b\nc:1")
    (line,) = backtrace_lines(Backtrace((hostile,)), 0)
    assert line == r"#0  0x8000000000000000 in a\x1b[31m () at b\x0ac:1"


@pytest.mark.parametrize(
    ("text", "word", "below", "lowest"),
    [
        (0xFFFFFFFF81000000, 8, False, 1 << 63),
        (0xFFFF800008010000, 8, False, 1 << 63),
        (0xC1000000, 4, False, 0xC0000000),
        (0xC0008000, 4, True, 0xBF000000),
        (0x80100000, 4, False, 0x80000000),
        (0x100000, 8, False, 0),
        (None, 8, False, 0),
    ],
)
def test_where_user_space_ends(text, word, below, lowest):
    """x86_64, arm64, i386, arm, mips; kernels that have the same addresses as processes; not known."""

    class Kernel(LockMemory):
        def symbol(self, name: str, /) -> int | None:
            return text

    kernel = Kernel("list", word=word)
    assert lowest_kernel_address(kernel, has_modules_below=below) == lowest
