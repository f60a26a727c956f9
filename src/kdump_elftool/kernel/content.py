"""What no table names is found by what it looks like: ``init_task`` and the lists of modules.

Kernels without CONFIG_KALLSYMS_ALL list functions alone.  ``init_task`` is the task of pid 0 that
is called swapper (``swapper/0`` on SMP kernels, init_idle() in kernel/sched/core.c) and from whose
list of tasks both neighbours point back.  The idle tasks of the other CPUs have the same name but
lie outside of the kernel image and on no list.  Before the kernel starts its neighbours are itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kdump_elftool.addr import MASK64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Fact, Source
from kdump_elftool.kernel.module_head import LISTS, find_module_list
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

TASK_COMM_LEN = 16
_NAMES = (b"swapper/0", b"swapper")
_MOST_CANDIDATES = 1000


@dataclass(frozen=True)
class ContentSource:
    """Symbols that can be found in the image between ``window``, given the offsets in ``known``.

    ``at_rest``: the image has not been started.
    """

    memory: VirtualMemory
    known: Source
    window: tuple[int, int]
    order: str
    word: int
    at_rest: bool = False

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`: answers SYMBOL of init_task, modules and btf_modules."""
        if kind != "SYMBOL" or name not in ("init_task", *LISTS):
            return None
        vaddr = self._init_task() if name == "init_task" else self._modules(name)
        return None if vaddr is None else Fact(f"SYMBOL({name})", vaddr, "found by its content")

    def _modules(self, name: str) -> int | None:
        if self.at_rest:
            return None
        return find_module_list(Words(self.memory, self.order, self.word), self.known, self.window, name)

    def _init_task(self) -> int | None:
        offsets = {}
        for member in ("comm", "tasks", "pid", "tgid"):
            fact = self.known.find("OFFSET", f"task_struct.{member}")
            if fact is None:
                log.info("init_task cannot be looked for: the offset of task_struct.%s is not known", member)
                return None
            offsets[member] = int(fact.value)
        tried = 0
        low, high = self.window
        for start, data in self.memory.scan(low, high, TASK_COMM_LEN):
            for at in _named(data):
                tried += 1
                if tried > _MOST_CANDIDATES:
                    return None
                vaddr = (start + at - offsets["comm"]) & MASK64
                if self._is_init_task(vaddr, offsets):
                    return vaddr
        return None

    def _is_init_task(self, vaddr: int, offsets: dict[str, int]) -> bool:
        node = vaddr + offsets["tasks"]
        try:
            if any(self._number(vaddr + offsets[member], 4) for member in ("pid", "tgid")):
                return False
            following, preceding = self._number(node, self.word), self._number(node + self.word, self.word)
            if self.at_rest:
                return following == preceding == node
            return (
                node not in (following, preceding)
                and self._number(following + self.word, self.word) == node
                and self._number(preceding, self.word) == node
            )
        except FaultError:
            return False

    def _number(self, vaddr: int, width: int) -> int:
        data = self.memory.read(vaddr & MASK64, width)
        return int.from_bytes(data, "little" if self.order == "<" else "big")


def _named(data: bytes) -> list[int]:
    """Where in ``data`` a comm array holds one of the names."""
    places = set()
    for name in _NAMES:
        padded = name.ljust(TASK_COMM_LEN, b"\0")
        at = data.find(padded)
        while at >= 0:
            places.add(at)
            at = data.find(padded, at + 1)
    return sorted(places)
