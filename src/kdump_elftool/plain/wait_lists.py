"""Who waits at a mutex, a rw_semaphore or a semaphore.

A waiter is a structure on the stack of the task that waits, with a list node and a pointer to that task.
The nodes form a ring; until v7.0 the lock's ``wait_list`` is one of it, later the ring is of waiters alone
and ``first_waiter`` of the lock points at one (Linux commit "locking/rwsem: Remove the list_head from struct
rw_semaphore" and its likes).  References: kernel/locking/mutex.c, rwsem.c, semaphore.c.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.tasks import walk_list

MUTEX, RWSEM, SEMAPHORE = "mutex", "rw_semaphore", "semaphore"
_WAITERS = {MUTEX: "mutex_waiter", RWSEM: "rwsem_waiter", SEMAPHORE: "semaphore_waiter"}
NEEDS = tuple(
    question
    for lock, waiter in _WAITERS.items()
    for question in (
        *(f"OFFSET({lock}.{member})" for member in ("wait_list", "first_waiter", "owner")),
        *(f"OFFSET({waiter}.{member})" for member in ("list", "task")),
    )
)
"""What this asks of a kernel."""
MOST_WAITERS = 1 << 14


class Layout(NamedTuple):
    """Offsets in a kind of lock and its waiters: ``first`` is None where the ``head`` is part of the ring."""

    kind: str
    node: int
    task: int
    head: int
    first: int | None
    owner: int | None

    def task_at(self, target: Target, node: int) -> int:
        """The task of a waiter by its node; 0 where there is none."""
        return word(target, node - self.node + self.task)

    def waiters(self, target: Target, lock: int) -> list[int]:
        """The nodes of all that wait at a lock; empty where its ring is damaged."""
        if self.first is None:
            nodes, whole = walk_list(target, lock + self.head, MOST_WAITERS)
            return nodes if whole else []
        first = word(target, lock + self.first)
        return ring(target, first + self.node) if first else []


def layouts(target: Target) -> list[Layout]:
    """Of the kinds of locks that this kernel is known to have."""
    found = []
    for kind, waiter in _WAITERS.items():
        head, first = target.offset(f"{kind}.wait_list"), target.offset(f"{kind}.first_waiter")
        if head is None and first is None:
            continue
        node, task = target.offset(f"{waiter}.list"), target.offset(f"{waiter}.task")
        # as it was from the beginning, where types of waiters are not known
        found.append(
            Layout(
                kind=kind,
                node=node or 0,
                task=2 * target.word if task is None else task,
                head=head or 0,
                first=first if head is None else None,
                owner=target.offset(f"{kind}.owner"),
            )
        )
    return found


def ring(target: Target, node: int) -> list[int]:
    """A node and all others of its ring; empty where a way around does not go back as it went."""
    others, whole = walk_list(target, node, MOST_WAITERS)
    return [node, *others] if whole else []


def word(target: Target, vaddr: int) -> int:
    """A pointer; 0 where it cannot be read."""
    try:
        return unsigned(target, vaddr, target.word)
    except FaultError:
        return 0
