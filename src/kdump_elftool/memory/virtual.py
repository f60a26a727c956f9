"""Virtual memory of a dump: reads through columns of mappings, whatever table they came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Bools
from kdump_elftool.errors import FaultError
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import Bytes2D, PhysicalMemory


@dataclass(frozen=True)
class VirtualMemory:
    """``mapped``: virtual ranges whose ``position`` is a physical address in ``physical``."""

    physical: PhysicalMemory
    mapped: Extents

    @classmethod
    def of(cls, physical: PhysicalMemory, vaddr: U64, paddr: U64, size: U64) -> VirtualMemory:
        """From mappings sorted by vaddr and disjoint."""
        return cls(physical, Extents(vaddr, size, paddr))

    def read(self, vaddr: int, size: int) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError, PageAbsentError."""
        buffer = bytearray(size)
        view = memoryview(buffer)
        done = 0
        while done < size:
            address = vaddr + done
            index, inside = self.mapped.locate(np.array([address & ((1 << 64) - 1)], dtype=np.uint64))
            if not inside[0]:
                raise FaultError("vaddr", address, "not mapped")
            at = int(index[0])
            skip = address - int(self.mapped.start[at])
            room = min(int(self.mapped.size[at]) - skip, size - done)
            self.physical.read_into(int(self.mapped.position[at]) + skip, view[done : done + room])
            done += room
        return bytes(buffer)

    def translate(self, vaddr: U64) -> tuple[U64, Bools]:
        """Physical addresses of a column of virtual ones, and a mask of those that are mapped."""
        index, inside = self.mapped.locate(vaddr)
        if not len(self.mapped):
            return np.zeros(len(vaddr), dtype=np.uint64), inside
        paddr = self.mapped.position[index] + (vaddr - self.mapped.start[index])
        return np.where(inside, paddr, np.uint64(0)), inside

    def gather(self, vaddr: U64, size: int) -> tuple[Bytes2D, Bools]:
        """As :meth:`PhysicalMemory.gather`; no block may cross from one mapping into another."""
        paddr, mapped = self.translate(vaddr)
        blocks = np.zeros((len(vaddr), size), dtype=np.uint8)
        rows = np.flatnonzero(mapped)
        found, readable = self.physical.gather(paddr[rows], size)
        blocks[rows] = found
        result = np.zeros(len(vaddr), dtype=np.bool_)
        result[rows] = readable
        return blocks, result
