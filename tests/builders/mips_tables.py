"""MIPS page tables in a memory image, and a plain walker that reads them back.

arch/mips/include/asm/pgtable-32.h, pgtable-64.h, pgtable-bits.h.  The walker is the oracle of the tests, of
real memory too: one Python int at a time, written without a look at the package's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

P, W, A, M = 1, 2, 4, 8
KSEG0 = {4: 0x80000000, 8: 0xFFFFFFFF80000000}
XKPHYS_CACHED = 0x9800000000000000
PADDR_BITS = (1 << 59) - 1


@dataclass(frozen=True)
class Shape:
    """A build: bytes of a word, byte order, log2 of a page, bits of each level from the top, bit of the PFN,
    mask of the huge bit.
    """

    word: int
    order: str
    page_shift: int
    bits: tuple[int, ...]
    pfn_shift: int
    huge: int = 0

    @property
    def byteorder(self):
        return "little" if self.order == "<" else "big"

    def shift(self, level: int) -> int:
        """Lowest address bit of a level, counted from the top."""
        return self.page_shift + sum(self.bits[level + 1 :])

    def pte(self, paddr: int, flags: int = P | W | A | M) -> int:
        """A page of the kernel: cached, dirty, valid, global."""
        cache = self.pfn_shift - (self.page_shift - 12) - 3
        return (paddr >> self.page_shift) << self.pfn_shift | 3 << cache | 7 << (cache - 3) | flags


@dataclass
class MipsTables:
    """Tables under construction; ``allocate`` hands out the paddr of a zeroed table of that many bytes."""

    memory: object
    allocate: Callable[[int], int]
    shape: Shape
    root: int = field(init=False)
    invalid: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Empty entries lead to the invalid table of the next level, the last one's are global."""
        self.invalid = [0] * len(self.shape.bits)
        for level in reversed(range(1, len(self.shape.bits))):
            self.invalid[level] = self.new(level)
        self.root = self.new(0)

    def new(self, level: int) -> int:
        shape = self.shape
        at = self.allocate(shape.word << shape.bits[level])
        last = level == len(shape.bits) - 1
        empty = 1 << (shape.pfn_shift - (shape.page_shift - 12) - 6) if last else self.pointer(level + 1)
        for index in range(1 << shape.bits[level]):
            self.put(at + shape.word * index, empty)
        return at

    def pointer(self, level: int) -> int:
        return KSEG0[self.shape.word] + self.invalid[level]

    def put(self, at: int, value: int) -> None:
        self.memory.write(at, value.to_bytes(self.shape.word, self.shape.byteorder))

    def get(self, at: int) -> int:
        return int.from_bytes(self.memory.read(at, self.shape.word), self.shape.byteorder)

    def slot(self, raw: int, depth: int) -> int:
        """paddr of the entry for ``raw`` at a level, making tables above it."""
        shape, table = self.shape, self.root
        for level in range(depth):
            at = table + shape.word * (raw >> shape.shift(level) & (1 << shape.bits[level]) - 1)
            if self.get(at) == self.pointer(level + 1):
                made = self.new(level + 1)
                window = XKPHYS_CACHED if shape.word == 8 and level == 0 else KSEG0[shape.word]
                self.put(at, window + made)
            table = self.get(at) & 0x1FFFFFFF
        return table + shape.word * (raw >> shape.shift(depth) & (1 << shape.bits[depth]) - 1)

    def map(self, raw: int, paddr: int) -> None:
        self.put(self.slot(raw, len(self.shape.bits) - 1), self.shape.pte(paddr))

    def map_huge(self, raw: int, paddr: int) -> None:
        self.put(self.slot(raw, len(self.shape.bits) - 2), self.shape.pte(paddr) | self.shape.huge)


def plain_fixed(word: int, vaddr: int) -> int | None:
    """Where the processor has an address that needs no table."""
    if word == 8 and vaddr >> 62 == 2:
        return vaddr & PADDR_BITS
    for window in (KSEG0[word], KSEG0[word] + 0x20000000):
        if window <= vaddr < window + 0x20000000:
            return vaddr - window
    return None


def plain_translate(read: Callable[[int, int], bytes], shape: Shape, root: int, vaddr: int) -> int | None:
    """The physical address of ``vaddr``, by a table or without."""
    fixed = plain_fixed(shape.word, vaddr)
    if fixed is not None:
        return fixed
    table = root
    for level, width in enumerate(shape.bits):
        index = vaddr >> shape.shift(level) & (1 << width) - 1
        entry = int.from_bytes(read(table + shape.word * index, shape.word), shape.byteorder)
        inside = vaddr % (1 << shape.shift(level))
        is_huge = shape.huge and level == len(shape.bits) - 2 and entry & shape.huge
        if level == len(shape.bits) - 1 or is_huge:
            return (entry >> shape.pfn_shift << shape.page_shift) + inside if entry & P else None
        below = plain_fixed(shape.word, entry)
        if below is None:
            return None
        table = below
    return None


def plain_pages(read: Callable[[int, int], bytes], shape: Shape, root: int) -> Iterator[tuple[int, int, int]]:
    """(raw address, paddr, bytes) of every mapping below a root, in the order of the tables."""

    nothing: set[tuple[int, int]] = set()

    def below(table: int, level: int, base: int) -> Iterator[tuple[int, int, int]]:
        """What a table maps; one that maps nothing, as the invalid ones, is read once."""
        if (table, level) in nothing:
            return
        count = 0
        for page in entries(table, level, base):
            count += 1
            yield page
        if not count:
            nothing.add((table, level))

    def entries(table: int, level: int, base: int) -> Iterator[tuple[int, int, int]]:
        data = read(table, shape.word << shape.bits[level])
        for index in range(1 << shape.bits[level]):
            entry = int.from_bytes(data[shape.word * index :][: shape.word], shape.byteorder)
            raw = base + (index << shape.shift(level))
            is_huge = shape.huge and level == len(shape.bits) - 2 and entry & shape.huge
            if level == len(shape.bits) - 1 or is_huge:
                if entry & P:
                    yield raw, entry >> shape.pfn_shift << shape.page_shift, 1 << shape.shift(level)
                continue
            following = plain_fixed(shape.word, entry)
            if following is not None:
                yield from below(following, level + 1, raw)

    yield from below(root, 0, 0)
