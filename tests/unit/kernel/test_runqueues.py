"""Run queues: through the per-CPU variable, and from the tasks where nothing names it."""

from __future__ import annotations

from kdump_elftool.addr import u64
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.percpu import PerCpu
from kdump_elftool.kernel.runqueues import RunQueueReader, RunQueues
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

LAYOUT = {
    "OFFSET_task_struct__se": 0x40,
    "OFFSET_task_struct__pid": 0x60,
    "OFFSET_sched_entity__cfs_rq": 0x10,
    "OFFSET_cfs_rq__rq": 0x28,
    "OFFSET_rq__cpu": 0x80,
    "OFFSET_rq__curr": 0x88,
    "OFFSET_rq__idle": 0x90,
}
RQ = {0: 0x10000, 3: 0x20000}
IDLE = {0: 0x30000, 3: 0x31000}
TASKS = {0x40000: 0, 0x41000: 3, 0x42000: 0}


def machine() -> KernelSpace:
    space = KernelSpace()
    for cpu, rq in RQ.items():
        space.put(rq + 0x80, "i", cpu)
        space.put(rq + 0x88, "Q", BASE + 0x40000 + cpu)
        space.put(rq + 0x90, "Q", BASE + IDLE[cpu])
        space.put(IDLE[cpu] + 0x60, "i", 0)
    for number, (task, cpu) in enumerate(TASKS.items()):
        group = 0x50000 + 0x100 * number
        space.put(task + 0x60, "i", 100 + number)
        space.put(task + 0x50, "Q", BASE + group)
        space.put(group + 0x28, "Q", BASE + RQ[cpu])
    return space


def reader(space: KernelSpace, **keys: object) -> RunQueueReader:
    return RunQueueReader(space.virtual(), Knowledge((info_of(**keys),)), "<", 8)


def rows(queues: RunQueues) -> list[tuple[int, int, int]]:
    return list(zip(queues.cpu, queues.curr.tolist(), queues.idle.tolist(), strict=True))


EXPECTED = [(cpu, BASE + 0x40000 + cpu, BASE + IDLE[cpu]) for cpu in RQ]


def test_through_the_variable():
    found = reader(machine(), **LAYOUT, SYMBOL_runqueues=BASE).by_percpu(
        PerCpu((0, 3), u64([RQ[0], RQ[3]]), 8)
    )
    assert found is not None
    assert rows(found) == EXPECTED


def test_from_the_tasks():
    found = reader(machine(), **LAYOUT).by_tasks(u64([BASE + task for task in TASKS]))
    assert found is not None
    assert rows(found) == EXPECTED


def test_damage_loses_a_queue_and_invents_none():
    space = machine()
    tasks = u64([BASE + task for task in TASKS])
    space.put(RQ[3] + 0x90, "Q", 0xDEAD000000000100)  # an idle task that cannot be
    found = reader(space, **LAYOUT).by_tasks(tasks)
    assert found is not None
    assert rows(found) == EXPECTED[:1]
    space.put(RQ[0] + 0x80, "i", -5)
    assert reader(space, **LAYOUT).by_tasks(tasks) is None
    space = machine()
    space.put(IDLE[0] + 0x60, "i", 7)  # an idle task with a pid is none
    found = reader(space, **LAYOUT).by_tasks(tasks)
    assert found is not None
    assert rows(found) == EXPECTED[1:]


def test_two_queues_that_claim_one_cpu():
    space = machine()
    space.put(RQ[3] + 0x80, "i", 0)
    found = reader(space, **LAYOUT).by_tasks(u64([BASE + task for task in TASKS]))
    assert found is not None
    assert found.cpu == (0,)


def test_layout_not_known():
    for name in LAYOUT:
        keys = {key: value for key, value in LAYOUT.items() if key != name}
        assert reader(machine(), **keys).by_tasks(u64([BASE + 0x40000])) is None
    assert reader(machine(), SYMBOL_runqueues=BASE).by_percpu(PerCpu((0,), u64([0]), 8)) is None
