"""A synthetic x86_64 kernel dump of any size, as /proc/vmcore of a machine would be.

Random (incompressible) RAM, a part of whose pages is zero; page tables that map the image and the
direct map with 2M pages and some thousand scattered 4K vmalloc pages; VMCOREINFO and CPU notes.
Addresses: Documentation/arch/x86/x86_64/mm.rst.  Written in pieces: memory stays small.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

MIB, GIB = 1 << 20, 1 << 30
SIZE_4K, SIZE_2M = 4096, 2 * MIB
PAGE_OFFSET, VMALLOC, START_KERNEL_MAP = 0xFFFF888000000000, 0xFFFFC90000000000, 0xFFFFFFFF80000000
TEXT_VADDR, TEXT_PADDR, IMAGE_SIZE = 0xFFFFFFFF9B000000, 16 * MIB, 32 * MIB
SWAPPER_PADDR = TEXT_PADDR + IMAGE_SIZE - 0x10000
TABLE_POOL, VMALLOC_POOL = 48 * MIB, 64 * MIB
PCI_HOLE = (3 * GIB, 4 * GIB)
SMALLEST = 96 * MIB
_PRESENT, _WRITE, _PSE = 1, 2, 1 << 7
_CHUNK = 4 * MIB
_STACK_PAGES = 4


@dataclass(frozen=True)
class DumpSpec:
    """What to generate.  Zero pages come in runs of ``zero_run`` pages on average.

    Of each other page the first ``random_words`` of 512 words are random, the rest repeats one word of them.
    """

    ram_bytes: int = 6 * GIB
    zero_share: float = 0.0
    zero_run: int = 16
    random_words: int = 512
    vmalloc_pages: int = 6000
    cpus: int = 2
    seed: int = 2

    def ram(self) -> list[tuple[int, int]]:
        """Physical ranges of RAM, with the holes below 1 MB and below 4 GB that PCs have."""
        below = min(self.ram_bytes, PCI_HOLE[0])
        ranges = [(0x1000, 0x9F000), (MIB, below)]
        if self.ram_bytes > below:
            ranges.append((PCI_HOLE[1], PCI_HOLE[1] + self.ram_bytes - below))
        return ranges


class PageTables:
    """Four-level tables under construction, as columns of 512 entries by physical address."""

    def __init__(self, root: int, pool: int) -> None:
        self.root = root
        self._next = pool
        self.tables: dict[int, npt.NDArray[np.uint64]] = {root: np.zeros(512, dtype=np.uint64)}

    def map(self, vaddr: int, paddr: int, size: int = SIZE_4K) -> None:
        """Map one page of 4K or 2M."""
        level = 1 if size == SIZE_2M else 0
        table = self.tables[self.root]
        for above in (3, 2, 1)[: 3 - level]:
            index = vaddr >> (12 + 9 * above) & 511
            if not table[index]:
                table[index] = self._new_table() | _PRESENT | _WRITE
            table = self.tables[int(table[index]) & ~0xFFF]
        large = _PSE if level else 0
        table[vaddr >> (12 + 9 * level) & 511] = paddr | _PRESENT | _WRITE | large

    def map_range(self, vaddr: int, start: int, end: int) -> None:
        """Map ``[start, end)`` in pages as large as fit."""
        paddr = start
        while paddr < end:
            size = SIZE_2M if paddr % SIZE_2M == 0 and paddr + SIZE_2M <= end else SIZE_4K
            self.map(vaddr + paddr - start, paddr, size)
            paddr += size

    def _new_table(self) -> int:
        paddr, self._next = self._next, self._next + SIZE_4K
        self.tables[paddr] = np.zeros(512, dtype=np.uint64)
        return paddr


def generate(path: Path, spec: DumpSpec) -> int:
    """Write the dump to ``path``; returns its size.  ValueError: too small to be a machine."""
    if spec.ram_bytes < SMALLEST or spec.ram_bytes % SIZE_2M:
        raise ValueError(f"RAM must be a multiple of 2 MiB and at least {SMALLEST // MIB} MiB")
    tables, stacks = _page_tables(spec)
    notes = _notes(spec, stacks)
    headers, offsets, size = _headers(spec, len(notes))
    random = np.random.Generator(np.random.SFC64(spec.seed))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        pwrite(fd, headers + notes, 0)
        for (start, end), offset in zip(spec.ram(), offsets[1:], strict=True):
            zero_pages = _zero_pages(random, (end - start) // SIZE_4K, spec)
            for paddr, data in _ram_pieces(random, start, end, zero_pages, tables, spec):
                pwrite(fd, data, offset + paddr - start)
        image = os.pread(fd, IMAGE_SIZE, offsets[2] + TEXT_PADDR - spec.ram()[1][0])
        pwrite(fd, image, offsets[0])
        os.fsync(fd)
    finally:
        os.close(fd)
    return size


def _page_tables(spec: DumpSpec) -> tuple[PageTables, list[int]]:
    """The tables, and the tops of vmalloc stacks for the CPUs to stand on."""
    tables = PageTables(SWAPPER_PADDR, TABLE_POOL)
    tables.map_range(TEXT_VADDR, TEXT_PADDR, TEXT_PADDR + IMAGE_SIZE)
    for start, end in spec.ram():
        tables.map_range(PAGE_OFFSET + start, start, end)
    low, high = VMALLOC_POOL, spec.ram()[1][1]
    random = np.random.default_rng(spec.seed)
    frames = low + SIZE_4K * random.permutation((high - low) // SIZE_4K)[: spec.vmalloc_pages]
    vaddr, stacks = VMALLOC, []
    for number, frame in enumerate(frames.tolist()):
        if number % _STACK_PAGES == 0:
            vaddr += SIZE_4K  # a guard page
            stacks.append(vaddr + _STACK_PAGES * SIZE_4K - 0x100)
        tables.map(vaddr, frame)
        vaddr += SIZE_4K
    return tables, stacks


def _zero_pages(random: np.random.Generator, pages: int, spec: DumpSpec) -> npt.NDArray[np.bool_]:
    """Which pages are zero: runs of geometric length, so many of them that the share comes out."""
    if not spec.zero_share:
        return np.zeros(pages, dtype=np.bool_)
    mean = (spec.zero_run * (1 - spec.zero_share) / spec.zero_share, float(spec.zero_run))
    runs = 2 + 4 * pages // int(sum(mean))
    lengths = np.stack([random.geometric(1 / max(length, 1.0), runs) for length in mean], axis=1).ravel()
    pattern: npt.NDArray[np.bool_] = np.repeat(np.arange(2 * runs) % 2 == 1, lengths)
    return np.resize(pattern, pages)


def _ram_pieces(
    random: np.random.Generator,
    start: int,
    end: int,
    zero_pages: npt.NDArray[np.bool_],
    tables: PageTables,
    spec: DumpSpec,
) -> Iterator[tuple[int, memoryview]]:
    """(paddr, data) in pieces: random words, never a zero page unless meant, tables on top."""
    placed = sorted(paddr for paddr in tables.tables if start <= paddr < end)
    for paddr in range(start, end, _CHUNK):
        count = min(_CHUNK, end - paddr) // SIZE_4K
        pages = random.integers(1, 1 << 64, size=(count, 512), dtype=np.uint64)
        pages[:, spec.random_words :] = pages[:, :1]
        first = (paddr - start) // SIZE_4K
        pages[zero_pages[first : first + count]] = 0
        while placed and placed[0] < paddr + _CHUNK:
            table = placed.pop(0)
            pages[(table - paddr) // SIZE_4K] = tables.tables[table]
        yield paddr, pages.reshape(-1).view(np.uint8).data


def _headers(spec: DumpSpec, notes_size: int) -> tuple[bytes, list[int], int]:
    """ELF header and program headers, the file offsets of text and RAM, the file's size."""
    loads = [(TEXT_VADDR, TEXT_PADDR, IMAGE_SIZE)]
    loads += [(PAGE_OFFSET + start, start, end - start) for start, end in spec.ram()]
    phnum = 1 + len(loads)
    notes_at = 64 + 56 * phnum
    rows = [struct.pack("<IIQQQQQQ", 4, 0, notes_at, 0, 0, notes_size, notes_size, 4)]
    position, offsets = -(-(notes_at + notes_size) // SIZE_4K) * SIZE_4K, []
    for vaddr, paddr, size in loads:
        offsets.append(position)
        rows.append(struct.pack("<IIQQQQQQ", 1, 7, position, vaddr, paddr, size, size, SIZE_4K))
        position += size
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    ehdr = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, phnum, 0, 0, 0)
    return ehdr + b"".join(rows), offsets, position


