"""arm64 page tables in a memory image, and a plain walker that reads them back.

Arm ARM, VMSAv8-64 translation table descriptors; arch/arm64/include/asm/pgtable-hwdef.h.  One Python
int at a time, written without a look at the package's own decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.builders.pagetables import Leaf, Memory

KERNEL = 0x00E8000000000400  # PXN, UXN, contiguous, DBM off; AF
SHARED = 0x300  # SH, where it is no part of the address
GEOMETRIES = [
    (12, 39), (12, 48), (12, 52), (14, 36), (14, 47), (14, 48), (14, 52), (16, 42), (16, 48), (16, 52),
]  # fmt: skip


@dataclass
class Arm64Tables:
    """Tables under construction; ``allocate`` hands out zeroed memory of one page."""

    memory: Memory
    allocate: Callable[[], int]
    shift: int
    va_bits: int
    root: int = field(init=False)
    table_pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self._new()

    def _new(self) -> int:
        paddr = self.allocate()
        self.memory.write(paddr, bytes(1 << self.shift))
        self.table_pages.append(paddr)
        return paddr

    @property
    def shifts(self) -> list[int]:
        """Lowest address bit of each level, from the lowest level up."""
        return list(range(self.shift, self.va_bits, self.shift - 3))

    @property
    def block_shifts(self) -> list[int]:
        """Sizes that may be mapped."""
        most = {12: 30, 14: 25, 16: 29}[self.shift]
        if self.va_bits == 52:
            most += self.shift - 3
        return [shift for shift in self.shifts if shift <= most]

    def slot(self, raw: int, shift: int) -> int:
        """paddr of the entry for ``raw`` at the level of ``shift``; KeyError in a block."""
        table = self.root
        for at in reversed(self.shifts):
            entry_at = table + 8 * self._index(raw, at)
            if at == shift:
                return entry_at
            entry = self.get(entry_at)
            if entry & 3 == 0:
                entry = self.coded(self._new()) | 3
                self.put(entry_at, entry)
            elif entry & 3 == 1:
                raise KeyError(f"{raw:#x} lies in a block")
            table = self.address(entry)
        raise AssertionError(shift)

    def _index(self, raw: int, at: int) -> int:
        bits = min(self.shift - 3, self.va_bits - at)
        return raw >> at & ((1 << bits) - 1)

    def get(self, at: int) -> int:
        """The entry at this paddr."""
        return int(struct.unpack("<Q", self.memory.read(at, 8))[0])

    def put(self, at: int, entry: int) -> None:
        """Write one entry."""
        self.memory.write(at, struct.pack("<Q", entry))

    def map(self, raw: int, paddr: int, shift: int, flags: int = KERNEL) -> None:
        """Map one page or block of ``2**shift`` bytes."""
        self.put(self.slot(raw, shift), self.coded(paddr) | flags | (3 if shift == self.shift else 1))

    def coded(self, paddr: int) -> int:
        """An address as descriptors hold it."""
        if self.shift == 16:
            return paddr & 0xFFFFFFFF0000 | (paddr >> 48 & 0xF) << 12
        if self.va_bits == 52:
            return paddr & ((1 << 50) - 1) | (paddr >> 50 & 3) << 8
        return paddr

    def address(self, entry: int) -> int:
        """The address in a descriptor."""
        low = entry >> self.shift << self.shift
        if self.shift == 16:
            return low & 0xFFFFFFFFFFFF | (entry >> 12 & 0xF) << 48
        if self.va_bits == 52:
            return low & ((1 << 50) - 1) | (entry >> 8 & 3) << 50
        return low & ((1 << 48) - 1)


def walk_plain(read: Callable[[int, int], bytes | None], tables: Arm64Tables) -> Iterator[Leaf]:
    """Every leaf of the kernel's table in ascending order; a table that cannot be read maps nothing."""
    yield from _walk(read, tables, tables.root, len(tables.shifts) - 1, 0)


def _walk(
    read: Callable[[int, int], bytes | None], tables: Arm64Tables, table: int, level: int, base: int
) -> Iterator[Leaf]:
    shift = tables.shifts[level]
    count = 1 << min(tables.shift - 3, tables.va_bits - shift)
    data = read(table, 8 * count)
    if data is None:
        return
    top = (1 << 64) - (1 << tables.va_bits)
    for index, entry in enumerate(struct.unpack(f"<{count}Q", data)):
        raw, kind, target = base + (index << shift), entry & 3, tables.address(entry)
        if level == 0:
            if kind == 3:
                yield Leaf(top + raw, target, 1 << shift)
        elif kind == 3:
            yield from _walk(read, tables, target, level - 1, raw)
        elif kind == 1 and shift in tables.block_shifts:
            yield Leaf(top + raw, target >> shift << shift, 1 << shift)
