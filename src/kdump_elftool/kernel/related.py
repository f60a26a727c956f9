"""Variables that known ones lead to, for kernels whose symbol table has functions only.

- The head of a list lies in the kernel image, what is on the list does not.  An element that a known variable
  leads to names the list; each other element has to be one, too: another list of its own has it, both ways.
- ``clocksource_list`` has elements in the image as well: all nodes but one are clocks.
- ``crashk_res`` and ``crashk_low_res`` are in the tree of resources by their name (kernel/crash_core.c).
- ``memblock`` has the names of its two parts (mm/memblock.c).
- ``linux_proc_banner`` says what linux_banner says (init/version.c).
- ``panic_on_oops`` is in a table of sysctls (kernel/sysctl.c, kernel/panic.c).

References: the files named, of v6.1; fs/super.c (super_blocks), mm/slab_common.c (slab_caches),
kernel/workqueue.c (workqueues), kernel/sched/core.c (task_groups), kernel/time/clocksource.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Bools, u64
from kdump_elftool.kernel.banner import occurrences
from kdump_elftool.kernel.facts import Fact, Source
from kdump_elftool.kernel.structures import VALUE, Structures
from kdump_elftool.kernel.words import Words

_LARGEST_IMAGE = 128 << 20
_MOST_PLACES = 1000
_MOST_RESOURCES = 4096
_LONGEST_BANNER = 1024
_NAME = re.compile(rb"[A-Za-z0-9_:,.@-]{2,63}\0")
_NAME_SIZE = 64


@dataclass(frozen=True)
class _List:
    """``first`` is a variable and what is asked of it: pointers from there to an element.

    ``node`` is a list_head in an element; ``other`` a list_head or hlist_node, what points back at it being
    ``back``.
    """

    first: str
    path: tuple[str, ...]
    node: str
    other: str
    back: str


_LISTS = {
    "super_blocks": _List(
        "init_task",
        ("task_struct.fs", "fs_struct.root.mnt", "vfsmount.mnt_sb"),
        "super_block.s_list",
        "super_block.s_instances",
        "super_block.s_instances.pprev",
    ),
    "slab_caches": _List(
        "names_cachep", (VALUE,), "kmem_cache.list", "kmem_cache.kobj.entry", "kmem_cache.kobj.entry.prev"
    ),
    "workqueues": _List(
        "system_wq",
        (VALUE,),
        "workqueue_struct.list",
        "workqueue_struct.pwqs",
        "workqueue_struct.pwqs.prev",
    ),
    "task_groups": _List(
        "root_task_group", (), "task_group.list", "task_group.siblings", "task_group.siblings.prev"
    ),
}


@dataclass(frozen=True)
class Related:
    """Symbols found from those in ``known``, which tells the offsets too; ``window``: where the image is."""

    words: Words
    known: Source
    window: tuple[int, int]

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`: answers SYMBOL() of what is named above."""
        look = self._finders.get(name) if kind == "SYMBOL" else None
        vaddr = look() if look is not None else None
        return None if vaddr is None else Fact(f"SYMBOL({name})", vaddr, "found by what leads to it")

    @property
    def _at(self) -> Structures:
        return Structures(self.words, self.known)

    @property
    def _finders(self) -> dict[str, Callable[[], int | None]]:
        def head(shape: _List) -> Callable[[], int | None]:
            return lambda: self._head(shape)

        return {
            **{name: head(shape) for name, shape in _LISTS.items()},
            "clocksource_list": self._clocksource_list,
            "crashk_res": lambda: self._crash_kernel(-1),
            "crashk_low_res": lambda: self._crash_kernel(0),
            "memblock": self._memblock,
            "linux_proc_banner": self._proc_banner,
            "panic_on_oops": lambda: self._sysctl(b"panic_on_oops"),
        }

    def _head(self, shape: _List) -> int | None:
        """Of the list that the element is on: the only one in the image, and not an element."""
        offsets = self._at.offsets(shape.node, shape.other, shape.back)
        first = self._at.follow(shape.first, shape.path)
        if offsets is None or first is None:
            return None
        to_node, to_other, to_back = offsets
        node = self._at.nodes(first + to_node)
        element = node - np.uint64(to_node) & self.words.mask
        back, readable = self.words.column(element + np.uint64(to_back) & self.words.mask)
        forth, there = self.words.column(back)
        other = element + np.uint64(to_other) & self.words.mask
        static = self._in_image(node) & (element != np.uint64(first))
        is_element = readable & there & (forth == other) & ~static
        return self._only(node, is_element)

    def _clocksource_list(self) -> int | None:
        offsets = self._at.offsets("clocksource.list", "clocksource.name", "clocksource.read")
        first = self._at.follow("curr_clocksource", (VALUE,))
        if offsets is None or first is None:
            return None
        to_node, to_name, to_read = offsets
        node = self._at.nodes(first + to_node)
        clock = node - np.uint64(to_node) & self.words.mask
        name, readable = self.words.column(clock + np.uint64(to_name) & self.words.mask)
        read, there = self.words.column(clock + np.uint64(to_read) & self.words.mask)
        text, _ = self.words.memory.gather(name, _NAME_SIZE)
        named = np.array([_NAME.match(each.tobytes()) is not None for each in text], dtype=np.bool_)
        return self._only(node, readable & there & named & self._in_image(name) & (read > 0))

    def _only(self, node: U64, is_element: Bools) -> int | None:
        """The one that is no element, if there is just one, among some, and in the image."""
        heads = node[~is_element]
        if len(heads) != 1 or len(node) < 2 or not self._in_image(heads)[0]:
            return None
        return int(heads[0])

    def _crash_kernel(self, which: int) -> int | None:
        """The highest or lowest reserved range: low memory is only ever reserved besides another one."""
        offsets = self._at.offsets("resource.start", "resource.name")
        if offsets is None:
            return None
        found = {}
        for vaddr in self._resources():
            start, name = (self._at.word(vaddr + offset) for offset in offsets)
            if start is not None and name is not None and self._at.text(name, 13) == b"Crash kernel\0":
                found[start] = vaddr
        inside = sorted(start for start, vaddr in found.items() if self._in_image(u64([vaddr]))[0])
        if not inside or len(inside) > 2 or (which == 0 and len(inside) < 2):
            return None
        return found[inside[which]]

    def _resources(self) -> Iterator[int]:
        """iomem_resource's children and theirs."""
        offsets = self._at.offsets("resource.parent", "resource.sibling", "resource.child")
        root = self._at.symbol("iomem_resource")
        if offsets is None or root is None:
            return
        parent, sibling, child = offsets
        left = [(root, self._at.word(root + child))]
        for _ in range(_MOST_RESOURCES):
            if not left:
                return
            above, vaddr = left.pop()
            if not vaddr or self._at.word(vaddr + parent) != above:
                continue
            yield vaddr
            left += [(above, self._at.word(vaddr + sibling)), (vaddr, self._at.word(vaddr + child))]

    def _memblock(self) -> int | None:
        paths = [
            f"memblock.{part}.{member}"
            for part in ("memory", "reserved")
            for member in ("name", "cnt", "max")
        ]
        offsets = self._at.offsets(*paths)
        if offsets is None:
            return None
        name, count, most, other, other_count, other_most = offsets
        texts = [start + at for start, data in self._scan(7) for at in occurrences(data, b"memory\0")]
        found = set()
        for place in self._pointers_to(u64(texts)):
            vaddr = place - name
            at = self._at.word(vaddr + other)
            if at is None or self._at.text(at, 9) != b"reserved\0":
                continue
            pairs = [(count, most), (other_count, other_most)]
            numbers = [[self._at.word(vaddr + offset) or 0 for offset in pair] for pair in pairs]
            if all(0 < used <= room for used, room in numbers):
                found.add(vaddr)
        return found.pop() if len(found) == 1 else None

    def _proc_banner(self) -> int | None:
        vaddr = self._at.symbol("linux_banner")
        text = self._string(vaddr) if vaddr is not None else b""
        # "Linux version RELEASE (BUILDER) (COMPILER) BUILD"
        begin, end = text.find(b" ("), text.rfind(b") #")
        if begin < 0 or end < begin:
            return None
        wanted = b"%s version %s" + text[begin : end + 2] + b"%s\n\0"
        found = {start + at for start, data in self._scan(len(wanted)) for at in occurrences(data, wanted)}
        return found.pop() if len(found) == 1 else None

    def _sysctl(self, name: bytes) -> int | None:
        offsets = self._at.offsets("ctl_table.procname", "ctl_table.data", "ctl_table.maxlen")
        if offsets is None:
            return None
        to_name, to_data, to_size = offsets
        text = b"\0" + name + b"\0"
        texts = [start + at + 1 for start, data in self._scan(len(text)) for at in occurrences(data, text)]
        found = set()
        for place in self._pointers_to(u64(texts)):
            data, size = self._at.word(place - to_name + to_data), self._at.number(place - to_name + to_size)
            if data is not None and self._in_image(u64([data]))[0] and size == 4:
                found.add(data)
        return found.pop() if len(found) == 1 else None

    def _pointers_to(self, vaddr: U64) -> Iterator[int]:
        """Where the image has one of these addresses, at most a thousand places."""
        word, left = self.words.word, _MOST_PLACES
        for start, data in self._scan(word):
            lead = -start % word
            value = np.frombuffer(data, f"{self.words.order}u{word}", (len(data) - lead) // word, lead)
            for row in np.flatnonzero(np.isin(value, vaddr.astype(value.dtype)))[:left].tolist():
                left -= 1
                yield start + lead + row * word
            if not left:
                return

    def _scan(self, size: int) -> Iterator[tuple[int, bytes]]:
        return self.words.memory.scan(*self._image, size)

    @property
    def _image(self) -> tuple[int, int]:
        start = self._at.symbol("_stext")
        low = start if start is not None and self.window[0] <= start < self.window[1] else self.window[0]
        return low, min(low + _LARGEST_IMAGE, self.window[1])

    def _in_image(self, vaddr: U64) -> Bools:
        low, high = self._image
        inside: Bools = (vaddr >= np.uint64(low)) & (vaddr < np.uint64(high))
        return inside

    def _string(self, vaddr: int) -> bytes:
        text = bytearray(_LONGEST_BANNER)
        self.words.memory.read_present(vaddr, memoryview(text))
        return bytes(text).split(b"\0", 1)[0]