def _notes(spec: DumpSpec, stacks: list[int]) -> bytes:
    parts = []
    for cpu in range(spec.cpus):
        registers = [0] * 27
        registers[16], registers[17], registers[19] = TEXT_VADDR + 0x1010, 0x10, stacks[cpu]  # rip, cs, rsp
        prstatus = bytearray(336)
        struct.pack_into("<i", prstatus, 32, 400 + cpu)
        struct.pack_into("<27Q", prstatus, 112, *registers)
        parts.append(note(b"CORE", 1, bytes(prstatus)))
    swapper = TEXT_VADDR + SWAPPER_PADDR - TEXT_PADDR
    lines = {
        "OSRELEASE": "6.1.0-bench-amd64",
        "PAGESIZE": "4096",
        "SYMBOL(swapper_pg_dir)": f"{swapper:x}",
        "SYMBOL(_stext)": f"{TEXT_VADDR:x}",
        "NUMBER(phys_base)": str(TEXT_PADDR - (TEXT_VADDR - START_KERNEL_MAP)),
        "SYMBOL(init_top_pgt)": f"{swapper:x}",
        "NUMBER(pgtable_l5_enabled)": "0",
        "KERNELOFFSET": f"{TEXT_VADDR - 0xFFFFFFFF81000000:x}",
        "NUMBER(sme_mask)": "0",
    }
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    return b"".join(parts) + note(b"VMCOREINFO", 0, text.encode())


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """One ELF note."""
    name += b"\0"
    head = struct.pack("<III", len(name), len(desc), kind)
    return head + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


def pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        offset, view = offset + done, view[done:]
