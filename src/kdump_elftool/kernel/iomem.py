"""What the kernel was told it has as memory: the children "System RAM" of ``iomem_resource``.

It is what /proc/iomem shows, from the firmware's map, whatever the dump's headers say.  struct resource:
include/linux/ioport.h; the tree: kernel/resource.c.  ``start`` and ``end`` are resource_size_t, of 4 bytes
on 32-bit kernels without large physical addresses; ``end`` is the last address.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kdump_elftool.addr import MASK64, Ranges, merge_ranges, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

MOST_RESOURCES = 4096
_POINTERS = ("name", "parent", "sibling", "child")
_SYSTEM_RAM = b"System RAM\0"


@dataclass(frozen=True)
class SystemRam:
    """Ranges of memory by physical address; not ``complete``: the list could not be read to its end."""

    ranges: Ranges
    complete: bool


@dataclass(frozen=True)
class _Resource:
    start: int
    end: int
    name: int
    parent: int
    sibling: int
    child: int


@dataclass(frozen=True)
class _Reader:
    """Reads struct resource: offset and size of each member."""

    memory: VirtualMemory
    order: str
    members: dict[str, tuple[int, int]]

    def resource(self, vaddr: int) -> _Resource:
        """Raises FaultError."""
        size = max(offset + width for offset, width in self.members.values())
        data = self.memory.read(vaddr & MASK64, size)
        order = "little" if self.order == "<" else "big"
        return _Resource(
            **{
                name: int.from_bytes(data[offset : offset + width], order)  # type: ignore[arg-type]
                for name, (offset, width) in self.members.items()
            }
        )

    def is_ram(self, name: int) -> bool:
        """Whether a resource's name says so.  Raises FaultError."""
        return self.memory.read(name & MASK64, len(_SYSTEM_RAM)) == _SYSTEM_RAM


def read_system_ram(memory: VirtualMemory, known: Knowledge, order: str, word: int) -> SystemRam | None:
    """Walk the root's children; None where symbol or types are not known, or the root is nonsense.

    A child counts only if its parent is the root and it begins behind the one before: so a walk cannot run
    in a circle, and garbage ends it.
    """
    root, members = known.symbol("iomem_resource"), _members(known, word)
    if root is None or members is None:
        log.info("iomem_resource: the symbol or struct resource is not known")
        return None
    reader = _Reader(memory, order, members)
    start: list[int] = []
    end: list[int] = []
    complete = False
    ram: dict[int, bool] = {}
    try:
        at, last = reader.resource(root).child, -1
        while at and len(start) < MOST_RESOURCES:
            found = reader.resource(at)
            # on 32-bit machines a symbol's address may have its sign extended, a pointer never has
            if (found.parent ^ root) & ((1 << 8 * word) - 1) or not last < found.start <= found.end:
                log.info("iomem_resource: what is at %#x is no child of it", at)
                break
            if found.name not in ram:
                ram[found.name] = reader.is_ram(found.name)
            start.append(found.start)
            end.append(min(found.end, MASK64 - 1) + 1 if ram[found.name] else found.start)
            at, last = found.sibling, found.end
        complete = bool(start) and not at
    except FaultError as error:
        log.info("iomem_resource: %s", error)
    return SystemRam(merge_ranges(u64(start), u64(end)), complete)


def _members(known: Knowledge, word: int) -> dict[str, tuple[int, int]] | None:
    """Offset and size of each member; None if they are not all known, or impossible."""
    members = {}
    for name in ("start", "end", *_POINTERS):
        offset = known.offset(f"resource.{name}")
        size = word if name in _POINTERS else known.size(f"resource.{name}")
        if offset is None or size not in (4, 8) or not 0 <= offset < 4096:
            return None
        members[name] = (offset, size)
    return members
