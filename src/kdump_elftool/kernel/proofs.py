"""Whether a variable that code uses is the one of a name: by what it holds.

- ``curr_clocksource`` points at a clock, which has a name and a function to read it, and is on a list.
- ``hstates`` begins with huge pages whose name says their size (mm/hugetlb.c).
- ``dentry_hashtable`` and ``inode_hashtable`` point at buckets, each of whose first nodes points back.
- ``max_pfn`` is where RAM ends by the tree of resources.
- ``nr_threads`` is how many threads all processes have together (kernel/fork.c).

References: the files named, of v6.1; include/linux/clocksource.h, include/linux/list_bl.h.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.iomem import read_system_ram
from kdump_elftool.kernel.lists import MOST_NODES
from kdump_elftool.kernel.structures import Structures
from kdump_elftool.kernel.words import Words

_BUCKETS = 1 << 14
"""The smallest table of a machine that has these has as many."""
_FEWEST = 8
"""Buckets in use that have to agree."""
_PAGE_SHIFTS = (12, 14, 16)
_LARGEST_ORDER = 32
_CLOCK = re.compile(rb"[A-Za-z0-9_:,.@-]{2,63}\0")
_HUGE = re.compile(rb"hugepages-(\d{1,9})kB\0")


@dataclass(frozen=True)
class Proofs:
    """``known`` tells offsets, and symbols that are needed."""

    words: Words
    known: Knowledge

    def of(self, name: str) -> Callable[[int], bool] | None:
        """What holds of an address only if it is that of this variable; None where there is no proof."""
        return {
            "curr_clocksource": self._points_at_clock,
            "hstates": self._begins_with_huge_pages,
            "dentry_hashtable": self._points_at_buckets,
            "inode_hashtable": self._points_at_buckets,
            "max_pfn": self._ends_ram,
            "nr_threads": self._counts_threads,
        }.get(name)

    def _points_at_clock(self, vaddr: int) -> bool:
        at = self._at
        clock = at.word(vaddr)
        offsets = at.offsets("clocksource.name", "clocksource.read", "clocksource.list")
        if not clock or offsets is None:
            return False
        name, read, node = (clock + offset for offset in offsets)
        following = at.word(node)
        back = at.word(following + self.words.word) if following else None
        return bool(at.word(read)) and back == node and bool(_CLOCK.match(at.text(at.word(name), 64)))

    def _begins_with_huge_pages(self, vaddr: int) -> bool:
        offsets = self._at.offsets("hstate.name", "hstate.order")
        if offsets is None:
            return False
        name, order = offsets
        text, power = _HUGE.match(self._at.text(vaddr + name, 32)), self._at.number(vaddr + order)
        if text is None or power is None or power > _LARGEST_ORDER:
            return False
        return int(text[1]) in [1 << power + shift - 10 for shift in _PAGE_SHIFTS]

    def _points_at_buckets(self, vaddr: int) -> bool:
        """The lowest bit of a bucket may be its lock."""
        table, word = self._at.word(vaddr), np.uint64(self.words.word)
        if not table:
            return False
        bucket = (np.uint64(table) + np.arange(_BUCKETS, dtype=np.uint64) * word) & self.words.mask
        first, readable = self.words.column(bucket)
        first &= ~np.uint64(1)
        used = first != 0
        back, there = self.words.column(first[used] + word & self.words.mask)
        return bool(readable.all() and there.all() and len(back) >= _FEWEST and (back == bucket[used]).all())

    def _ends_ram(self, vaddr: int) -> bool:
        ram = read_system_ram(self.words.memory, self.known, self.words.order, self.words.word)
        frames = self._at.word(vaddr)
        if ram is None or not ram.complete or not len(ram.ranges) or not frames:
            return False
        return int(ram.ranges.end.max()) in [frames << shift for shift in _PAGE_SHIFTS]

    def _counts_threads(self, vaddr: int) -> bool:
        """init_task heads the list of all processes, of which it is none."""
        first = self._at.symbol("init_task")
        offsets = self._at.offsets("task_struct.tasks", "task_struct.signal", "signal_struct.nr_threads")
        if first is None or offsets is None:
            return False
        to_node, to_signal, to_count = map(np.uint64, offsets)
        words = self.words
        node = self._at.nodes(first + int(to_node), MOST_NODES)[1:]
        signal, readable = words.column(node - to_node + to_signal & words.mask)
        counts, there = words.memory.gather(signal + to_count & words.mask, 4)
        if not len(counts) or not (readable.all() and there.all()):
            return False
        total = int(counts.reshape(-1).view(f"{words.order}i4").sum(dtype=np.int64))
        return total == self._at.number(vaddr)

    @property
    def _at(self) -> Structures:
        return Structures(self.words, self.known)
