"""What a task waits for is found in what the kernel leaves, and nothing is found where nothing is."""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.plain.backtraces import Backtrace, Step
from kdump_elftool.plain.blocked import Blocked, blocked_lines, circles, waits_at
from kdump_elftool.plain.locks import LockFinder, Wait
from tests.builders.locks import BLOCKED_ON, BLOCKER, MOST_TASKS, PI_BLOCKED_ON, WAITER_AT, LockMemory

SEED = 20261129
MACHINES = [("<", 8), (">", 8), ("<", 4), (">", 4)]
machines = pytest.mark.parametrize(("order", "word"), MACHINES, ids=["le64", "be64", "le32", "be32"])
layouts = pytest.mark.parametrize("layout", ["list", "first", "old"])
HOLDER = 9


def find(memory: LockMemory, tid: int, *functions: str) -> Wait | None:
    return LockFinder(memory, memory.tasks.values()).wait(memory.tasks[tid], functions)


def held_mutex(memory: LockMemory, tids: list[int]) -> Wait:
    lock = memory.lock(1)
    memory.wait("mutex", lock, tids)
    memory.hold_mutex(lock, HOLDER)
    return Wait("mutex", lock, memory.tasks[HOLDER].vaddr, "held by")


@machines
@layouts
@pytest.mark.parametrize("waiting", [[1], [1, 2], [5, 3, 1, 2]], ids=len)
def test_mutex(order, word, layout, waiting):
    memory = LockMemory(layout, order, word)
    expected = held_mutex(memory, waiting)
    assert [find(memory, tid) for tid in waiting] == [expected] * len(waiting)
    assert find(memory, HOLDER) is None


@machines
@pytest.mark.parametrize("layout", ["list", "first"])
@pytest.mark.parametrize("reading", [False, True])
def test_rw_semaphore_that_is_written(order, word, layout, reading):
    memory = LockMemory(layout, order, word)
    lock = memory.lock(2)
    memory.wait("rw_semaphore", lock, [1, 2], reading=reading)
    memory.hold_for_writing(lock, HOLDER)
    kind = f"rw_semaphore for {'reading' if reading else 'writing'}"
    assert find(memory, 2) == Wait(kind, lock, memory.tasks[HOLDER].vaddr, "held for writing by")


@machines
@pytest.mark.parametrize("layout", ["list", "first"])
def test_rw_semaphore_that_is_read(order, word, layout):
    """The kernel remembers one reader, who may be gone."""
    memory = LockMemory(layout, order, word)
    lock = memory.lock(2)
    memory.wait("rw_semaphore", lock, [1, 2])
    memory.hold_for_reading(lock, HOLDER)
    last = memory.tasks.pop(HOLDER)
    assert find(memory, 1) == Wait("rw_semaphore for writing", lock, 0, "held for reading")
    memory.tasks[HOLDER] = last
    found = find(memory, 1)
    assert found == Wait("rw_semaphore for writing", lock, last.vaddr, "last taken for reading by")
    assert find(memory, 1, "__schedule", "rwsem_down_write_slowpath", "mutex_bystander") == found


@machines
@pytest.mark.parametrize("layout", ["list", "first"])
def test_semaphore(order, word, layout):
    memory = LockMemory(layout, order, word)
    lock = memory.lock(3)
    memory.wait("semaphore", lock, [1])
    assert find(memory, 1, "schedule_timeout", "__down_common") == Wait("semaphore", lock, 0, "last taken by")
    assert find(memory, 1) is None
    memory.offsets["semaphore.last_holder"] = 0x40
    memory.put(lock + 0x40, memory.tasks[HOLDER].vaddr)
    assert find(memory, 1) == Wait("semaphore", lock, memory.tasks[HOLDER].vaddr, "last taken by")


@layouts
def test_without_types_of_waiters(layout):
    """They have begun with the list and the task since there are such locks."""
    memory = LockMemory(layout)
    expected = held_mutex(memory, [1, 2])
    for name in [name for name in memory.offsets if "waiter." in name]:
        del memory.offsets[name]
    assert find(memory, 1) == expected


@layouts
@pytest.mark.parametrize("where", ["next", "prev", "task", "owner", "of another", "gone", "owner is gone"])
def test_what_the_list_does_not_confirm_is_none(layout, where):
    memory = LockMemory(layout)
    held_mutex(memory, [1, 2, 3])
    assert find(memory, 1) is not None
    if where == "gone":
        memory.put(memory.waiter(2), 0xDEAD000000000100)
        memory.put(memory.waiter(2) + 8, 0xDEAD000000000122)
    elif where == "owner is gone":
        del memory.tasks[HOLDER]
    else:
        at, value = {
            "next": (memory.waiter(1), memory.waiter(3)),
            "prev": (memory.waiter(2) + 8, memory.waiter(2)),
            "task": (memory.waiter(1) + 16, memory.tasks[4].vaddr),
            "owner": (memory.lock(1) + memory.offsets["mutex.owner"], 0),
            "of another": (memory.waiter(2) + 16, memory.tasks[4].vaddr),
        }[where]
        memory.put(at, value)
    assert find(memory, 1) is None


def test_waiter_of_a_task_that_is_gone():
    memory = LockMemory("list")
    held_mutex(memory, [1, 2])
    del memory.tasks[2]
    assert find(memory, 1) is None


def test_size_of_the_stack_is_not_needed():
    memory = LockMemory("list")
    expected = held_mutex(memory, [MOST_TASKS])
    memory.sizes.clear()
    assert find(memory, MOST_TASKS) == expected


