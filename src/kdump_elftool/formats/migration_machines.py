"""Where QEMU's machines have their memory, which a migration stream doesn't say: it has named blocks.

A machine's memory is one block, whose name is its own (``default_ram_id``), or that of the memory
backend the user gave it, or one backend for each NUMA node, one behind the other.  Sources: in QEMU's
hw: i386/pc_piix.c (``pc_init1``), i386/pc_q35.c (``pc_q35_init``), i386/pc.c (``pc_memory_init``),
i386/microvm.c (``microvm_memory_init``), arm/virt.c, riscv/virt.c (memory maps), mips/malta.c
(``mips_malta_init``), ppc/spapr.c, s390x/s390-virtio-ccw.c, arm/versatilepb.c, arm/raspi.c,
arm/vexpress.c; core/numa.c (``numa_init_memdev_container``) and backends/hostmem.c
(``host_memory_backend_get_name``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdump_elftool.elf.constants import (
    EM_AARCH64,
    EM_ARM,
    EM_MIPS,
    EM_PPC64,
    EM_RISCV,
    EM_S390,
    EM_X86_64,
)

GB4 = 1 << 32
TB1 = 1 << 40
_MB256 = 256 << 20
_LARGE = 128 << 20
"""Linux adds memory on x86_64 in pieces of this size: smaller blocks are no memory of the kernel."""
_AMD_HT_START = 0xFD00000000
_PCI_HOLE_64 = 32 << 30
"""The most that QEMU leaves for PCI above memory unless it is told otherwise (q35)."""


@dataclass(frozen=True)
class Piece:
    """``[offset, offset + size)`` of a block lies at ``paddr``."""

    block: str
    offset: int
    size: int
    paddr: int


@dataclass(frozen=True)
class Machine:
    """Where a kind of machine has its memory.

    ``prefix`` begins its name.  Memory begins at ``base``; if it has ``threshold`` bytes or more, what is
    beyond the first ``low`` begins at ``high``.  ``order`` is the guest's byte order.
    """

    prefix: str
    block: str
    base: int
    e_machine: int
    threshold: int | None = None
    low: int = 0
    high: int = GB4
    order: str = "<"

    def places(self, size: int) -> list[tuple[int, int, int]]:
        """Offset in the memory, size and physical address of each piece of it."""
        if self.threshold is None or size < self.threshold or size <= self.low:
            return [(0, size, self.base)]
        return [(0, self.low, self.base), (self.low, size - self.low, self.high)]


MACHINES = (
    Machine("pc-i440fx-", "pc.ram", 0, EM_X86_64, 0xE0000000, 0xC0000000),
    Machine("pc-q35-", "pc.ram", 0, EM_X86_64, 0xB0000000, 0x80000000),
    Machine("microvm", "microvm.ram", 0, EM_X86_64, 0xC0000000, 0xC0000000),
    Machine("virt", "mach-virt.ram", 0x40000000, EM_AARCH64),
    Machine("virt", "riscv_virt_board.ram", 0x80000000, EM_RISCV),
    # all of it is visible from 0x80000000 on too, which only kernels built for EVA use
    Machine("malta", "mips_malta.ram", 0, EM_MIPS, _MB256, _MB256, 0x90000000),
    Machine("pseries", "ppc_spapr.ram", 0, EM_PPC64),
    Machine("s390-ccw-virtio", "s390.ram", 0, EM_S390, order=">"),
    Machine("versatile", "versatile.ram", 0, EM_ARM),
    Machine("vexpress-a9", "vexpress.highmem", 0x60000000, EM_ARM),
    Machine("vexpress-a15", "vexpress.highmem", 0x80000000, EM_ARM),
    Machine("raspi3", "ram", 0, EM_AARCH64),
    Machine("raspi", "ram", 0, EM_ARM),
)
"""As they are unless the option ``max-ram-below-4g`` says otherwise, which streams don't tell."""

_SHARED_NAMES = frozenset(["virt"])
"""Of a machine whose own block is missing the name does not tell the architecture."""
_OF_DEVICES = re.compile(r"^/rom@|^(?!/objects/).*/|[.](vram|rom|bios|ram|flash\d*)$|flash\d$|vram")
"""Blocks that belong to devices: firmware, video memory, tables."""
_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True)
class Layout:
    """A machine's memory as pieces of blocks; ``warnings`` say what of it is a guess."""

    machine: Machine
    pieces: tuple[Piece, ...]
    warnings: tuple[str, ...] = ()


def find_layout(name: str | None, blocks: Mapping[str, int]) -> Layout | None:
    """Where a machine of that name has these blocks (with their sizes); None when that is not known."""
    for machine in MACHINES:
        if machine.block in blocks and (name is None or name.startswith(machine.prefix)):
            size = blocks[machine.block]
            if name is None and machine.threshold is not None and size > machine.low:
                return None  # pc or q35?
            return _layout(machine, [machine.block], blocks, _left_out(machine.block, blocks))
    machines = [machine for machine in MACHINES if name is not None and name.startswith(machine.prefix)]
    backends = _backends(blocks)
    if not machines or machines[0].prefix in _SHARED_NAMES or not backends:
        return None
    said: tuple[str, ...] = ()
    if len(backends) > 1:
        said = (f"the memory backends {', '.join(backends)} are taken for NUMA nodes in this order",)
    return _layout(machines[0], backends, blocks, said)


def _layout(machine: Machine, names: list[str], blocks: Mapping[str, int], said: tuple[str, ...]) -> Layout:
    """The blocks of these names one behind the other, cut at the machine's hole."""
    pieces = []
    begin = 0
    places = machine.places(sum(blocks[name] for name in names))
    for name in names:
        end = begin + blocks[name]
        for offset, size, paddr in places:
            low, high = max(begin, offset), min(end, offset + size)
            if low < high:
                pieces.append(Piece(name, low - begin, high - low, paddr + low - offset))
        begin = end
    above = places[1][1] if len(places) > 1 else 0
    if machine.block == "pc.ram" and GB4 + above + _PCI_HOLE_64 > _AMD_HT_START:
        said += (
            "memory above 4 GB is taken to begin there; on an AMD processor QEMU has it from "
            f"{TB1:#x} on: if nothing is found, use QEMU's dump-guest-memory instead",
        )
    return Layout(machine, tuple(pieces), said)


def _backends(blocks: Mapping[str, int]) -> list[str]:
    """Memory backends that can be all of the memory, in the order of the nodes; none if it is unclear.

    A single one is the machine's.  Several must have one name with numbers from 0 or 1 on: QEMU sorts
    blocks by size, and memory that was plugged in has a backend too.
    """
    names = [name for name, size in blocks.items() if size >= _LARGE and not _OF_DEVICES.search(name)]
    if len(names) < 2:
        return names
    found = [_NUMBERED.fullmatch(name) for name in names]
    numbers = {int(match[2][:9]): match[0] for match in found if match}
    if None in found or len({match[1] for match in found if match}) > 1:
        return []
    expected = (range(len(names)), range(1, len(names) + 1))
    return [numbers[key] for key in sorted(numbers)] if sorted(numbers) in map(list, expected) else []


def _left_out(block: str, blocks: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        f"where the memory block {name!r} ({size:#x} bytes) was is not known: left out"
        for name, size in blocks.items()
        if size >= _LARGE and name != block and "vram" not in name and "flash" not in name
    )
