"""Memory with tasks that wait for locks, as the kernel leaves it: waiters on stacks, locks with lists.

Layouts: ``list`` is that of v4.10 to v7.0 (the lock's wait_list is part of the ring), ``first`` that of
later kernels (first_waiter), ``old`` the one before v3.10, where a mutex has its owner at the end, as a
thread_info.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.tasks import Task

TASK_SIZE, STACK_SIZE, THREAD_INFO = 0x80, 0x2000, 0x40
STACK, BLOCKER, BLOCKED_ON, PI_BLOCKED_ON = 0x10, 0x18, 0x20, 0x28
WAITER_AT = STACK_SIZE - 0x200
"""Where a waiter lies on a stack."""
LOCKS = 0x1000
MOST_TASKS = 16
READERS = 3


@dataclass
class LockMemory:
    """Tasks 1 to MOST_TASKS, all alive but those taken out of ``tasks``; memory from ``base`` on."""

    layout: str
    order: str = "<"
    word: int = 8
    tasks: dict[int, Task] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: {"thread_union": STACK_SIZE})
    offsets: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = 0xFFFF888000000000 if self.word == 8 else 0xC0000000
        self.stacks = self.base + 0x10000
        self.data = bytearray(0x10000 + STACK_SIZE * MOST_TASKS)
        self.offsets |= self._offsets()
        for tid in range(1, MOST_TASKS + 1):
            task = Task(self.base + tid * TASK_SIZE, tid, tid, b"task %d" % tid, state="D")
            self.tasks[tid] = task
            self.put(task.vaddr + STACK, self.stack(tid))
            self.put(self.stack(tid) + THREAD_INFO, task.vaddr)

    def stack(self, tid: int) -> int:
        return self.stacks + (tid - 1) * STACK_SIZE

    def waiter(self, tid: int) -> int:
        return self.stack(tid) + WAITER_AT

    def lock(self, number: int) -> int:
        return self.base + LOCKS + 0x100 * number

    def put(self, vaddr: int, value: int, size: int = 0) -> None:
        size = size or self.word
        at = vaddr - self.base
        order = "little" if self.order == "<" else "big"
        self.data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)

    def wait(self, kind: str, lock: int, tids: list[int], *, reading: bool = False) -> None:
        """These tasks wait for a lock, in that order; nothing holds it yet."""
        waiter = {"mutex": "mutex_waiter", "rw_semaphore": "rwsem_waiter", "semaphore": "semaphore_waiter"}[
            kind
        ]
        for tid in tids:
            self.put(self.waiter(tid) + self.offsets[f"{waiter}.task"], self.tasks[tid].vaddr)
            if kind == "rw_semaphore":
                self.put(self.waiter(tid) + self.offsets["rwsem_waiter.type"], int(reading), 4)
            # functions that wait have the lock in a register that the next ones save
            self.put(self.stack(tid) + WAITER_AT - 0x80, lock)
        nodes = [self.waiter(tid) for tid in tids]
        if self.layout == "first":
            self.put(lock + self.offsets[f"{kind}.first_waiter"], nodes[0])
        else:
            nodes.append(lock + self.offsets[f"{kind}.wait_list"])
        for at, node in enumerate(nodes):
            self.put(node, nodes[(at + 1) % len(nodes)])
            self.put(node + self.word, nodes[at - 1])

    def hold_mutex(self, lock: int, tid: int) -> None:
        owner = self.tasks[tid].vaddr
        old = self.layout == "old"
        self.put(lock + self.offsets["mutex.owner"], self.stack(tid) + THREAD_INFO if old else owner | 1)

    def hold_for_writing(self, lock: int, tid: int) -> None:
        self.put(lock + self.offsets["rw_semaphore.count"], 1 | 2)
        self.put(lock + self.offsets["rw_semaphore.owner"], self.tasks[tid].vaddr)

    def hold_for_reading(self, lock: int, tid: int) -> None:
        self.put(lock + self.offsets["rw_semaphore.count"], READERS << 8 | 2)
        self.put(lock + self.offsets["rw_semaphore.owner"], self.tasks[tid].vaddr | 1)

    def _offsets(self) -> dict[str, int]:
        word = self.word
        head = "first_waiter" if self.layout == "first" else "wait_list"
        offsets = {
            "task_struct.stack": STACK,
            "mutex.owner": 0,
            f"mutex.{head}": word + 8,
            "rw_semaphore.count": 0,
            "rw_semaphore.owner": word,
            f"rw_semaphore.{head}": 2 * word + 8,
            "semaphore.count": 4,
            f"semaphore.{head}": 8,
            "rwsem_waiter.type": 3 * word,
        }
        if self.layout == "old":
            offsets |= {"mutex.owner": 8 + 2 * word, "mutex.wait_list": 8, "thread_info.task": 0}
        for waiter in ("mutex_waiter", "rwsem_waiter", "semaphore_waiter"):
            offsets |= {f"{waiter}.list": 0, f"{waiter}.task": 2 * word}
        return offsets

    def read(self, vaddr: int, size: int, /) -> bytes:
        at = vaddr - self.base
        if not 0 <= at <= len(self.data) - size:
            raise FaultError("vaddr", vaddr, "not there")
        return bytes(self.data[at : at + size])

    def symbol(self, name: str, /) -> int | None:
        return None

    def offset(self, name: str, /) -> int | None:
        return self.offsets.get(name)

    def size(self, name: str, /) -> int | None:
        return self.sizes.get(name)

    def length(self, name: str, /) -> int | None:
        return None

    def number(self, name: str, /) -> int | None:
        return None
