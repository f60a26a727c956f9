"""QEMU migration streams: what ``migrate`` writes into a file or through a pipe, version 3.

Sections one after the other; memory is in the section ``ram``, which comes in parts while the guest may
still run: a page that was sent again counts as it came last.  Of the devices behind it the CPUs are
read (``qemu_devices``); memory is whole without them.

A stream has blocks of memory and not where the machine has them: see ``migration_machines``.
Source: migration/savevm.c of QEMU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kdump_elftool.addr import U64, merge_ranges, u64
from kdump_elftool.elf.constants import EM_ARM, EM_X86_64
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import UnsupportedError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import mapped_ram, migration_pages
from kdump_elftool.formats.base import Dump, Format, Lost, OpenOptions
from kdump_elftool.formats.lime import image_dump
from kdump_elftool.formats.mapped_ram import MappedRam
from kdump_elftool.formats.migration_machines import GB4, Layout, Piece, find_layout
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

_DUMP_GUEST = "use QEMU's dump-guest-memory instead"


@dataclass
class Stream:
    """What was read: ``ended`` is True when the section ``ram`` is complete."""

    ram: Ram | MappedRam = field(init=False)
    configuration: Configuration | None = None
    section: int | None = None
    ended: bool = False
    layout: Layout | None = None

    def __post_init__(self) -> None:
        self.ram = Ram(self.wanted)

    def wanted(self, blocks: Mapping[str, int]) -> frozenset[str]:
        """Those of a stream's blocks that are memory of the machine."""
        self.layout = find_layout(self.configuration.machine if self.configuration else None, blocks)
        return frozenset(piece.block for piece in self.layout.pieces) if self.layout else frozenset()


def probe(head: bytes) -> bool:
    """Whether a file begins like a migration stream."""
    return head.startswith(MAGIC)


def open_migration(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open a migration stream.  Raises UnsupportedError (other versions, machines), CorruptDumpError."""
    (file,) = files
    cursor = Cursor(file)
    stream = Stream()
    try:
        read_file_header(cursor)
        while not stream.ended:
            _read_section(cursor, stream)
    except StreamEnds:
        if not stream.ram.blocks:
            raise cursor.corrupt(cursor.limit, "this QEMU migration stream ends before its memory") from None
    if isinstance(stream.ram, MappedRam):
        stream.ram.finish(cursor, ended=stream.ended)
    layout = stream.layout
    if layout is None:
        raise _unknown_machine(cursor, stream)
    size, paddr = (u64([getattr(piece, of) for piece in layout.pieces]) for of in ("size", "paddr"))
    cpus = read_cpus(cursor) if stream.ended else NO_CPUS
    extents = overlay(*_physical(stream.ram, layout.pieces))
    memory = PhysicalMemory(file, extents, merge_ranges(paddr, paddr + size))
    why = "never sent" if stream.ended else f"truncated at file offset {cursor.limit:#x}"
    if cursor.failure and not stream.ended:
        why = f"not readable from file offset {cursor.limit:#x} on: {cursor.failure}"
    lost = Lost("paddr", why, memory.absent(), None if stream.ended else cursor.limit)
    asked = options.kind if options.e_machine != EM_X86_64 else None
    if asked is None:  # also the default: the machine knows better, its CPUs even more so
        options = replace(options, e_machine=cpus.e_machine or layout.machine.e_machine)
    # what was not sent is not known to be zero
    options = replace(options, zero_excluded=False)
    dump = image_dump("qemu", file, options, memory, (lost,), (*_warnings(stream, layout), *cpus.warnings))
    kind = asked or _kind(options.e_machine, memory, layout)
    known = cpus.e_machine is not None
    placed_by = _placed_by(stream, layout)
    return replace(dump, kind=kind, cpu_registers=cpus.registers, machine_known=known, placed_by=placed_by)


def _placed_by(stream: Stream, layout: Layout) -> str:
    name = stream.configuration.machine if stream.configuration else layout.machine.prefix
    unless = " unless its option max-ram-below-4g says otherwise" if layout.machine.block == "pc.ram" else ""
    return f"where QEMU's machine {name} has it{unless}"


def _kind(e_machine: int, memory: PhysicalMemory, layout: Layout) -> ElfKind:
    """As dump-guest-memory writes: 32 bits where memory ends before 4 GB; the firmware of x86 does not."""
    narrow = e_machine == EM_ARM and int(memory.declared.end[-1]) < GB4
    return ElfKind(32 if narrow else 64, layout.machine.order)


def _warnings(stream: Stream, layout: Layout) -> tuple[str, ...]:
    if stream.ended:
        return layout.warnings
    if isinstance(stream.ram, MappedRam) and stream.ram.complete:
        return ("the guest's CPUs are not in here", *layout.warnings)
    said = (
        "the guest may still have run when what is there was sent: it can be of different moments, "
        "and its CPUs are not in here"
    )
    return (said, *layout.warnings)


def _read_section(cursor: Cursor, stream: Stream) -> None:
    at = cursor.at
    kind = cursor.take(1)[0]
    if kind == Section.CONFIGURATION and stream.configuration is None and stream.section is None:
        stream.configuration = read_configuration(cursor)
        capabilities = stream.configuration.capabilities
        if mapped_ram.CAPABILITY in capabilities:
            with_addresses = mapped_ram.WITH_ADDRESSES in capabilities
            stream.ram = MappedRam(stream.wanted, with_addresses=with_addresses)
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


def _unknown_machine(cursor: Cursor, stream: Stream) -> UnsupportedError:
    blocks = stream.ram.blocks
    largest = max(blocks, key=lambda block: blocks[block], default="none")
    name = stream.configuration.machine if stream.configuration else "without a name"
    return cursor.unsupported(
        0, f"where a QEMU machine {name} has its memory ({largest}) is not known", _DUMP_GUEST
    )


def _physical(ram: Ram | MappedRam, pieces: tuple[Piece, ...]) -> tuple[U64, U64, U64]:
    """Start, size and position by physical address, those of a piece in the order in which they were sent.

    Only zeros can lie on both sides of a border between pieces: pages are smaller than what borders are
    multiples of.
    """
    parts = []
    for piece in pieces:
        start, size, position = ram.columns(piece.block)
        if len(pieces) > 1:
            low = np.maximum(start, np.uint64(piece.offset))
            high = np.minimum(start + size, np.uint64(piece.offset + piece.size))
            index = np.flatnonzero(high > low)
            start, size, position = low[index], high[index] - low[index], position[index]
        # an offset in the block that is above the address makes this wrap around, and back again
        moved = start - np.uint64(piece.offset) + np.uint64(piece.paddr)
        parts.append((moved, size, position))
    first, second, third = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, third


FORMAT = Format("qemu", probe, open_migration)
