"""What no table names is found by what it looks like.

Kernels without CONFIG_KALLSYMS_ALL list functions alone.  Each variable here is confirmed by what it holds:

- ``init_task`` is the task of pid 0 that is called swapper (``swapper/0`` on SMP kernels, init_idle() in
  kernel/sched/core.c) and from whose list of tasks both neighbours point back.  The idle tasks of the
  other CPUs have the same name but lie outside of the kernel image and on no list.  Before the kernel
  starts its neighbours are itself.
- What init_task uses of its own is the kernel's first of its kind (init/init_task.c): init_cred, init_fs, ...
- ``init_mm`` has the kernel's page table as its own (mm/init-mm.c).
- ``modules`` and ``btf_modules`` head lists (``module_head``).
- ``special_mapping_vmops`` alone has special_mapping_name() (mm/mmap.c).
- ``linux_banner`` is a text (init/version.c), ``task_state_array`` a table of such (fs/proc/array.c).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from kdump_elftool.addr import MASK64, U64, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.banner import banners, build_of, occurrences
from kdump_elftool.kernel.facts import Fact, Source
from kdump_elftool.kernel.module_head import LISTS, find_module_list
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

TASK_COMM_LEN = 16
_NAMES = (b"swapper/0", b"swapper")
_MOST_CANDIDATES = 1000
_LARGEST_IMAGE = 128 << 20
_STATES = (b"R (running)\0", b"S (sleeping)\0")
_OF_INIT_TASK = {
    "init_cred": ("task_struct.cred",),
    "init_fs": ("task_struct.fs",),
    "init_files": ("task_struct.files",),
    "init_nsproxy": ("task_struct.nsproxy",),
    "init_uts_ns": ("task_struct.nsproxy", "nsproxy.uts_ns"),
    "init_ipc_ns": ("task_struct.nsproxy", "nsproxy.ipc_ns"),
    "init_cgroup_ns": ("task_struct.nsproxy", "nsproxy.cgroup_ns"),
    "root_task_group": ("task_struct.sched_task_group",),
    "init_stack": ("task_struct.stack",),
    "init_thread_union": ("task_struct.stack",),
}
"""Pointers from one to the next."""


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
        """As :class:`kernel.facts.Source`: answers SYMBOL() of what is named above."""
        look = self._finders.get(name) if kind == "SYMBOL" else None
        vaddr = look() if look is not None else None
        return None if vaddr is None else Fact(f"SYMBOL({name})", vaddr, "found by its content")

    @property
    def _finders(self) -> dict[str, Callable[[], int | None]]:
        # not kept: it refers to this object, and a circle would keep the dump open until a collection
        def chain(members: tuple[str, ...]) -> Callable[[], int | None]:
            return lambda: self._of_init_task(members)

        def modules(name: str) -> Callable[[], int | None]:
            words = Words(self.memory, self.order, self.word)
            return lambda: find_module_list(words, self.known, self.window, name)

        found: dict[str, Callable[[], int | None]] = {
            "init_task": lambda: self._init_task,
            "init_mm": self._init_mm,
            "task_state_array": self._task_states,
            "special_mapping_vmops": self._special_mapping,
        }
        found |= {name: chain(members) for name, members in _OF_INIT_TASK.items()}
        if self.at_rest:
            return found
        # of an image without a running kernel ``image_content`` knows the banner
        return found | {"linux_banner": self._banner} | {name: modules(name) for name in LISTS}

    @cached_property
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

    def _of_init_task(self, members: tuple[str, ...]) -> int | None:
        """What a chain of pointers leads to, if that is in the image."""
        at = self._ask("SYMBOL", "init_task") or self._init_task
        for member in members:
            offset = self._ask("OFFSET", member)
            if at is None or offset is None:
                return None
            at = self._pointer(at + offset)
        return at if at is not None and self.window[0] <= at < self.window[1] else None

    def _init_mm(self) -> int | None:
        table = self._ask("SYMBOL", "swapper_pg_dir")
        pgd, code = (self._ask("OFFSET", f"mm_struct.{member}") for member in ("pgd", "start_code"))
        if table is None or pgd is None or code is None:
            return None
        for place in self._pointers_to(table):
            vaddr = place - pgd
            start = self._pointer(vaddr + code) if vaddr >= self._image[0] else None
            if start is not None and self._image[0] <= start | 0xFFFF < self._image[1]:
                return vaddr
        return None

    def _banner(self) -> int | None:
        """With the number of the build, if there is one of those."""
        found = list(banners(self.memory, self._image))
        numbered = (vaddr for vaddr, text in found if build_of(text) is not None)
        return next(numbered, found[0][0] if found else None)

    def _task_states(self) -> int | None:
        """Its texts lie anywhere among the kernel's; the table points at one behind the other."""
        first = (
            start + at
            for start, data in self.memory.scan(*self._image, len(_STATES[0]))
            for at in occurrences(data, _STATES[0])
        )
        for place in self._pointers_to(*itertools.islice(first, _MOST_CANDIDATES)):
            second = self._pointer(place + self.word)
            if second is not None and self._bytes(second, len(_STATES[1])) == _STATES[1]:
                return place
        return None

    def _special_mapping(self) -> int | None:
        function = self._ask("SYMBOL", "special_mapping_name")
        offset = self._ask("OFFSET", "vm_operations_struct.name")
        if function is None or offset is None:
            return None
        return next((place - offset for place in self._pointers_to(function)), None)

    def _pointers_to(self, *vaddr: int) -> Iterator[int]:
        """Where the image has one of these addresses, at most a thousand places."""
        wanted, left = u64(vaddr), _MOST_CANDIDATES
        if not len(wanted):
            return
        for place, value in self._words():
            for row in np.flatnonzero(np.isin(value, wanted))[:left].tolist():
                left -= 1
                yield int(place[row])
            if not left:
                return

    def _words(self) -> Iterator[tuple[U64, U64]]:
        """The words of the image and their addresses, piece by piece; the last one of a piece comes again."""
        for start, data in self.memory.scan(*self._image, self.word):
            lead = -start % self.word
            whole = (len(data) - lead) // self.word * self.word
            value = np.frombuffer(data[lead : lead + whole], dtype=f"{self.order}u{self.word}")
            place = np.uint64(start + lead) + np.arange(len(value), dtype=np.uint64) * np.uint64(self.word)
            yield place, value.astype(np.uint64)

    @property
    def _image(self) -> tuple[int, int]:
        """Where the image is, as far as that is known better than the window."""
        start = self._ask("SYMBOL", "_stext") or self.window[0]
        low = start if self.window[0] <= start < self.window[1] else self.window[0]
        return low, min(low + _LARGEST_IMAGE, self.window[1])

    def _ask(self, kind: str, name: str) -> int | None:
        fact = self.known.find(kind, name)
        return None if fact is None else int(fact.value)

    def _pointer(self, vaddr: int) -> int | None:
        data = self._bytes(vaddr, self.word)
        return int.from_bytes(data, self._byte_order) if data else None

    def _bytes(self, vaddr: int, size: int) -> bytes:
        """b"" where they cannot be read."""
        try:
            return self.memory.read(vaddr & MASK64, size)
        except FaultError:
            return b""

    @property
    def _byte_order(self) -> Literal["little", "big"]:
        return "little" if self.order == "<" else "big"

    def _number(self, vaddr: int, width: int) -> int:
        return int.from_bytes(self.memory.read(vaddr & MASK64, width), self._byte_order)


def _named(data: bytes) -> list[int]:
    """Where in ``data`` a comm array holds one of the names."""
    return sorted({at for name in _NAMES for at in occurrences(data, name.ljust(TASK_COMM_LEN, b"\0"))})