@pytest.mark.parametrize("layout", ["list", "first"])
@pytest.mark.parametrize("member", ["blocker", "blocked_on"])
def test_what_the_task_says(layout, member):
    """Nothing of the waiter need be on a stack that can be read."""
    memory = LockMemory(layout)
    expected = held_mutex(memory, [1, 2])
    at = {"blocker": BLOCKER, "blocked_on": BLOCKED_ON}[member]
    memory.offsets[f"task_struct.{member}"] = at
    memory.put(memory.tasks[1].vaddr + at, memory.lock(1))
    memory.offsets.pop("task_struct.stack")
    assert find(memory, 1) == expected
    assert find(memory, 2) is None
    memory.put(memory.waiter(1) + 16, memory.tasks[3].vaddr)
    assert find(memory, 1) is None


def test_kind_is_in_the_lowest_bits_of_blocker():
    memory = LockMemory("first")
    lock = memory.lock(2)
    memory.wait("rw_semaphore", lock, [1], reading=True)
    memory.hold_for_writing(lock, HOLDER)
    memory.offsets["task_struct.blocker"] = BLOCKER
    memory.put(memory.tasks[1].vaddr + BLOCKER, lock | 2)
    expected = Wait("rw_semaphore for reading", lock, memory.tasks[HOLDER].vaddr, "held for writing by")
    assert find(memory, 1) == expected


def test_blocked_on_is_a_waiter_in_debug_kernels_before():
    memory = LockMemory("list")
    expected = held_mutex(memory, [1])
    memory.offsets["task_struct.blocked_on"] = BLOCKED_ON
    memory.put(memory.tasks[1].vaddr + BLOCKED_ON, memory.waiter(1))
    assert find(memory, 1) == expected


@pytest.mark.parametrize("name", ["rt_mutex", "rt_mutex_base"])
def test_rt_mutex(name):
    memory = LockMemory("list")
    memory.offsets |= {
        "task_struct.pi_blocked_on": PI_BLOCKED_ON,
        "rt_mutex_waiter.task": 0x30,
        "rt_mutex_waiter.lock": 0x38,
        f"{name}.owner": 0x18,
    }
    lock = memory.lock(4)
    memory.put(memory.tasks[1].vaddr + PI_BLOCKED_ON, memory.waiter(1))
    memory.put(memory.waiter(1) + 0x30, memory.tasks[1].vaddr)
    memory.put(memory.waiter(1) + 0x38, lock)
    memory.put(lock + 0x18, memory.tasks[HOLDER].vaddr | 1)
    assert find(memory, 1) == Wait("rt_mutex", lock, memory.tasks[HOLDER].vaddr, "held by")
    memory.put(memory.waiter(1) + 0x30, memory.tasks[2].vaddr)
    assert find(memory, 1) is None


@layouts
def test_damage_is_no_error(layout):
    random = Random(SEED)
    found = 0
    for _ in range(100):
        memory = LockMemory(layout)
        expected = held_mutex(memory, [1, 2, 3])
        for _ in range(random.choice((1, 1, 50))):
            at = random.choice(
                (memory.waiter(1), memory.waiter(2), memory.lock(1), memory.stack(1) + WAITER_AT)
            )
            value = random.choice((0, random.getrandbits(64), memory.waiter(3), memory.tasks[2].vaddr | 1))
            memory.put(at + 8 * random.randrange(4), value)
        result = find(memory, 1)
        assert result is None or result.owner in {0, *(task.vaddr for task in memory.tasks.values())}
        found += result == expected
    assert 0 < found < 100


def test_who_waits_for_each_other():
    memory = LockMemory("list")
    waits = {1: 2, 2: 3, 3: 1, 4: 1, 5: 6}
    by_address = {task.vaddr: task for task in memory.tasks.values()}
    blocked = [
        Blocked(
            memory.tasks[tid], None, Wait("mutex", memory.lock(tid), memory.tasks[holder].vaddr, "held by")
        )
        for tid, holder in waits.items()
    ]
    assert [[by_address[vaddr].tid for vaddr in circle] for circle in circles(blocked)] == [[1, 2, 3]]
    shown = list(blocked_lines(blocked, by_address))
    assert shown[:2] == [
        "1 task 1 (D) in a place that is not known",
        f"    mutex at {memory.lock(1):#x}, held by 2 task 2 (D)",
    ]
    assert shown[-1] == "deadlock: 1 waits for 2 waits for 3 waits for 1"


def test_a_reader_who_may_be_gone_makes_no_circle():
    memory = LockMemory("list")
    one, two = memory.tasks[1], memory.tasks[2]
    blocked = [
        Blocked(one, None, Wait("rw_semaphore", 16, two.vaddr, "last taken for reading by")),
        Blocked(two, None, Wait("mutex", 32, one.vaddr, "held by")),
    ]
    assert list(circles(blocked)) == []


def test_place_is_the_first_function_outside_of_the_scheduler():
    steps = [Step(0x110, True, "context_switch", None), Step(0x110, False, "__schedule", None),
             Step(0x1F0, False, "mutex_lock", None), Step(0x300, True, "inlined", None),
             Step(0x300, False, "ext4_write", "a.c:1")]  # fmt: skip
    assert waits_at(Backtrace(tuple(steps)), (0x100, 0x200)) == steps[-1]
    assert waits_at(Backtrace(tuple(steps[:3])), (0x100, 0x200)) is None
    assert waits_at(Backtrace(tuple(steps)), (0, 0)) == steps[1]


def test_who_called_a_function_without_a_name_is_a_guess():
    nameless, guess = Step(0x110, False, None, None), Step(0xFF20, False, None, None)
    assert waits_at(Backtrace((nameless, guess)), (0x100, 0x200)) is None
    assert waits_at(Backtrace((guess, nameless)), (0x100, 0x200)) == guess
