"""Rows of ps: the seed's, all columns, trees; whatever a dump claims, each task is shown once."""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.plain.ps import Choice, all_columns, seed_lines, tree_lines, tty_name
from kdump_elftool.plain.tasks import Task, all_tasks
from tests.builders.tasks import OFFSETS, PlainTarget, make_tasks

HOSTILE = b"\x1b[2J\nshell rm"
TASKS = [
    Task(0x1000, 0, 0, b"swapper/0", 0, "R", 0, False, 0),
    Task(0x2000, 1, 1, b"init", 0, "S", 0),
    Task(0x3000, 20, 20, b"daemon", 1, "D", 1),
    Task(0x4000, 20, 21, b"worker", 1, "R", 1, True),
    Task(0x5000, 30, 30, HOSTILE, 20, "S", -1),
    Task(0x6000, 2, 2, b"kthreadd", 0, "S", 0),
]


@pytest.fixture
def memory():
    """Three processes with 1, 2, 1 threads; the first has a terminal."""
    made = make_tasks("both", [1, 2, 1])
    at, tty = made.expected[0][0], made.base + 0x300
    signal = int.from_bytes(made.data[at - made.base + OFFSETS["task_struct.signal"] :][:8], "little")
    made.put(signal + 0x40, 8, tty)
    made.data[0x320:0x326] = b"ttyS\x070"
    return made


def target(memory, **changes) -> PlainTarget:
    lines = {"OFFSET(signal_struct.tty)": "64", "OFFSET(tty_struct.name)": "32", **changes}
    info = memory.info
    return PlainTarget(memory.virtual(), type(info)({**info.values, **lines}), "<", 8)


def test_the_seeds_columns(memory):
    """As the original script printed them: tabs, the name filled up to 16, threads below."""
    found = target(memory)
    lines = list(seed_lines(found, [task for task in all_tasks(found).tasks if task.tid]))
    at = [row[0] for row in memory.expected]
    assert lines == [
        "PID\ttty\tCMD\t\tTASK_STRUCT",
        f"1\tttyS\\x070\ttask 1          ((struct task_struct *) {at[0]:#x})",
        f"2\t?\ttask 2          ((struct task_struct *) {at[1]:#x})",
        f"    3\t((struct task_struct *) {at[2]:#x})",
        f"4\t?\ttask 4          ((struct task_struct *) {at[3]:#x})",
    ]


def test_terminals_that_cannot_be(memory):
    at = memory.expected[0][0]
    assert tty_name(target(memory, **{"OFFSET(tty_struct.name)": str(1 << 40)}), at) == "?"
    assert tty_name(target(memory, **{"OFFSET(signal_struct.tty)": "x"}), at) == "?"
    memory.put(at + OFFSETS["task_struct.signal"], 8, 0xDEAD000000000100)
    assert tty_name(target(memory), at) == "?"


def test_all_columns():
    assert list(all_columns(TASKS)) == [
        "    PID     TID    PPID ST CPU TASK   COMM",
        "      0       0       0  R   0 0x1000 swapper/0",
        "      1       1       0  S   0 0x2000 init",
        "      2       2       0  S   0 0x6000 kthreadd",
        "     20      20       1  D   1 0x3000 daemon",
        ">    20      21       1  R   1 0x4000 worker",
        r"     30      30      20  S   - 0x5000 \x1b[2J\x0ashell rm",
    ]


def test_tree():
    """A child below its parent, threads in braces."""
    names = [line.split("0x")[1][5:] for line in list(tree_lines(TASKS))[1:]]
    below_init = ["    daemon", "      {worker}", r"      \x1b[2J\x0ashell rm"]
    assert names == ["swapper/0", "  init", *below_init, "  kthreadd"]
    alone = [line.split("0x")[1][5:] for line in list(tree_lines(TASKS[1:3]))[1:]]
    assert alone == ["init", "  daemon"]


@pytest.mark.parametrize(
    ("choice", "tids"),
    [
        (Choice(), [0, 1, 20, 21, 30, 2]),
        (Choice(states="DR"), [0, 20, 21]),
        (Choice(name="*d*"), [20, 2]),
        (Choice(name="swapper/[0-9]"), [0]),
        (Choice(pids=frozenset({20})), [20, 21]),
        (Choice(pids=frozenset({21, 30})), [21, 30]),
        (Choice(states="S", name="init"), [1]),
    ],
)
def test_choices(choice, tids):
    assert [task.tid for task in TASKS if choice.takes(task)] == tids


def test_parents_that_go_round_in_circles():
    random = Random(20261129)
    for _ in range(200):
        count = random.randrange(1, 12)
        tasks = [
            Task(
                0x1000 + number,
                tgid := random.randrange(6),
                random.choice((tgid, number)),
                b"x",
                random.randrange(-1, 6),
            )
            for number in range(count)
        ]
        lines = list(tree_lines(tasks))
        assert sorted(line.split("0x")[1][:4] for line in lines[1:]) == [
            f"{0x1000 + n:x}" for n in range(count)
        ]


def test_a_chain_of_parents_is_no_deeper_than_a_terminal():
    tasks = [Task(0x1000 * number, number, number, b"x", number - 1) for number in range(1, 5000)]
    assert max(map(len, tree_lines(tasks))) < 100
