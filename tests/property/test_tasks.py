"""Task lists: the columns equal the plain reader, whole or damaged at random; damage never does harm."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.tasks import TaskReader, Tasks
from kdump_elftool.plain.task_states import state_letter
from kdump_elftool.plain.tasks import all_tasks, read_tasks
from tests.builders.tasks import BASE, LAYOUTS, OFFSETS, PlainTarget, TaskMemory, bury, damage, make_tasks

MACHINES = [("<", 8), (">", 8), ("<", 4), (">", 4)]
BASES = {8: BASE, 4: 0xC0000000}
processes = st.lists(st.integers(1, 9), max_size=12)


def columns(memory: TaskMemory) -> tuple[Tasks, list[str]]:
    reader = TaskReader(memory.virtual(), Knowledge((memory.info,)), memory.order, memory.word)
    listed, warnings = reader.listed()
    tasks, more = reader.tasks(listed, None)
    return tasks, warnings + more


def listed(tasks: Tasks) -> list[tuple[int, int, int, bytes]]:
    rows = zip(tasks.task.tolist(), tasks.tgid.tolist(), tasks.tid.tolist(), tasks.comm, strict=True)
    return [row for row, idle in zip(rows, tasks.idle_cpu.tolist(), strict=True) if idle < 0]


def plain(memory: TaskMemory) -> list[tuple[int, int, int, bytes]]:
    target = PlainTarget(memory.virtual(), memory.info, memory.order, memory.word)
    return [task[:4] for task in read_tasks(target).tasks]


def rows(tasks: Tasks) -> list[tuple[object, ...]]:
    """All columns, a row a task."""
    columns = (tasks.task, tasks.tgid, tasks.tid, tasks.comm, tasks.ppid, map(chr, tasks.state))
    columns += (tasks.cpu, tasks.on_cpu, tasks.idle_cpu)
    lists = (column.tolist() if hasattr(column, "tolist") else column for column in columns)
    return list(zip(*lists, strict=True))


def plain_rows(memory: TaskMemory) -> list[tuple[object, ...]]:
    target = PlainTarget(memory.virtual(), memory.info, memory.order, memory.word)
    return [tuple(task) for task in all_tasks(target).tasks]


def scatter(memory: TaskMemory, random: Random) -> None:
    """Every task in a state of its own, with a parent and on a CPU of its own."""
    for vaddr, *_ in memory.expected:
        for name in ("__state", "exit_state", "on_cpu", "cpu"):
            value = random.choice((0, 1, 1 << random.randrange(32), random.getrandbits(32)))
            memory.put(vaddr + OFFSETS[f"task_struct.{name}"], 4, value)
        parent = random.choice((0, memory.base, *(row[0] for row in memory.expected)))
        memory.put(vaddr + OFFSETS["task_struct.real_parent"], memory.word, parent)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(counts=processes, machine=st.sampled_from(MACHINES), seed=st.integers(0, 99))
def test_whole_lists(layout, counts, machine, seed):
    order, word = machine
    memory = make_tasks(layout, counts, order=order, word=word, seed=seed, base=BASES[word])
    scatter(memory, Random(seed))
    tasks, warnings = columns(memory)
    assert rows(tasks) == plain_rows(memory)
    assert warnings == []
    assert listed(tasks) == memory.expected == plain(memory)
    assert tasks.lwp.tolist()[0] == -1
    assert tasks.task.tolist()[0] == memory.base
    assert len(set(tasks.lwp.tolist())) == len(tasks) == 1 + sum(counts)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(machine=st.sampled_from(MACHINES), seed=st.integers(0, 99))
def test_what_has_ended_is_there(layout, machine, seed):
    """A zombie, one whose tracer is told of its exit, a process without its first thread: no stacks."""
    order, word = machine
    memory = make_tasks(layout, [1, 2, 1, 3], order=order, word=word, seed=seed, base=BASES[word])
    for tid, exit_state in ((1, 0x20), (4, 0x30), (5, 0x20)):
        bury(memory, tid, exit_state)
    tasks, warnings = columns(memory)
    assert warnings == []
    assert listed(tasks) == memory.expected
    assert rows(tasks) == plain_rows(memory)
    by_tid = dict(zip(tasks.tid.tolist(), map(chr, tasks.state), strict=True))
    assert by_tid == {0: "S", 1: "Z", 2: "S", 3: "S", 4: "Z", 5: "Z", 6: "S", 7: "S"}


@pytest.mark.parametrize("exit_state", [0, 1, 0x21, 0x80000000])
def test_a_task_without_a_stack_that_has_not_ended(exit_state):
    memory = make_tasks("both", [1, 2])
    bury(memory, 2, exit_state)
    tasks, warnings = columns(memory)
    assert [row[2] for row in listed(tasks)] == [1, 3]
    assert rows(tasks) == plain_rows(memory)
    assert "makes no sense and is left out" in warnings[0]


@given(letters=st.sampled_from(["RSDTTZX", "RSDTtZXxKWP", "RSDTtXZPI"]), seed=st.integers(0, 999))
def test_states_of_all_kernels(letters, seed):
    """Whatever letters a kernel has, the column has those that are worked out one by one."""
    memory = make_tasks("both", [3, 4], seed=seed)
    scatter(memory, Random(seed))
    reader = TaskReader(memory.virtual(), Knowledge((memory.info,)), memory.order, memory.word)
    tasks, _ = reader.tasks(reader.listed()[0], None, letters)

    def member(vaddr: int, name: str) -> int:
        at = vaddr - memory.base + OFFSETS[f"task_struct.{name}"]
        return int.from_bytes(memory.data[at : at + 4], "little")

    expected = [
        state_letter(member(vaddr, "__state"), member(vaddr, "exit_state"), letters)
        for vaddr in tasks.task.tolist()
    ]
    assert list(map(chr, tasks.state)) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@given(counts=processes, seed=st.integers(0, 10_000), hits=st.integers(1, 40))
def test_damaged_lists(layout, counts, seed, hits):
    memory = make_tasks(layout, counts, seed=seed)
    scatter(memory, Random(seed))
    damage(memory, Random(seed), hits)
    tasks, _ = columns(memory)
    assert len(tasks) <= len(memory.data)
    lwps = tasks.lwp.tolist()
    assert len(set(lwps)) == len(lwps)
    assert 0 not in lwps
    assert rows(tasks) == plain_rows(memory)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(counts=st.lists(st.integers(1, 5), min_size=3, max_size=12), seed=st.integers(0, 999))
def test_one_broken_link_loses_nobody(layout, counts, seed):
    """A next pointer that is garbage: the rest is reached from the other end."""
    memory = make_tasks(layout, counts, seed=seed)
    victim = Random(seed).choice([row[0] for row in memory.expected if row[1] == row[2]])
    memory.put(victim + 0x80, 8, 0xDEAD000000000100)
    tasks, warnings = columns(memory)
    assert listed(tasks) == memory.expected
    assert len(warnings) == 1
    assert "list of processes is damaged" in warnings[0]
