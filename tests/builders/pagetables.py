"""x86_64 page tables in a memory image, and a plain walker that reads them back.

Intel SDM volume 3A chapter 4; arch/x86/include/asm/pgtable_types.h.  The walker is the oracle of
the tests: one Python int at a time, written without a look at the package's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

SIZE_4K, SIZE_2M, SIZE_1G = 1 << 12, 1 << 21, 1 << 30
P, RW, US, PCD, ACCESSED, DIRTY, PSE, GLOBAL = 1, 2, 4, 0x10, 0x20, 0x40, 0x80, 0x100
PAT_4K, PAT_LARGE = 1 << 7, 1 << 12
NX = 1 << 63
PKEY_BITS = 0xF << 59
SOFT_BITS = 0x7F << 52
KERNEL = P | RW | ACCESSED | DIRTY | GLOBAL
ADDRESS_BITS = (1 << 52) - (1 << 12)
LEVEL_NAMES = {0: "pte", 1: "pmd", 2: "pud", 3: "p4d", 4: "pgd"}
LEAF_LEVEL = {SIZE_4K: 0, SIZE_2M: 1, SIZE_1G: 2}


class Memory(Protocol):
    """What tables are written into."""

    def read(self, paddr: int, size: int) -> bytes: ...

    def write(self, paddr: int, data: bytes) -> None: ...


@dataclass(frozen=True)
class Leaf:
    """One mapping of the tables, as a plain walk finds it."""

    vaddr: int
    paddr: int
    size: int


def canonical(vaddr: int, levels: int) -> int:
    """``vaddr`` sign-extended from bit 47 or 56."""
    bits = 12 + 9 * levels
    vaddr &= (1 << bits) - 1
    return vaddr | (~((1 << bits) - 1) & (1 << 64) - 1) if vaddr >> (bits - 1) else vaddr


@dataclass
class PageTables:
    """Tables under construction.  ``allocate`` hands out the paddr of a zeroed, page-sized frame."""

    memory: Memory
    allocate: Callable[[], int]
    levels: int = 4
    sme_mask: int = 0
    root: int = field(init=False)
    table_pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self._new_table()

    def _new_table(self) -> int:
        paddr = self.allocate()
        self.memory.write(paddr, bytes(4096))
        self.table_pages.append(paddr)
        return paddr

    def slot(self, vaddr: int, level: int, *, create: bool = True) -> int:
        """paddr of the entry for ``vaddr`` at ``level`` (0 = pte), making tables above it."""
        table = self.root
        for at in range(self.levels - 1, level, -1):
            entry_at = table + 8 * (vaddr >> (12 + 9 * at) & 511)
            entry = self.get(entry_at)
            if not entry & P:
                if not create:
                    raise KeyError(f"{vaddr:#x} has no {LEVEL_NAMES[at]}")
                entry = self._new_table() | P | RW | ACCESSED | self.sme_mask
                self.put(entry_at, entry)
            elif entry & PSE and at in (1, 2):
                raise KeyError(f"{vaddr:#x} lies in a large page")
            table = entry & ADDRESS_BITS & ~self.sme_mask
        return table + 8 * (vaddr >> (12 + 9 * level) & 511)

    def get(self, entry_at: int) -> int:
        """The entry at this paddr."""
        return int(struct.unpack("<Q", self.memory.read(entry_at, 8))[0])

    def put(self, entry_at: int, entry: int) -> None:
        """Write one entry."""
        self.memory.write(entry_at, struct.pack("<Q", entry & (1 << 64) - 1))

    def map(self, vaddr: int, paddr: int, size: int = SIZE_4K, flags: int = KERNEL | NX) -> None:
        """Map one page of 4K, 2M or 1G."""
        level = LEAF_LEVEL[size]
        large = PSE if level else 0
        self.put(self.slot(vaddr, level), paddr | flags | large | self.sme_mask)

    def map_range(
        self, vaddr: int, paddr: int, length: int, size: int = SIZE_4K, flags: int = KERNEL | NX
    ) -> None:
        """Map ``length`` bytes of contiguous memory in pages of ``size``."""
        for done in range(0, length, size):
            self.map(vaddr + done, paddr + done, size, flags)

    def share(self, vaddr: int, like: int, level: int) -> None:
        """Let the entry of ``vaddr`` at ``level`` point at the same table as ``like``'s does."""
        self.put(self.slot(vaddr, level), self.get(self.slot(like, level, create=False)))

    def table_of(self, vaddr: int, level: int) -> int:
        """paddr of the table page that holds ``vaddr``'s entry of ``level``."""
        return self.slot(vaddr, level, create=False) & ~4095


def walk_plain(
    read: Callable[[int, int], bytes | None], root: int, levels: int = 4, sme_mask: int = 0
) -> Iterator[Leaf]:
    """Every leaf under ``root`` in ascending order; a table that cannot be read maps nothing."""
    yield from _walk_table(read, root, levels - 1, 0, levels, sme_mask)


def _walk_table(
    read: Callable[[int, int], bytes | None], table: int, level: int, base: int, levels: int, sme_mask: int
) -> Iterator[Leaf]:
    raw = read(table, 4096)
    if raw is None:
        return
    shift = 12 + 9 * level
    for index, entry in enumerate(struct.unpack("<512Q", raw)):
        vaddr = base + (index << shift)
        if not entry & P:
            continue
        target = entry & ADDRESS_BITS & ~sme_mask
        if level == 0:
            yield Leaf(canonical(vaddr, levels), target, SIZE_4K)
        elif entry & PSE and level in (1, 2):
            yield Leaf(canonical(vaddr, levels), target & ~((1 << shift) - 1), 1 << shift)
        else:
            yield from _walk_table(read, target, level - 1, vaddr, levels, sme_mask)
