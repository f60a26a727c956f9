"""The kernel's doubly linked lists (struct list_head), many at once, whole or damaged.

A node counts only if it points back to the one before it.  So no walk can run into a cycle: the
node where it closed would have to point back to two.  Where the way forward ends, the list is
walked backward from its head up to the same place.  Reference: include/linux/list.h, __list_add().
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Index, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.memory.virtual import VirtualMemory

MOST_NODES = 4 << 20
"""PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h)."""
_FEW = 4


@dataclass(frozen=True)
class Nodes:
    """Addresses of nodes in the order of their lists, heads left out; ``owner`` indexes the heads.

    ``broken`` are the lists that could not be walked from end to end.
    """

    owner: Index
    node: U64
    broken: Index


@dataclass(frozen=True)
class ListReader:
    """Reads list heads: two pointers, next and prev."""

    memory: VirtualMemory
    order: str
    word: int

    def pair(self, vaddr: int) -> tuple[int, int] | None:
        """next and prev of one node; None where it cannot be read."""
        try:
            data = self.memory.read(vaddr & MASK64, 2 * self.word)
        except FaultError:
            return None
        order = "little" if self.order == "<" else "big"
        return (
            int.from_bytes(data[: self.word], order),  # type: ignore[arg-type]
            int.from_bytes(data[self.word :], order),  # type: ignore[arg-type]
        )

    def pairs(self, vaddr: U64) -> tuple[U64, U64, U64]:
        """next and prev of many nodes, and 1 where they could be read."""
        blocks, readable = self.memory.gather(vaddr, 2 * self.word)
        values = blocks.reshape(-1).view(f"{self.order}u{self.word}").reshape(-1, 2).astype(np.uint64)
        return values[:, 0], values[:, 1], readable.astype(np.uint64)

    def walk(self, heads: U64, most: int = MOST_NODES) -> Nodes:
        """All nodes of the lists with these heads, at most ``most``."""
        following, _, readable = self.pairs(heads)
        owners: list[Index] = []
        nodes: list[U64] = []
        broken: list[int] = np.flatnonzero(readable == 0).tolist()
        owner = np.flatnonzero(readable)
        previous, current = heads[owner], following[owner]
        total = 0
        while len(owner) > _FEW and total < most:
            # a list is at its end where it comes back to its head
            open_ = current != heads[owner]
            owner, previous, current = owner[open_], previous[open_], current[open_]
            following, back, readable = self.pairs(current)
            good = (readable == 1) & (back == previous)
            for index in np.flatnonzero(~good).tolist():
                at = int(owner[index])
                self._backward(heads, at, int(previous[index]), owners, nodes, most - total)
                broken.append(at)
            owner, current = owner[good], current[good]
            owners.append(owner)
            nodes.append(current)
            total += len(owner)
            previous, current = current, following[good]
        for at, before, now in zip(owner.tolist(), previous.tolist(), current.tolist(), strict=True):
            found, last = self._forward(int(heads[at]), before, now, most - total)
            _add(owners, nodes, at, found)
            total += len(found)
            if last is not None:
                total += self._backward(heads, at, last, owners, nodes, most - total)
                broken.append(at)
        return _sorted(owners, nodes, broken)

    def _forward(self, head: int, previous: int, current: int, most: int) -> tuple[list[int], int | None]:
        """The rest of one list, and the last good node if its end was not reached."""
        found: list[int] = []
        while current != head:
            pair = self.pair(current)
            if pair is None or pair[1] != previous or len(found) >= most:
                return found, previous
            found.append(current)
            previous, current = current, pair[0]
        return found, None

    def _backward(
        self, heads: U64, at: int, last: int, owners: list[Index], nodes: list[U64], most: int
    ) -> int:
        """From the head back to behind ``last``, the last node that the way forward reached."""
        head = int(heads[at])
        first = self.pair(head)
        found: list[int] = []
        following, current = head, first[1] if first else head
        while current not in (last, head) and len(found) < most:
            pair = self.pair(current)
            if pair is None or pair[0] != following:
                break
            found.append(current)
            following, current = current, pair[1]
        _add(owners, nodes, at, found[::-1])
        return len(found)


def _add(owners: list[Index], nodes: list[U64], at: int, found: list[int]) -> None:
    owners.append(np.full(len(found), at, dtype=np.intp))
    nodes.append(u64(found))


def _sorted(owners: list[Index], nodes: list[U64], broken: list[int]) -> Nodes:
    owner = np.concatenate([np.zeros(0, dtype=np.intp), *owners])
    node = np.concatenate([np.zeros(0, dtype=np.uint64), *nodes])
    order = np.argsort(owner, kind="stable")
    return Nodes(owner[order], node[order], np.unique(np.array(broken, dtype=np.intp)))
