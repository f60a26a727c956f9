"""Reads and scans through mappings."""

from __future__ import annotations

from kdump_elftool.addr import u64
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory
from tests.builders.elfcore import own_address_words

BASE = 0xFFFFFFFF80000000
MIB = 1 << 20


class Store:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]


def machine(present: int, *mapped: tuple[int, int, int]) -> VirtualMemory:
    """``present`` bytes of RAM from 0, mapped as (vaddr, paddr, size)."""
    extents = normalise(u64([0]), u64([present]), u64([0]))
    physical = PhysicalMemory(Store(own_address_words(0, present)), extents, extents.ranges())
    vaddr, paddr, size = zip(*mapped, strict=True)
    return VirtualMemory.of(physical, u64(vaddr), u64(paddr), u64(size))


def test_reading_across_the_last_address():
    """Forged pointers lead there, and forged tables map both sides."""
    top = 2**64 - 0x1000
    memory = machine(MIB, (0, 0x1000, 0x1000), (top, 0x8000, 0x1000))
    wanted = own_address_words(0x8FF0, 16) + own_address_words(0x1000, 16)
    assert memory.read(top + 0xFF0, 32) == wanted
    assert memory.read(-16, 32) == wanted


def test_scan_covers_the_window_once_with_overlap():
    memory = machine(12 * MIB, (BASE, 0, 6 * MIB), (BASE + 6 * MIB, 6 * MIB, 4 * MIB))
    pieces = list(memory.scan(BASE + MIB, BASE + 11 * MIB, 16))
    assert [(vaddr - BASE, len(data)) for vaddr, data in pieces] == [
        (MIB, 4 * MIB),
        (5 * MIB - 16, 4 * MIB + 16),
        (9 * MIB - 16, MIB + 16),
    ]
    assert all(data == own_address_words(vaddr - BASE, len(data)) for vaddr, data in pieces)


def test_scan_of_memory_that_is_not_there_reads_zeros():
    memory = machine(MIB, (BASE, 0, 2 * MIB), (BASE + 4 * MIB, 0, 4096))
    pieces = list(memory.scan(BASE, BASE + 16 * MIB, 8))
    assert [(vaddr - BASE, len(data)) for vaddr, data in pieces] == [(0, 2 * MIB), (4 * MIB, 4096)]
    assert pieces[0][1] == own_address_words(0, MIB) + bytes(MIB)


def test_scan_of_an_empty_window():
    memory = machine(MIB, (BASE, 0, MIB))
    assert list(memory.scan(BASE + 2 * MIB, BASE + 3 * MIB, 8)) == []
