"""ELF cores: /proc/vmcore and its copies, QEMU's dump-guest-memory, ``makedumpfile -E``, pelf, /proc/kcore.

Only physical addresses are trusted: p_vaddr is wrong or zero in many kernels' dumps.  The part of
a PT_LOAD beyond p_filesz is absent, not zero (makedumpfile leaves out excluded pages of any kind
that way), unless the user says that only zero pages were left out.
"""

from __future__ import annotations

import numpy as np

from kdump_elftool.addr import U64, Ranges, merge_ranges, subtract_ranges
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import TRUNCATED, ElfFile, Segments
from kdump_elftool.errors import CorruptDumpError, FormatError, UnsupportedError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.base import ClaimedMappings, Dump, Format, Lost, OpenOptions, there
from kdump_elftool.formats.kcore import place
from kdump_elftool.formats.recognised import recognise_core
from kdump_elftool.memory.extents import ZERO_FILL, Extents, normalise
from kdump_elftool.memory.physical import PhysicalMemory

PADDR_LIMIT = 1 << 56
"""No machine has memory above this; a header that says so is wrong."""


def probe(head: bytes) -> bool:
    """True for anything that begins like an ELF file."""
    return head.startswith(c.ELFMAG)


def open_elfcore(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open an ELF core.  Raises FormatError, CorruptDumpError."""
    (file,) = files
    elf = ElfFile.read(file)
    header = elf.header
    if header.e_type != c.ET_CORE:
        kind = c.ET_NAMES.get(header.e_type, f"ELF file of type {header.e_type}")
        raise FormatError(file.path, f"this is an ELF {kind}, not a core", hint="a vmlinux is given with -m")
    loads = elf.segments.of_type(c.PT_LOAD)
    if not len(loads):
        known = recognise_core(file.read_at(0, 1 << 16))
        if known:
            raise UnsupportedError(
                file.path, f"this is {known[0]}, which is not supported yet", hint=known[1]
            )
        truncated = elf.missing_headers or not file.size
        raise CorruptDumpError(
            file.path, "no memory in this core: it has no PT_LOAD", hint=TRUNCATED if truncated else None
        )
    notes, bad_notes = elf.notes()
    warnings = [f"notes are damaged from file offset {offset:#x} on" for offset in bad_notes]
    if elf.missing_headers:
        warnings.append(f"{elf.missing_headers} program headers lie beyond the end of the file")
    loads, notes, running = place(file, header, loads, notes)
    possible = _possible(loads)
    if len(possible) < len(loads):
        warnings.append(f"{len(loads) - len(possible)} PT_LOADs with impossible addresses are ignored")
    memory, lost = _memory(file, possible, options.zero_excluded)
    if running and not len(memory.present()):
        raise CorruptDumpError(
            file.path,
            "this copy of /proc/kcore ends before any memory, which lies terabytes further on",
            hint="on the machine itself, 'kdump-elftool topelf /proc/kcore -o FILE' makes a copy",
        )
    return Dump(
        format="elf",
        file=file,
        kind=header.kind,
        e_machine=header.e_machine,
        e_flags=header.e_flags,
        memory=memory,
        notes=notes,
        claimed=ClaimedMappings(possible.p_vaddr, possible.p_paddr, possible.p_memsz),
        lost=lost,
        warnings=tuple(warnings),
        running=running,
    )


FORMAT = Format("pelf", probe, open_elfcore)


def _possible(loads: Segments) -> Segments:
    limit = np.uint64(PADDR_LIMIT)
    size = np.maximum(loads.p_memsz, loads.p_filesz)
    keep = (loads.p_paddr < limit) & (size <= limit) & (size > 0)
    return Segments(*(getattr(loads, name)[keep] for name in Segments.__dataclass_fields__))


def _memory(
    file: ByteSource, loads: Segments, zero_excluded: bool
) -> tuple[PhysicalMemory, tuple[Lost, ...]]:
    size = np.uint64(file.size)
    in_file = np.where(loads.p_offset < size, np.minimum(loads.p_filesz, size - loads.p_offset), 0)
    in_file = in_file.astype(np.uint64)
    start, position, length = there(file, loads.p_paddr, loads.p_offset, in_file)
    tail = loads.p_paddr + loads.p_filesz
    tail_end = np.maximum(loads.p_paddr + loads.p_memsz, tail)
    if zero_excluded:
        start = np.concatenate([start, tail])
        length = np.concatenate([length, tail_end - tail])
        position = np.concatenate([position, np.full(len(tail), ZERO_FILL, dtype=np.uint64)])
    extents = normalise(start, length, position)
    declared = merge_ranges(loads.p_paddr, tail_end)
    truncated = Lost(
        "paddr",
        f"truncated at file offset {file.size:#x}",
        _missing(extents, loads.p_paddr + in_file, tail),
        file.size,
    )
    missing = Lost(
        "paddr", f"missing from {file.path}", _missing(extents, loads.p_paddr, loads.p_paddr + in_file)
    )
    excluded = Lost("paddr", "excluded or zero", _missing(extents, tail, tail_end))
    lost = tuple(part for part in (truncated, missing, excluded) if len(part.ranges))
    return PhysicalMemory(file, extents, declared), lost


def _missing(extents: Extents, start: U64, end: U64) -> Ranges:
    return subtract_ranges(merge_ranges(start, end), extents.ranges())
