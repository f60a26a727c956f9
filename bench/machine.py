"""A generated dump of a machine of any size that takes little room on disk: its struct page array.

The array describes all of the machine's memory; the file holds 64 MB of it, which stand for each
further 64 MB as well (program headers share the offset), and the rest of RAM is one hole.  Six of a
hundred pages are the kernel's, in short runs between runs of process memory: far more scattered
than on any machine of the lab (one run in 1,200 to 8,000 pages there, one in 64 here).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.generate import (
    GIB,
    IMAGE_SIZE,
    MIB,
    PAGE_OFFSET,
    START_KERNEL_MAP,
    SWAPPER_PADDR,
    TABLE_POOL,
    TEXT_PADDR,
    TEXT_VADDR,
    PageTables,
    note,
    pwrite,
)

STRUCT_SIZE = 64
PATTERN_BYTES = 64 * MIB
ARRAY_PADDR = GIB
LOW_END = GIB
KEPT_RUN, DROPPED_RUN = 4, 60
_PG_LRU, _PG_SWAPBACKED = 5, 19
_ANON = 1
_NODE = TEXT_PADDR + 0x100000


@dataclass(frozen=True)
class MachineSpec:
    """``gigabytes`` of RAM from 0 on."""

    gigabytes: int
    seed: int = 3

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM."""
        return self.gigabytes * GIB

    @property
    def pages(self) -> int:
        """Pages of RAM."""
        return self.ram_bytes // 4096

    @property
    def array_bytes(self) -> int:
        """Bytes of the struct page array."""
        return self.pages * STRUCT_SIZE


def generate_machine(path: Path, spec: MachineSpec) -> None:
    """Write the dump; on disk it takes about 70 MB."""
    if spec.gigabytes % 4 or spec.gigabytes < 8:
        raise ValueError("the machine must have a multiple of 4 GB, and 8 at least")
    tables = PageTables(SWAPPER_PADDR, TABLE_POOL)
    tables.map_range(TEXT_VADDR, TEXT_PADDR, TEXT_PADDR + IMAGE_SIZE)
    tables.map_range(PAGE_OFFSET, 0, spec.ram_bytes)
    notes = _notes()
    pieces = spec.array_bytes // PATTERN_BYTES
    array_end = ARRAY_PADDR + spec.array_bytes
    phnum = 3 + pieces
    low_at = -(-(64 + 56 * phnum + len(notes)) // 4096) * 4096
    pattern_at = low_at + LOW_END
    rest_at = pattern_at + PATTERN_BYTES
    loads = [(0, LOW_END, low_at)]
    loads += [(ARRAY_PADDR + number * PATTERN_BYTES, PATTERN_BYTES, pattern_at) for number in range(pieces)]
    loads.append((array_end, spec.ram_bytes - array_end, rest_at))
    rows = [struct.pack("<IIQQQQQQ", 4, 0, 64 + 56 * phnum, 0, 0, len(notes), len(notes), 4)]
    for paddr, size, offset in loads:
        rows.append(struct.pack("<IIQQQQQQ", 1, 7, offset, PAGE_OFFSET + paddr, paddr, size, size, 4096))
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    ehdr = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, phnum, 0, 0, 0)
    node = struct.pack("<3Q", PAGE_OFFSET + ARRAY_PADDR, 0, spec.pages)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, rest_at + spec.ram_bytes - array_end)
        pwrite(fd, ehdr + b"".join(rows) + notes, 0)
        for paddr, table in tables.tables.items():
            pwrite(fd, table.tobytes(), low_at + paddr)
        pwrite(fd, node, low_at + _NODE)
        pwrite(fd, _pattern(spec), pattern_at)
        os.fsync(fd)
    finally:
        os.close(fd)


def _pattern(spec: MachineSpec) -> memoryview:
    """Struct pages of runs of kernel pages and of anonymous memory."""
    count = PATTERN_BYTES // STRUCT_SIZE
    random = np.random.default_rng(spec.seed)
    runs = 2 * count // (KEPT_RUN + DROPPED_RUN)
    lengths = [random.geometric(1 / mean, runs) for mean in (KEPT_RUN, DROPPED_RUN)]
    user = np.resize(np.repeat(np.arange(2 * runs) % 2 == 1, np.stack(lengths, axis=1).ravel()), count)
    words = np.zeros((count, STRUCT_SIZE // 8), dtype=np.uint64)
    words[user, 0] = (1 << _PG_LRU) | (1 << _PG_SWAPBACKED)
    words[user, 3] = _ANON
    words[:, 6] = np.uint64(0xFFFFFFFF)  # _mapcount -1
    return words.reshape(-1).view(np.uint8).data


def _notes() -> bytes:
    swapper = TEXT_VADDR + SWAPPER_PADDR - TEXT_PADDR
    lines = {
        "OSRELEASE": "6.1.0-bench-amd64",
        "PAGESIZE": 4096,
        "SYMBOL(swapper_pg_dir)": f"{swapper:x}",
        "SYMBOL(_stext)": f"{TEXT_VADDR:x}",
        "SYMBOL(mem_map)": f"{TEXT_VADDR:x}",
        "SYMBOL(contig_page_data)": f"{TEXT_VADDR + _NODE - TEXT_PADDR:x}",
        "NUMBER(phys_base)": TEXT_PADDR - (TEXT_VADDR - START_KERNEL_MAP),
        "NUMBER(pgtable_l5_enabled)": 0,
        "SIZE(page)": STRUCT_SIZE,
        "OFFSET(page.flags)": 0,
        "OFFSET(page.lru)": 8,
        "OFFSET(page.compound_head)": 8,
        "OFFSET(page.mapping)": 24,
        "OFFSET(page.private)": 40,
        "OFFSET(page._mapcount)": 48,
        "OFFSET(page._refcount)": 52,
        "OFFSET(pglist_data.node_mem_map)": 0,
        "OFFSET(pglist_data.node_start_pfn)": 8,
        "OFFSET(pglist_data.node_spanned_pages)": 16,
        "NUMBER(PG_lru)": _PG_LRU,
        "NUMBER(PG_private)": 13,
        "NUMBER(PG_swapcache)": 10,
        "NUMBER(PG_swapbacked)": _PG_SWAPBACKED,
        "NUMBER(PG_slab)": 9,
        "NUMBER(PG_hwpoison)": 23,
        "NUMBER(PG_head_mask)": 65536,
        "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": -129,
        "LENGTH(zone.free_area)": 11,
    }
    prstatus = bytearray(336)
    struct.pack_into("<i", prstatus, 32, 400)
    struct.pack_into("<QQ", prstatus, 112 + 16 * 8, TEXT_VADDR + 0x1010, 0x10)
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    return note(b"CORE", 1, bytes(prstatus)) + note(b"VMCOREINFO", 0, text.encode())
