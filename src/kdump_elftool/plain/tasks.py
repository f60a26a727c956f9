"""Tasks one by one, as a debugger would read them: the plain reference of ``kernel.tasks``.

Processes are on the list of ``init_task.tasks``; their threads on ``signal->thread_head`` through
``task->thread_node`` (v3.14 on) or on the ring of ``task->thread_group`` (until v6.6).  A list node
counts only if it points back to the one before it; where the way forward ends, the list is walked
backward up to there.  Idle tasks are on no list.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.target import Target, unsigned

NEEDS = (
    "SYMBOL(init_task)",
    "OFFSET(task_struct.tasks)",
    "OFFSET(task_struct.pid)",
    "OFFSET(task_struct.tgid)",
    "OFFSET(task_struct.comm)",
    "OFFSET(task_struct.signal)",
    "OFFSET(task_struct.thread_node)",
    "OFFSET(task_struct.thread_group)",
    "OFFSET(signal_struct.thread_head)",
)
"""What these readers ask of a kernel."""
COMM_SIZE = 16
MOST_NODES = 4 << 20


class Task(NamedTuple):
    """Address, process, thread and name of a task."""

    vaddr: int
    tgid: int
    tid: int
    comm: bytes


class TaskWalk(NamedTuple):
    """All tasks but idle ones, and how many lists were damaged."""

    tasks: list[Task]
    broken: int


def read_tasks(target: Target, most: int = MOST_NODES) -> TaskWalk:
    """Every process with its threads.  Raises IdentityError where the layout is not known."""
    init_task = target.symbol("init_task")
    if init_task is None:
        raise IdentityError("SYMBOL(init_task)", "the address of init_task is not known")
    offset = _offset(target, "task_struct.tasks")
    nodes, whole = walk_list(target, init_task + offset, most)
    broken = int(not whole)
    tasks: list[Task] = []
    seen: set[int] = set()
    for leader in (node - offset for node in nodes):
        members, whole = _threads(target, leader, most)
        broken += not whole
        for vaddr in (leader, *members):
            task = None if vaddr in seen else read_task(target, vaddr)
            seen.add(vaddr)
            if task is not None and len(tasks) < most:
                tasks.append(task)
    return TaskWalk(tasks, broken)


def read_task(target: Target, vaddr: int) -> Task | None:
    """One task; None where it cannot be read or cannot be one."""
    try:
        tid = unsigned(target, vaddr + _offset(target, "task_struct.pid"), 4)
        tgid = unsigned(target, vaddr + _offset(target, "task_struct.tgid"), 4)
        comm = target.read(vaddr + _offset(target, "task_struct.comm"), COMM_SIZE)
    except FaultError:
        return None
    if not 0 < tid <= MOST_NODES or not 0 <= tgid < 1 << 31:
        return None
    return Task(vaddr, tgid, tid, comm.split(b"\0", 1)[0])


def walk_list(target: Target, head: int, most: int = MOST_NODES) -> tuple[list[int], bool]:
    """The nodes of a list in order, and whether it is whole."""
    forward: list[int] = []
    pair = _pair(target, head)
    if pair is None:
        return [], False
    before, now, back = head, pair[0], pair[1]
    while now != head:
        pair = _pair(target, now)
        if pair is None or pair[1] != before or len(forward) >= most:
            return forward + _backward(target, head, back, before, most - len(forward)), False
        forward.append(now)
        before, now = now, pair[0]
    return forward, True


def _backward(target: Target, head: int, now: int, last: int, most: int) -> list[int]:
    found: list[int] = []
    after = head
    while now not in (last, head) and len(found) < most:
        pair = _pair(target, now)
        if pair is None or pair[0] != after:
            break
        found.append(now)
        after, now = now, pair[1]
    return found[::-1]


def _threads(target: Target, leader: int, most: int) -> tuple[list[int], bool]:
    head, node, signal = (
        target.offset(name)
        for name in ("signal_struct.thread_head", "task_struct.thread_node", "task_struct.signal")
    )
    if head is not None and node is not None and signal is not None:
        try:
            start = unsigned(target, leader + signal, target.word) + head
        except FaultError:
            return [], False
    else:
        node = _offset(target, "task_struct.thread_group")
        start = leader + node
    nodes, whole = walk_list(target, start, most)
    return [at - node for at in nodes], whole


def _pair(target: Target, vaddr: int) -> tuple[int, int] | None:
    try:
        data = target.read(vaddr, 2 * target.word)
    except FaultError:
        return None
    first, second = (data[: target.word], data[target.word :])
    if target.order == "<":
        return int.from_bytes(first, "little"), int.from_bytes(second, "little")
    return int.from_bytes(first, "big"), int.from_bytes(second, "big")


def _offset(target: Target, name: str) -> int:
    value = target.offset(name)
    if value is None or not 0 <= value < 1 << 20:
        raise IdentityError(f"OFFSET({name})", f"the offset of {name} is not known")
    return value
