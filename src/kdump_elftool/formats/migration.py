"""QEMU migration streams: what ``migrate`` writes into a file or through a pipe, version 3.

Sections one after the other; memory is in the section ``ram``, which comes in parts while the guest may
still run: a page that was sent again counts as it came last.  Of the devices behind it the CPUs are
read (``qemu_devices``); memory is whole without them.

A stream has blocks of memory and not where the machine has them: that is known for some machines.
Sources: migration/savevm.c; hw/i386/pc_piix.c (``pc_init1``), hw/i386/pc_q35.c (``pc_q35_init``),
hw/arm/virt.c and hw/riscv/virt.c (``VIRT_DRAM`` in the memory maps) of QEMU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import U64, merge_ranges, u64
from kdump_elftool.elf.constants import EM_AARCH64, EM_ARM, EM_RISCV, EM_X86_64
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import migration_pages
from kdump_elftool.formats.base import Dump, Format, Lost, OpenOptions
from kdump_elftool.formats.lime import image_dump
from kdump_elftool.formats.migration_pages import Ram
from kdump_elftool.formats.migration_structs import (
    MAGIC,
    Configuration,
    Cursor,
    Section,
    StreamEnds,
    read_configuration,
    read_file_header,
    read_section_header,
    skip_command,
    skip_footer,
)
from kdump_elftool.formats.qemu_devices import NO_CPUS, read_cpus
from kdump_elftool.memory.extents import overlay
from kdump_elftool.memory.physical import PhysicalMemory

GB4 = 1 << 32
_DUMP_GUEST = "use QEMU's dump-guest-memory instead"
_LARGE = 128 << 20
"""Linux adds memory on x86_64 in pieces of this size: smaller blocks are no memory of the kernel."""


@dataclass(frozen=True)
class Machine:
    """Where a kind of machine has its memory.

    ``prefix`` begins its name.  The block begins at ``base``; if it has ``threshold`` bytes or more, what
    is beyond the first ``low`` begins at 4 GiB.
    """

    prefix: str
    block: str
    base: int
    e_machine: int
    threshold: int | None = None
    low: int = 0

    def places(self, size: int) -> list[tuple[int, int, int]]:
        """Offset in the block, size and physical address of each piece of it."""
        if self.threshold is None or size < self.threshold or size <= self.low:
            return [(0, size, self.base)]
        return [(0, self.low, self.base), (self.low, size - self.low, GB4)]


MACHINES = (
    Machine("pc-i440fx-", "pc.ram", 0, EM_X86_64, 0xE0000000, 0xC0000000),
    Machine("pc-q35-", "pc.ram", 0, EM_X86_64, 0xB0000000, 0x80000000),
    Machine("virt", "mach-virt.ram", 0x40000000, EM_AARCH64),
    Machine("virt", "riscv_virt_board.ram", 0x80000000, EM_RISCV),
)
"""As they are unless the option ``max-ram-below-4g`` says otherwise, which streams don't tell."""
_BLOCKS = frozenset(machine.block for machine in MACHINES)


@dataclass
class Stream:
    """What was read: ``ended`` is True when the section ``ram`` is complete."""

    ram: Ram
    configuration: Configuration | None = None
    section: int | None = None
    ended: bool = False


def probe(head: bytes) -> bool:
    """Whether a file begins like a migration stream."""
    return head.startswith(MAGIC)


