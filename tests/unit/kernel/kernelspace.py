"""A little kernel memory that unit tests write structures into, and the machine around it."""

from __future__ import annotations

import struct

import numpy as np

from kdump_elftool.addr import Ranges, merge_ranges, u64
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory

BASE = 0xFFFF888000000000
ROOM = 8 << 20


class KernelSpace:
    """``ROOM`` bytes, mapped at BASE; ``ram`` is what the dump says it holds besides."""

    def __init__(self, *ram: tuple[int, int]) -> None:
        self.data = bytearray(ROOM)
        # the bytes themselves lie at physical 0; other RAM reads as zeros
        start = u64([0, *(begin for begin, _ in ram)])
        end = u64([ROOM, *(stop for _, stop in ram)])
        whole = merge_ranges(start, end)
        size = whole.end - whole.start
        self.extents = Extents(whole.start, size, np.zeros(len(whole), dtype=np.uint64) + whole.start)

    def read_into(self, offset: int, view: memoryview) -> None:
        piece = self.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        view[len(piece) :] = bytes(len(view) - len(piece))

    def put(self, offset: int, layout: str, *values: int) -> int:
        """Pack values at an offset; returns their virtual address."""
        struct.pack_into("<" + layout, self.data, offset, *values)
        return BASE + offset

    @property
    def present(self) -> Ranges:
        return self.extents.ranges()

    def virtual(self) -> VirtualMemory:
        physical = PhysicalMemory(self, self.extents, self.present)
        return VirtualMemory.of(physical, u64([BASE]), u64([0]), u64([ROOM]))


def info_of(**values: object) -> VmcoreInfo:
    """VMCOREINFO from SIZE_page=64 and the like (kind, then name, ``__`` for a dot)."""
    lines = []
    for key, value in values.items():
        kind, _, name = key.partition("_")
        if kind == "PAGESIZE":
            lines.append(f"PAGESIZE={value}")
        elif kind == "SYMBOL":
            lines.append(f"SYMBOL({name})={value:x}")
        else:
            lines.append(f"{kind}({name.replace('__', '.')})={value}")
    return parse("\n".join(lines).encode())
