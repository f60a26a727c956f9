"""From the builders' world into the package's: physical memory without a file in between."""

from __future__ import annotations

import numpy as np

from kdump_elftool.addr import NO_RANGES, u64
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.memory.extents import Extents, normalise
from kdump_elftool.memory.physical import PhysicalMemory
from tests.builders.kernel import Ram


class RamReader:
    """Positions are offsets into the ranges of a :class:`Ram`, one behind the other."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram

    def read_into(self, offset: int, view: memoryview) -> None:
        for _start, data in self.ram.ranges:
            if offset < len(data):
                assert offset + len(view) <= len(data)
                view[:] = data[offset : offset + len(view)]
                return
            offset -= len(data)
        raise AssertionError("read behind the last range")


def ram_extents(ram: Ram) -> Extents:
    """Extents of all of it."""
    sizes = [len(data) for _, data in ram.ranges]
    positions = [sum(sizes[:index]) for index in range(len(sizes))]
    return normalise(u64([start for start, _ in ram.ranges]), u64(sizes), u64(positions))


def ram_memory(ram: Ram) -> PhysicalMemory:
    """The whole RAM as physical memory."""
    extents = ram_extents(ram)
    return PhysicalMemory(RamReader(ram), extents, extents.ranges())


def columns(*values: np.ndarray) -> list[tuple[int, ...]]:
    """uint64 columns as rows of Python ints."""
    return list(zip(*(value.tolist() for value in values), strict=True))


class BytesFile:
    """A file in memory, with all that the package asks of one."""

    warnings = ()
    missing = NO_RANGES

    def __init__(self, image: bytes, path: str = "image") -> None:
        self.image, self.path, self.size = image, path, len(image)

    def read_at(self, offset: int, size: int) -> bytes:
        return self.image[offset : offset + size]

    def read_into(self, offset: int, view: memoryview) -> None:
        if offset + len(view) > self.size:
            raise CorruptDumpError(self.path, "read behind the end", file_offset=self.size)
        view[:] = self.image[offset : offset + len(view)]
