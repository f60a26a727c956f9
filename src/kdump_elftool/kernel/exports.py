"""Variables that the kernel exports to its modules: names and addresses, where kallsyms has functions only.

Kernels without CONFIG_KALLSYMS_ALL leave variables out of kallsyms, but what EXPORT_SYMBOL() names is in a
table all the same: value, name, since v5.4 also a namespace.  Each is a word, or since v4.19
(CONFIG_HAVE_ARCH_PREL32_RELOCATIONS) the 32-bit distance from where it lies itself.  Nothing says where that
table is.  It is found by functions that every kernel exports, whose addresses are known: an entry with such a
value has to have the function's name too.  From there it goes on in both directions as far as entries make
sense; the one for modules of any licence and the one for those under the GPL lie side by side.

References: include/linux/export.h (struct kernel_symbol), include/linux/export-internal.h (v6.5),
include/asm-generic/vmlinux.lds.h (__ksymtab), kernel/module/main.c (kernel_symbol_value()).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Index
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

ANCHORS = ("wake_up_process", "kthread_stop", "schedule_timeout", "vmalloc_to_page", "kmem_cache_destroy")
"""Exported functions of every kernel since 2.6."""
_LARGEST_IMAGE = 128 << 20
_REACH = 1 << 20
"""Bytes of a table, in each direction, that are looked at; 20,000 symbols take half of that."""
_STRINGS = 4 << 20
"""Names lie that near to each other."""
_LONGEST_NAME = 512
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_.$]*")
_MOST_PLACES = 64
LABEL = "symbols exported to modules"


@dataclass(frozen=True)
class Exports:
    """Addresses by name; of a per-CPU variable as any symbol table has them."""

    address: dict[str, int]

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        value = self.address.get(name) if kind == "SYMBOL" else None
        return None if value is None else Fact(f"SYMBOL({name})", value, LABEL)


@dataclass(frozen=True)
class _Form:
    """Entries of ``fields`` numbers of ``size`` bytes; ``relative`` ones count from their own place."""

    size: int
    relative: bool
    fields: int

    def targets(self, data: bytes, vaddr: int, order: str, mask: int) -> U64:
        """Where each number of ``data``, which lies at ``vaddr``, leads."""
        whole = len(data) // self.size * self.size
        if not self.relative:
            found = np.frombuffer(data[:whole], dtype=f"{order}u{self.size}").astype(np.uint64)
        else:
            distance = np.frombuffer(data[:whole], dtype=f"{order}i4").astype(np.int64).view(np.uint64)
            place = np.uint64(vaddr) + np.arange(len(distance), dtype=np.uint64) * np.uint64(4)
            found = place + distance
        result: U64 = found & np.uint64(mask)
        return result


@dataclass(frozen=True)
class _Search:
    """Looks for the table within an image, whose functions ``symbols`` knows."""

    memory: VirtualMemory
    anchors: dict[int, bytes]
    window: tuple[int, int]
    order: str
    word: int

    @property
    def mask(self) -> int:
        return MASK64 >> (64 - 8 * self.word)

    def run(self) -> dict[str, int]:
        sizes = [(4, True), (self.word, False)]
        for size, relative in sizes:
            for at in self.places(_Form(size, relative, 1)):
                tables = [self.table(_Form(size, relative, fields), at) for fields in (3, 2)]
                found = max(tables, key=len)
                if len(found) > len(self.anchors):
                    return found
        return {}

    def places(self, form: _Form) -> Iterator[int]:
        """Addresses of entries that have the value and the name of an anchor."""
        wanted = np.array(sorted(self.anchors), dtype=np.uint64)
        left = _MOST_PLACES
        for vaddr, data in self.memory.scan(*self.window, 2 * form.size):
            lead = -vaddr % form.size
            target = form.targets(data[lead:], vaddr + lead, self.order, self.mask)
            for row in np.flatnonzero(np.isin(target[:-1], wanted)).tolist():
                name = self.anchors[int(target[row])] + b"\0"
                if self.read(int(target[row + 1]), len(name)) == name:
                    yield vaddr + lead + row * form.size
                left -= 1
                if not left:
                    return

    def table(self, form: _Form, at: int) -> dict[str, int]:
        """All entries around the one at ``at``."""
        step = form.size * form.fields
        low = at - min(_REACH, at - self.window[0]) // step * step
        size = min(at + _REACH, self.window[1]) - low
        target = form.targets(self.up_to(low, size), low, self.order, self.mask)
        target = target[: len(target) // form.fields * form.fields].reshape(-1, form.fields)
        value, name = target[:, 0], target[:, 1]
        here = (at - low) // step
        start = max(int(name[here]) - _STRINGS, self.window[0])
        strings = self.up_to(start, 2 * _STRINGS)
        inside = (name >= np.uint64(start)) & (name < np.uint64(start + len(strings)))
        outside = np.flatnonzero(~inside)
        first = int(np.max(outside[outside < here], initial=-1)) + 1
        last = int(np.min(outside[outside > here], initial=len(inside)))
        begin = (name - np.uint64(start)).astype(np.intp)
        # outward from the anchor, up to the first that has no name
        below = list(_named(begin, strings, range(here, first - 1, -1)))
        named = [*reversed(below), *_named(begin, strings, range(here + 1, last))]
        # per-CPU variables of x86_64 count from 0 (until v6.14), whatever such an entry then has for a value
        low, high = self.window
        return {text: vaddr for text, row in named if low <= (vaddr := int(value[row])) < high}

    def read(self, vaddr: int, size: int) -> bytes:
        try:
            return self.memory.read(vaddr, size)
        except FaultError:
            return b""

    def up_to(self, vaddr: int, size: int) -> bytes:
        """What is not there reads as zeros."""
        buffer = bytearray(size)
        self.memory.read_present(vaddr, memoryview(buffer))
        return bytes(buffer)


def _named(begin: Index, strings: bytes, rows: range) -> Iterator[tuple[str, int]]:
    """The names at these places of ``strings``, with their rows."""
    for row in rows:
        at = int(begin[row])
        end = strings.find(b"\0", at, at + _LONGEST_NAME)
        if end < 0 or not _NAME.fullmatch(strings, at, end):
            return
        yield strings[at:end].decode("ascii"), row


def open_exports(
    memory: VirtualMemory, symbols: Kallsyms, window: tuple[int, int], order: str, word: int
) -> Exports | None:
    """What the kernel exports; None, with the reason in the log, where the table is not found.

    ``symbols`` has the kernel's functions; ``window`` is where its image may lie, [start, end).
    """
    anchors = {vaddr: name.encode() for name in ANCHORS if (vaddr := symbols.symbol(name)) is not None}
    start = symbols.symbol("_stext")
    if not anchors or start is None or not window[0] <= start < window[1]:
        log.info("exported symbols: nothing to find their table by")
        return None
    image = (start, min(window[1], start + _LARGEST_IMAGE))
    found = _Search(memory, anchors, image, order, word).run()
    if not found:
        log.info("exported symbols: there is no table of them")
        return None
    log.info("exported symbols: %d", len(found))
    return Exports(found)
