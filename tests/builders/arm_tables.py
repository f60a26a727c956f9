"""Page tables of 32-bit ARM in a memory image, both formats, and plain walkers that read them back.

ARM DDI 0406C, B3.5 and B3.6.  The walkers are the oracle of the tests: one Python int at a time,
written without a look at the package's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.builders.pagetables import Leaf, Memory

SIZE_4K, SIZE_64K, SIZE_1M, SIZE_2M, SIZE_16M, SIZE_1G = 1 << 12, 1 << 16, 1 << 20, 1 << 21, 1 << 24, 1 << 30
SHORT_SIZES = (SIZE_4K, SIZE_64K, SIZE_1M, SIZE_16M)
LONG_SIZES = (SIZE_4K, SIZE_2M, SIZE_1G)
# bits that say nothing of the address, as kernels set them
SMALL_BITS = 0x2 | 0x45C  # with nG, S, TEX, AP, C, B
LARGE_BITS = 0x1 | 0x803C | 1 << 10
SECTION_BITS = 0x2 | 0x1540C | 1 << 19
TABLE_BITS = 0x1 | 0x1E4
LONG_ATTRIBUTES = 0x751 & ~2 | 1 << 54 | 1 << 53 | 1 << 52


@dataclass
class ShortTables:
    """Short descriptors: a first level of 16 KB.  ``allocate`` hands out zeroed KB-aligned memory by size."""

    memory: Memory
    allocate: Callable[[int], int]
    order: str = "<"
    root: int = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.allocate(16384)
        self.memory.write(self.root, bytes(16384))

    def put(self, at: int, entry: int) -> None:
        """Write one descriptor."""
        self.memory.write(at, struct.pack(self.order + "I", entry))

    def get(self, at: int) -> int:
        """The descriptor at this paddr."""
        return int(struct.unpack(self.order + "I", self.memory.read(at, 4))[0])

    def table(self, vaddr: int) -> int:
        """Where the second level of ``vaddr`` is, made when missing; KeyError where a section is."""
        at = self.root + 4 * (vaddr >> 20)
        entry = self.get(at)
        if not entry:
            table = self.allocate(1024)
            self.memory.write(table, bytes(1024))
            self.put(at, table | TABLE_BITS)
            return table
        if entry & 3 != 1:
            raise KeyError(f"{vaddr:#x} lies in a section")
        return entry & ~1023

    def is_free(self, vaddr: int, size: int) -> bool:
        """Whether a page of this size could be mapped there."""
        firsts = [self.get(self.root + 4 * (at >> 20)) for at in range(vaddr, vaddr + size, SIZE_1M)]
        if size >= SIZE_1M or not firsts[0]:
            return not any(firsts)
        table = firsts[0] & ~1023
        pages = range(vaddr, vaddr + size, SIZE_4K)
        return firsts[0] & 3 == 1 and not any(self.get(table + 4 * (at >> 12 & 255)) for at in pages)

    def map(self, vaddr: int, paddr: int, size: int, never: bool = False) -> None:
        """Map one page of 4K, 64K, 1M or 16M (up to 40 bits of paddr); ``never`` executed."""
        if size == SIZE_4K:
            self.put(self.table(vaddr) + 4 * (vaddr >> 12 & 255), paddr | SMALL_BITS | never)
        elif size == SIZE_64K:
            for at in range(16):  # the same one 16 times
                self.put(self.table(vaddr) + 4 * ((vaddr >> 12 & 255) + at), paddr | LARGE_BITS)
        elif size == SIZE_1M:
            self.put(self.root + 4 * (vaddr >> 20), paddr | SECTION_BITS | never)
        else:
            entry = paddr & 0xFF000000 | (paddr >> 32 & 15) << 20 | (paddr >> 36 & 15) << 5
            for at in range(16):
                self.put(self.root + 4 * ((vaddr >> 20) + at), entry | SECTION_BITS & ~0x1E0 | 1 << 18)


@dataclass
class LongTables:
    """Long descriptors (LPAE): a first level of 4 entries.  ``allocate`` as in :class:`ShortTables`."""

    memory: Memory
    allocate: Callable[[int], int]
    order: str = "<"
    root: int = field(init=False)

    def __post_init__(self) -> None:
        self.root = self._new()

    def _new(self) -> int:
        table = self.allocate(4096)
        self.memory.write(table, bytes(4096))
        return table

    def put(self, at: int, entry: int) -> None:
        """Write one descriptor."""
        self.memory.write(at, struct.pack(self.order + "Q", entry))

    def get(self, at: int) -> int:
        """The descriptor at this paddr."""
        return int(struct.unpack(self.order + "Q", self.memory.read(at, 8))[0])

    def slot(self, vaddr: int, shift: int) -> int:
        """paddr of the descriptor for ``vaddr`` in the level with this shift; KeyError where a block is."""
        table = self.root
        for above in (30, 21, 12):
            at = table + 8 * (vaddr >> above & (3 if above == 30 else 511))
            if above == shift:
                return at
            entry = self.get(at)
            if not entry:
                entry = self._new() | 3
                self.put(at, entry)
            elif entry & 3 != 3:
                raise KeyError(f"{vaddr:#x} lies in a block")
            table = entry & ((1 << 40) - 4096)
        raise KeyError(shift)

    def is_free(self, vaddr: int, size: int) -> bool:
        """Whether a page of this size could be mapped there."""
        try:
            return self.get(self.slot(vaddr, size.bit_length() - 1)) == 0
        except KeyError:
            return False

    def map(self, vaddr: int, paddr: int, size: int, never: bool = False) -> None:
        """Map one page of 4K, 2M or 1G (40 bits of paddr)."""
        kind = 3 if size == SIZE_4K else 1
        self.put(
            self.slot(vaddr, size.bit_length() - 1), paddr | LONG_ATTRIBUTES & ~(1 << 54) | kind | never << 54
        )


Read = Callable[[int, int], bytes | None]


def walk_short(read: Read, root: int, order: str = "<") -> Iterator[Leaf]:
    """Every 4 KB or 1 MB that a table maps, in ascending order; what cannot be read maps nothing."""
    first = read(root, 16384)
    for number, entry in enumerate(struct.unpack(order + "4096I", first) if first else ()):
        vaddr = number * SIZE_1M
        if entry & 3 == 1:
            second = read(entry // 1024 * 1024, 1024)
            for index, page in enumerate(struct.unpack(order + "256I", second) if second else ()):
                if page & 3 == 1:
                    yield Leaf(vaddr + index * SIZE_4K, (page >> 16 << 16) + index % 16 * SIZE_4K, SIZE_4K)
                elif page & 3:
                    yield Leaf(vaddr + index * SIZE_4K, page >> 12 << 12, SIZE_4K)
        elif entry & 3 and entry >> 18 & 1:
            high = (entry >> 5 & 15) * 2**36 + (entry >> 20 & 15) * 2**32
            yield Leaf(vaddr, high + (entry >> 24 << 24) + number % 16 * SIZE_1M, SIZE_1M)
        elif entry & 3:
            yield Leaf(vaddr, entry >> 20 << 20, SIZE_1M)


def walk_long(read: Read, root: int, order: str = "<") -> Iterator[Leaf]:
    """Every page and block; what cannot be read maps nothing."""
    yield from _long_table(read, root, 0, 30, 4, order)


def _long_table(read: Read, table: int, base: int, shift: int, count: int, order: str) -> Iterator[Leaf]:
    raw = read(table, 8 * count)
    for number, entry in enumerate(struct.unpack(f"{order}{count}Q", raw) if raw else ()):
        vaddr, target = base + (number << shift), entry % 2**40
        if entry % 2 == 0 or (shift == 12 and entry % 4 != 3):
            continue
        if shift == 12 or entry % 4 == 1:
            yield Leaf(vaddr, target >> shift << shift, 1 << shift)
        else:
            yield from _long_table(read, target >> 12 << 12, vaddr, shift - 9, 512, order)
