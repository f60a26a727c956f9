"""Which lock a task waits for, and who holds it.

Newer kernels say it: ``task_struct.blocker`` (v6.15 on, CONFIG_DETECT_HUNG_TASK_BLOCKER) has the lock and
in its lowest two bits the kind, ``blocked_on`` the mutex (v6.17 on; with CONFIG_DEBUG_MUTEXES a waiter
before), and ``pi_blocked_on`` a waiter at an rt_mutex.  Otherwise the waiter is looked for on the task's own
stack: a pointer to the task, in a structure whose list goes around and back, through waiters of living
tasks on their stacks and through one lock with an owner that lives.  Nothing counts that is not confirmed
by the lock's own list.

References: include/linux/hung_task.h, kernel/locking/mutex.c (MUTEX_FLAGS), rwsem.c (RWSEM_READER_OWNED),
rtmutex_common.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from kdump_elftool.plain import wait_lists
from kdump_elftool.plain.target import Field, Pieces, Target, read_pieces
from kdump_elftool.plain.tasks import Task
from kdump_elftool.plain.wait_lists import MUTEX, RWSEM, SEMAPHORE, Layout, layouts, ring, word

_RT_MUTEX = "rt_mutex"
NEEDS = (
    *wait_lists.NEEDS,
    *(f"OFFSET(task_struct.{member})" for member in ("stack", "blocker", "blocked_on", "pi_blocked_on")),
    *("OFFSET(rw_semaphore.count)", "OFFSET(rwsem_waiter.type)"),
    *("OFFSET(semaphore.count)", "OFFSET(semaphore.last_holder)"),
    *("OFFSET(rt_mutex_waiter.task)", "OFFSET(rt_mutex_waiter.lock)"),
    *("OFFSET(rt_mutex.owner)", "OFFSET(rt_mutex_base.owner)", "OFFSET(thread_info.task)"),
    "SIZE(thread_union)",
)
"""What this asks of a kernel."""
FLAGS = 7
"""Low bits of an owner that are no part of the pointer."""
_BLOCKERS = (MUTEX, SEMAPHORE, RWSEM, RWSEM)
_STACK = {4: 1 << 14, 8: 1 << 15}
"""Bytes to look at where the size of a stack is not known: THREAD_SIZE, and twice that."""
_LARGEST_STACK = 1 << 17
_MOST_PLACES = 256
"""Of a stack that has pointers to its task: a real one has some dozens."""
_BY_NAME = (
    ("mutex", MUTEX),
    ("rwsem", RWSEM),
    ("down_read", RWSEM),
    ("down_write", RWSEM),
    ("down", SEMAPHORE),
)


class Wait(NamedTuple):
    """A lock that a task waits for.

    ``owner`` is the address of a living task, 0 where it is not known; ``relation`` says what the owner is.
    """

    kind: str
    lock: int
    owner: int
    relation: str


class LockFinder:
    """Finds locks; ``tasks`` are all that live."""

    def __init__(self, target: Target, tasks: Iterable[Task]) -> None:
        self._target = target
        self._tasks = {task.vaddr: task for task in tasks}
        self._layouts = layouts(target)
        told = target.size("thread_union") or 0
        self._stack_size = told if 0 < told <= _LARGEST_STACK else _STACK[target.word]
        self._stacks: dict[int, int] = {}

    def wait(self, task: Task, functions: Iterable[str] = ()) -> Wait | None:
        """What a task waits for; ``functions`` of its backtrace, newest first, tell kinds of locks apart."""
        return self._told(task) or self._rt_mutex(task) or self._searched(task, list(functions))

    def _told(self, task: Task) -> Wait | None:
        """By what the task itself says, if the lock agrees."""
        blocker = self._member(task.vaddr, "task_struct.blocker")
        candidates = [(_BLOCKERS[blocker & 3], blocker & ~3)] if blocker else []
        mutex = self._member(task.vaddr, "task_struct.blocked_on")
        candidates += [(MUTEX, mutex)] if mutex and not self._on_stack(task.vaddr, mutex) else []
        for kind, lock in candidates:
            for layout in self._layouts:
                if layout.kind == kind:
                    for node in layout.waiters(self._target, lock):
                        if layout.task_at(self._target, node) == task.vaddr:
                            return self._wait(layout, lock, node)
        return None

    def _rt_mutex(self, task: Task) -> Wait | None:
        waiter = self._member(task.vaddr, "task_struct.pi_blocked_on")
        if not waiter or self._member(waiter, "rt_mutex_waiter.task") != task.vaddr:
            return None
        lock = self._member(waiter, "rt_mutex_waiter.lock")
        name = "rt_mutex_base" if self._target.offset("rt_mutex_base.owner") is not None else "rt_mutex"
        owner = self._member(lock, f"{name}.owner") & ~FLAGS if lock else 0
        return Wait(_RT_MUTEX, lock, owner if owner in self._tasks else 0, "held by") if lock else None

    def _searched(self, task: Task, functions: list[str]) -> Wait | None:
        """By a waiter on the stack."""
        stack = self._stack(task.vaddr)
        if not stack:
            return None
        pieces = read_pieces(self._target, stack, self._stack_size)
        found: dict[str, Wait] = {}
        for at in islice(self._places(pieces, task.vaddr), _MOST_PLACES):
            for layout in self._layouts:
                node = stack + at - layout.task + layout.node
                for lock in self._locks(layout, node, pieces):
                    wait = self._wait(layout, lock, node)
                    if self._fits(layout, lock, wait):
                        found.setdefault(layout.kind, wait)
        named = _by_functions(found, functions)
        if named is not None:
            return named
        # the one of which most was asked; only a name tells a semaphore without a holder from others
        sure = {kind: wait for kind, wait in found.items() if kind != SEMAPHORE or wait.owner}
        return next((sure[kind] for kind in (RWSEM, MUTEX, SEMAPHORE) if kind in sure), None)

    def _places(self, pieces: Pieces, value: int) -> Iterator[int]:
        """Where a word of the stack has this value."""
        wanted = value.to_bytes(self._target.word, "little" if self._target.order == "<" else "big")
        at = pieces.data.find(wanted)
        while at >= 0:
            if at % self._target.word == 0:
                yield at
            at = pieces.data.find(wanted, at + 1)

    def _locks(self, layout: Layout, node: int, pieces: Pieces) -> Iterator[int]:
        """Locks whose ring this node is in."""
        nodes = ring(self._target, node)
        others = [each for each in nodes if not self._is_waiter(layout, each)]
        if layout.first is None:
            if len(others) == 1 and others[0] != node:
                yield others[0] - layout.head
        elif nodes and not others:
            yield from self._pointed_at(layout, set(nodes), pieces)

    def _pointed_at(self, layout: Layout, nodes: set[int], pieces: Pieces) -> Iterator[int]:
        """The lock is not in the ring, but a function that waits for it has its address on the stack."""
        size, order = self._target.word, self._target.order
        words = {Field(at, size).at(pieces.data, 0, order) for at in range(0, len(pieces.data), size)}
        for lock in sorted(each for each in words if each and each % size == 0):
            first = word(self._target, lock + (layout.first or 0))
            if first and first + layout.node in nodes:
                yield lock

    def _is_waiter(self, layout: Layout, node: int) -> bool:
        task = layout.task_at(self._target, node)
        return task in self._tasks and self._on_stack(task, node)

    def _wait(self, layout: Layout, lock: int, node: int) -> Wait:
        kind = layout.kind
        if kind == SEMAPHORE:
            holder = self._member(lock, "semaphore.last_holder")
            return Wait(kind, lock, holder if holder in self._tasks else 0, "last taken by")
        if layout.owner is None:
            return Wait(kind, lock, 0, "held")
        value = word(self._target, lock + layout.owner)
        owner = value & ~FLAGS
        if owner and owner not in self._tasks:  # a thread_info, until v3.9
            owner = self._member(owner, "thread_info.task")
        owner = owner if owner in self._tasks else 0
        if kind == MUTEX:
            return Wait(kind, lock, owner, "held by")
        waits = self._member_of_waiter(layout, node)
        reading = bool(value & 1)
        return Wait(f"{kind}{waits}", lock, owner, _relation(owner, reading))

    def _member_of_waiter(self, layout: Layout, node: int) -> str:
        """Whether a waiter at a rw_semaphore wants to read or to write (enum rwsem_waiter_type)."""
        kind = self._number(node - layout.node, "rwsem_waiter.type", 4)
        return "" if kind is None or kind > 1 else " for reading" if kind else " for writing"

    def _fits(self, layout: Layout, lock: int, wait: Wait) -> bool:
        """Whether what was found by the shape of its list alone is a lock of this kind.

        A mutex and a rw_semaphore have their owner equally far from the head of their lists.  But of a mutex
        that somebody waits for the owner has the lowest bit set (MUTEX_FLAG_WAITERS, since v4.10 moved it to
        the beginning), of a rw_semaphore only while it is read.
        """
        if layout.kind == SEMAPHORE:
            return self._number(lock, "semaphore.count", 4) == 0
        value = 0 if layout.owner is None else word(self._target, lock + layout.owner)
        if layout.kind == MUTEX:
            flagged = layout.owner != 0 or bool(value & 1)
            return layout.owner is None or (wait.owner != 0 and flagged)
        if value & 1:
            count = self._number(lock, "rw_semaphore.count", self._target.word) or 0
            return _read_and_waited_for(count, 4 * self._target.word)
        return layout.owner is None or wait.owner != 0

    def _number(self, vaddr: int, name: str, width: int) -> int | None:
        offset = self._target.offset(name)
        if offset is None:
            return None
        pieces = read_pieces(self._target, vaddr + offset, width)
        return None if pieces.holes else Field(0, width).at(pieces.data, 0, self._target.order)

    def _member(self, vaddr: int, name: str) -> int:
        """A pointer; 0 where it is not known or not there."""
        offset = self._target.offset(name)
        return 0 if offset is None else word(self._target, vaddr + offset)

    def _stack(self, task: int) -> int:
        if task not in self._stacks:
            self._stacks[task] = self._member(task, "task_struct.stack")
        return self._stacks[task]

    def _on_stack(self, task: int, vaddr: int) -> bool:
        stack = self._stack(task)
        return stack <= vaddr < stack + self._stack_size if stack else False


def _relation(owner: int, reading: bool) -> str:
    if reading:
        return "last taken for reading by" if owner else "held for reading"
    return "held for writing by" if owner else "held"


def _read_and_waited_for(count: int, half: int) -> bool:
    """Of a rw_semaphore: above bit 8 readers, below a flag for waiters and maybe one for a handoff (v5.3 on).

    Before: readers in the lower half of a long, and the upper one negative when somebody waits.
    """
    below = count & ((1 << half) - 1)
    return (count & 0xFB == 2 and 0 < count >> 8 < 1 << 22) or (
        count >> half == (1 << half) - 1 and 0 < below < 1 << 16
    )


def _by_functions(found: dict[str, Wait], functions: list[str]) -> Wait | None:
    """The kind that the first function with a name of one tells."""
    for function in functions:
        for part, kind in _BY_NAME:
            if part in function:
                return found.get(kind)
    return None
