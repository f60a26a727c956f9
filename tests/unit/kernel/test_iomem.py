"""The kernel's list of its memory: read whole, read as far as it makes sense."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel import iomem
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.iomem import SystemRam, read_system_ram
from kdump_elftool.kernel.vmcoreinfo import parse
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory

BASE = 0xC0000000
ROOT, FIRST, NAMES = 0x100, 0x1000, 0x800
RAM, OTHER = BASE + NAMES, BASE + NAMES + 16
MIB = 1 << 20
PC = [
    (0x1000, 0x9FBFF, RAM),
    (0xF0000, 0xFFFFF, OTHER),
    (MIB, 64 * MIB - 1, RAM),
    (64 * MIB, 80 * MIB - 1, RAM),
]


class Kernel:
    """``resource_size`` and word as the kernel has them; resources lie 64 bytes apart."""

    def __init__(self, order: str = "<", word: int = 8, resource_size: int = 8) -> None:
        self.order, self.word, self.resource_size = order, word, resource_size
        self.data = bytearray(1 << 20)
        self.data[NAMES : NAMES + 11] = b"System RAM\0"
        self.data[NAMES + 16 : NAMES + 25] = b"Reserved\0"
        self.data[0x900:0x910] = b"System RAM boot\0"
        self.offsets = {"start": 0, "end": resource_size, "name": 2 * resource_size}
        behind = 2 * resource_size + 3 * word  # flags and desc
        self.offsets |= {"parent": behind, "sibling": behind + word, "child": behind + 2 * word}

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]

    def put(self, at: int, member: str, value: int) -> None:
        size = self.resource_size if member in ("start", "end") else self.word
        layout = self.order + {4: "I", 8: "Q"}[size]
        struct.pack_into(layout, self.data, at + self.offsets[member], value)

    def fill(self, resources: list[tuple[int, int, int]]) -> Kernel:
        self.put(ROOT, "child", BASE + FIRST if resources else 0)
        for index, (start, end, name) in enumerate(resources):
            at = FIRST + 64 * index
            last = index == len(resources) - 1
            members = {"start": start, "end": end, "name": name, "parent": BASE + ROOT}
            members["sibling"] = 0 if last else BASE + at + 64
            for member, value in members.items():
                self.put(at, member, value)
        return self

    def read(self, *left_out: str, root: int = BASE + ROOT) -> SystemRam | None:
        lines = [f"SYMBOL(iomem_resource)={root:x}"]
        lines += [f"OFFSET(resource.{name})={at}" for name, at in self.offsets.items()]
        lines += [f"SIZE(resource.{name})={self.resource_size}" for name in ("start", "end")]
        text = "\n".join(line for line in lines if not any(part in line for part in left_out))
        extents = Extents(u64([0]), u64([len(self.data)]), u64([0]))
        physical = PhysicalMemory(self, extents, extents.ranges())
        memory = VirtualMemory.of(physical, u64([BASE]), u64([0]), u64([len(self.data)]))
        known = Knowledge((parse(text.encode()),))
        return read_system_ram(memory, known, self.order, self.word)


def shown(told: SystemRam | None) -> list[tuple[int, int]]:
    assert told is not None
    assert told.ranges.start.dtype == np.uint64
    return list(zip(told.ranges.start.tolist(), told.ranges.end.tolist(), strict=True))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("word", "resource_size"), [(8, 8), (4, 8), (4, 4)])
def test_system_ram_of_every_kind_of_kernel(order, word, resource_size):
    told = Kernel(order, word, resource_size).fill(PC).read()
    assert shown(told) == [(0x1000, 0x9FC00), (MIB, 80 * MIB)]
    assert told.complete


def test_other_names_are_no_memory():
    told = Kernel().fill([(0, 0xFFF, BASE + 0x900), (0x1000, 0x1FFF, RAM)]).read()
    assert shown(told) == [(0x1000, 0x2000)]


def test_memory_up_to_the_top():
    told = Kernel().fill([(1 << 63, (1 << 64) - 1, RAM)]).read()
    assert shown(told) == [(1 << 63, (1 << 64) - 1)]


@pytest.mark.parametrize("what", ["SYMBOL", "resource.child", "resource.start", "SIZE(resource.end)"])
def test_not_known(what):
    assert Kernel().fill(PC).read(what) is None


def test_nothing_where_the_root_should_be():
    told = Kernel().fill([]).read()
    assert (shown(told), told.complete) == ([], False)
    told = Kernel().fill(PC).read(root=0x1000)
    assert (shown(told), told.complete) == ([], False)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("parent", 0),
        ("parent", BASE + FIRST),
        ("sibling", BASE + FIRST),  # back to the first
        ("sibling", BASE + FIRST + 128),  # to itself
        ("sibling", 0xDEAD),
        ("sibling", (1 << 64) - 8),
        ("end", 0),
        ("start", 0),
        ("name", 0x10),
    ],
)
def test_damage_ends_it(member, value):
    space = Kernel().fill(PC)
    space.put(FIRST + 128, member, value)
    told = space.read()
    assert not told.complete
    whole = [(MIB, 64 * MIB)] if member == "sibling" else []
    assert shown(told) == [(0x1000, 0x9FC00), *whole]


def test_as_many_as_there_can_be(monkeypatch):
    monkeypatch.setattr(iomem, "MOST_RESOURCES", 3)
    told = Kernel().fill(PC).read()
    assert not told.complete
    assert shown(told) == [(0x1000, 0x9FC00), (MIB, 64 * MIB)]
