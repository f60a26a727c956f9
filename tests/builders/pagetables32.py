"""i386 page tables in a memory image, with and without PAE, and a plain walker that reads them back.

Intel SDM volume 3A, 4.3 (32-bit paging) and 4.4 (PAE paging).  Written without a look at the package's
own decoders: one Python int at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.builders.pagetables import ACCESSED, NX, PSE, RW, Leaf, Memory, P

SIZE_4K, SIZE_2M, SIZE_4M = 1 << 12, 1 << 21, 1 << 22
Read = Callable[[int, int], bytes | None]


@dataclass
class Tables32:
    """Tables under construction.  ``allocate`` hands out the paddr of a zeroed, page-sized frame."""

    memory: Memory
    allocate: Callable[[], int]
    pae: bool
    root: int = field(init=False)
    table_pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self._new_table()

    def _new_table(self) -> int:
        paddr = self.allocate()
        self.memory.write(paddr, bytes(4096))
        self.table_pages.append(paddr)
        return paddr

    @property
    def entry(self) -> int:
        """Bytes of an entry."""
        return 8 if self.pae else 4

    @property
    def large(self) -> int:
        """Bytes of a large page."""
        return SIZE_2M if self.pae else SIZE_4M

    def get(self, at: int) -> int:
        """The entry at this paddr."""
        return int.from_bytes(self.memory.read(at, self.entry), "little")

    def put(self, at: int, entry: int) -> None:
        """Write one entry."""
        self.memory.write(at, entry.to_bytes(self.entry, "little"))

    def slot(self, vaddr: int, size: int) -> int:
        """paddr of the entry that maps a page of ``size``, making tables above it.

        Raises KeyError where a large page is in the way.
        """
        path = [(vaddr >> 30, P), (vaddr >> 21 & 511, P | RW | ACCESSED)] if self.pae else []
        path += [] if self.pae else [(vaddr >> 22, P | RW | ACCESSED)]
        table = self.root
        for index, flags in path[:-1] if size != SIZE_4K else path:
            at = table + self.entry * index
            entry = self.get(at)
            if not entry & P:
                entry = self._new_table() | flags
                self.put(at, entry)
            elif entry & PSE:
                raise KeyError(f"{vaddr:#x} lies in a large page")
            table = entry & ~NX & ~0xFFF
        index = (vaddr >> 12 & (511 if self.pae else 1023)) if size == SIZE_4K else path[-1][0]
        return table + self.entry * index

    def map(self, vaddr: int, paddr: int, size: int = SIZE_4K, flags: int = P | RW) -> None:
        """Map one page; without PAE a large one above 4 GB has bits 32 to 39 in bits 13 to 20."""
        entry = paddr | flags
        if size != SIZE_4K:
            entry |= PSE
            if not self.pae:
                entry = (paddr & 0xFFC00000) | flags | PSE | (paddr >> 32) << 13
        self.put(self.slot(vaddr, size), entry)


def walk_plain32(read: Read, root: int, *, pae: bool) -> Iterator[Leaf]:
    """Every leaf under ``root`` in ascending order; a table that cannot be read maps nothing."""
    yield from _walk_pae(read, root) if pae else _walk_narrow(read, root)


def _entries(read: Read, table: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    raw = read(table, count * size)
    for index in range(count if raw is not None else 0):
        entry = int.from_bytes((raw or b"")[index * size : (index + 1) * size], "little")
        if entry & P:
            yield index, entry


def _walk_narrow(read: Read, root: int) -> Iterator[Leaf]:
    for upper, pde in _entries(read, root, 1024, 4):
        if pde & PSE:
            yield Leaf(upper << 22, (pde >> 22 << 22) + ((pde >> 13 & 0xFF) << 32), SIZE_4M)
            continue
        for lower, pte in _entries(read, pde >> 12 << 12, 1024, 4):
            yield Leaf(upper << 22 | lower << 12, pte >> 12 << 12, SIZE_4K)


def _walk_pae(read: Read, root: int) -> Iterator[Leaf]:
    for first, pdpte in _entries(read, root, 4, 8):
        if pdpte >> 52:  # reserved
            continue
        for upper, pde in _entries(read, pdpte >> 12 << 12, 512, 8):
            base, target = first << 30 | upper << 21, pde & ~NX
            if target >> 52:
                continue
            if pde & PSE:
                yield Leaf(base, target >> 21 << 21, SIZE_2M)
                continue
            for lower, pte in _entries(read, target >> 12 << 12, 512, 8):
                if not (pte & ~NX) >> 52:
                    yield Leaf(base | lower << 12, (pte & ~NX) >> 12 << 12, SIZE_4K)
