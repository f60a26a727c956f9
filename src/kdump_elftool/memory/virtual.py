"""Virtual memory of a dump: reads through columns of mappings, whatever table they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Bools, Ranges, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.memory.extents import Extents, intersect
from kdump_elftool.memory.paged import Bytes2D
from kdump_elftool.memory.physical import PhysicalMemory

_PIECE = 4 << 20


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
        """Exactly ``size`` bytes, behind the last address the first.  Raises FaultError, PageAbsentError."""
        buffer = bytearray(size)
        view = memoryview(buffer)
        done = 0
        while done < size:
            address = vaddr + done & MASK64
            index, inside = self.mapped.locate(np.array([address], dtype=np.uint64))
            if not inside[0]:
                raise FaultError("vaddr", address, "not mapped")
            at = int(index[0])
            skip = address - int(self.mapped.start[at])
            room = min(int(self.mapped.size[at]) - skip, size - done)
            self.physical.read_into(int(self.mapped.position[at]) + skip, view[done : done + room])
            done += room
        return bytes(buffer)

    def read_present(self, vaddr: int, view: memoryview) -> list[tuple[int, int]]:
        """Fill ``view`` with what is there and zeros elsewhere; returns the holes (start, end)."""
        start, size = np.array([vaddr], dtype=np.uint64), np.array([len(view)], dtype=np.uint64)
        known = self._mapped_ranges()
        mapped = intersect(known, start, size)
        at, _ = self.mapped.locate(mapped.start)
        paddr = self.mapped.position[at] + (mapped.start - self.mapped.start[at])
        done = 0
        holes: list[tuple[int, int]] = []
        from_start = mapped.start - np.uint64(vaddr)
        columns = (from_start, mapped.size, paddr)
        for begin, length, where in zip(*(column.tolist() for column in columns), strict=True):
            if begin > done:
                view[done:begin] = bytes(begin - done)
                holes.append((done, begin))
            found = self.physical.read_present(where, view[begin : begin + length])
            holes += [(begin + low, begin + high) for low, high in found]
            done = begin + length
        if done < len(view):
            view[done:] = bytes(len(view) - done)
            holes.append((done, len(view)))
        return holes

    def scan(self, low: int, high: int, overlap: int) -> Iterator[tuple[int, bytes]]:
        """All that is mapped from ``low`` to ``high``, in pieces of at most 4 MB and their addresses.

        What is mapped but not there reads as zeros.  A piece begins with the last ``overlap`` bytes
        of the one that lies right below it, so nothing shorter is cut in two.
        """
        window = intersect(self.mapped.ranges(), u64([low]), u64([high - low]))
        for start, size in zip(window.start.tolist(), window.size.tolist(), strict=True):
            for at in range(start, start + size, _PIECE):
                begin = max(start, at - overlap)
                buffer = bytearray(min(at + _PIECE, start + size) - begin)
                self.read_present(begin, memoryview(buffer))
                yield begin, bytes(buffer)

    def _mapped_ranges(self) -> Ranges:
        """Each mapping a range of its own: neighbours in vaddr may lie apart in paddr."""
        return Ranges(self.mapped.start, self.mapped.end)

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