def open_migration(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open a migration stream.  Raises UnsupportedError (other versions, machines), CorruptDumpError."""
    (file,) = files
    cursor = Cursor(file)
    stream = Stream(Ram(_BLOCKS))
    try:
        read_file_header(cursor)
        while not stream.ended:
            _read_section(cursor, stream)
    except StreamEnds:
        if not stream.ram.blocks:
            raise cursor.corrupt(cursor.limit, "this QEMU migration stream ends before its memory") from None
    machine = _machine(cursor, stream)
    places = machine.places(stream.ram.blocks[machine.block])
    _, size, paddr = (u64(column) for column in zip(*places, strict=True))
    cpus = read_cpus(cursor) if stream.ended else NO_CPUS
    extents = overlay(*_physical(stream.ram.columns(machine.block), places))
    memory = PhysicalMemory(file, extents, merge_ranges(paddr, paddr + size))
    why = "never sent" if stream.ended else f"truncated at file offset {cursor.limit:#x}"
    lost = Lost("paddr", why, memory.absent(), None if stream.ended else cursor.limit)
    if options.e_machine == EM_X86_64:  # also the default: the machine knows better, its CPUs even more so
        options = replace(options, e_machine=cpus.e_machine or machine.e_machine)
    # what was not sent is not known to be zero
    options = replace(options, zero_excluded=False)
    dump = image_dump("qemu", file, options, memory, (lost,), (*_warnings(stream, machine), *cpus.warnings))
    return replace(dump, kind=_kind(options.e_machine, memory), cpu_registers=cpus.registers)


def _kind(e_machine: int, memory: PhysicalMemory) -> ElfKind:
    """As dump-guest-memory writes: 32 bits where memory ends before 4 GB; the firmware of x86 does not."""
    narrow = e_machine == EM_ARM and int(memory.declared.end[-1]) < GB4
    return ElfKind(32 if narrow else 64, "<")


def _read_section(cursor: Cursor, stream: Stream) -> None:
    at = cursor.at
    kind = cursor.take(1)[0]
    if kind == Section.CONFIGURATION and stream.configuration is None and stream.section is None:
        stream.configuration = read_configuration(cursor)
        if "mapped-ram" in stream.configuration.capabilities:
            raise cursor.unsupported(
                at, "a QEMU migration file with mapped-ram: not supported", "switch mapped-ram off"
            )
    elif kind == Section.COMMAND:
        skip_command(cursor)
    elif kind in (Section.START, Section.PART, Section.END, Section.FULL):
        _read_device(cursor, stream, at, kind)
    elif kind in (Section.EOF, Section.VMDESCRIPTION):
        raise cursor.corrupt(at, "this QEMU migration stream ends without its memory being complete")
    else:
        raise cursor.corrupt(at, f"unknown section type {kind:#x} in a QEMU migration stream")


def _read_device(cursor: Cursor, stream: Stream, at: int, kind: int) -> None:
    header = read_section_header(cursor, kind)
    if header.name is not None:
        if header.name != "ram" or kind != Section.START:
            raise cursor.unsupported(
                at, f"the device {header.name!r} is before the end of memory: not supported", _DUMP_GUEST
            )
        if stream.section is not None:
            raise cursor.corrupt(at, "a second section 'ram'")
        if header.version != migration_pages.VERSION:
            raise cursor.unsupported(at, f"memory of version {header.version}: not supported", _DUMP_GUEST)
        stream.section = header.id
    elif header.id != stream.section:
        raise cursor.corrupt(at, f"a part of section {header.id}, which has not begun")
    stream.ram.read_section(cursor)
    stream.ended = kind == Section.END
    if not stream.ended or cursor.at < cursor.limit:
        skip_footer(cursor, header.id)


def _machine(cursor: Cursor, stream: Stream) -> Machine:
    blocks = stream.ram.blocks
    name = stream.configuration.machine if stream.configuration else None
    for machine in MACHINES:
        if machine.block in blocks and (name is None or name.startswith(machine.prefix)):
            size = blocks[machine.block]
            if name is None and machine.threshold is not None and size > machine.low:
                break  # pc or q35?
            return machine
    largest = max(blocks, key=lambda block: blocks[block], default="none")
    raise cursor.unsupported(
        0,
        f"where a QEMU machine {name or 'without a name'} has its memory ({largest}) is not known",
        _DUMP_GUEST,
    )


def _physical(columns: tuple[U64, U64, U64], places: list[tuple[int, int, int]]) -> tuple[U64, U64, U64]:
    """Start, size and position by physical address, in the order in which they were sent.

    Only zeros can lie on both sides of a border between places: pages are smaller than what borders are
    multiples of.
    """
    start, size, position = columns
    if len(places) == 1:
        return start + np.uint64(places[0][2]), size, position
    parts = []
    for offset, length, paddr in places:
        low = np.maximum(start, np.uint64(offset))
        high = np.minimum(start + size, np.uint64(offset + length))
        index = np.flatnonzero(high > low)
        begin = low[index] - np.uint64(offset) + np.uint64(paddr)
        parts.append((begin, high[index] - low[index], position[index]))
    first, second, third = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, third


def _warnings(stream: Stream, machine: Machine) -> tuple[str, ...]:
    said = []
    if not stream.ended:
        said.append(
            "the guest may still have run when what is there was sent: it can be of different moments, "
            "and its CPUs are not in here"
        )
    for name, size in stream.ram.blocks.items():
        if size >= _LARGE and name != machine.block and "vram" not in name and "flash" not in name:
            said.append(f"where the memory block {name!r} ({size:#x} bytes) was is not known: left out")
    return tuple(said)


FORMAT = Format("qemu", probe, open_migration)
