"""What every dump format delivers: memory, notes, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdump_elftool.addr import U64, Ranges, subtract_ranges, u64
from kdump_elftool.elf.constants import EM_X86_64
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import ByteSource
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.physical import PhysicalMemory


@dataclass(frozen=True)
class Lost:
    """Memory that the dump should have but does not: which addresses, why, and where in the file.

    ``space`` is ``paddr`` or ``vaddr``; ``file_offset`` is where the first range would begin.
    """

    space: str
    why: str
    ranges: Ranges
    file_offset: int | None = None


@dataclass(frozen=True)
class ClaimedMappings:
    """The virtual addresses that the dump's own headers give to physical memory (hints only)."""

    vaddr: U64
    paddr: U64
    size: U64


@dataclass(frozen=True)
class CpuRegisters:
    """The registers of CPU ``number`` by name, as unsigned integers.

    Names are those of register notes and of QEMU's own note: rax, rip, eflags or rflags, cs, cs_base,
    gdt_limit, cr3, kernel_gs_base; x0, sp, pc, pstate, ttbr1_el1; r0, cpsr.
    """

    number: int
    values: Mapping[str, int]


@dataclass(frozen=True)
class Dump:
    """An open dump.  ``warnings`` are things worth saying that lost no memory.

    ``phys_base`` is x86_64's, where the dump's headers have it.  ``cpu_registers`` are registers that came
    otherwise than as notes; ``format_source`` is what told the format.  ``machine_known`` is false where
    nothing in the file says of what machine the memory is.  ``placed_by``: where the memory was put, as
    the dump does not say where it lay.  ``running``: its kernel ran on while it was read (/proc/kcore), so
    that what the CPUs were at is of no other moment.
    """

    format: str
    file: ByteSource
    kind: ElfKind
    e_machine: int
    e_flags: int
    memory: PhysicalMemory
    notes: tuple[Note, ...]
    claimed: ClaimedMappings
    lost: tuple[Lost, ...]
    warnings: tuple[str, ...]
    phys_base: int | None = None
    cpu_registers: tuple[CpuRegisters, ...] = ()
    format_source: str = "the file's beginning"
    machine_known: bool = True
    placed_by: str | None = None
    running: bool = False

    def hint(self, otherwise: str) -> str:
        """What to do about something that is not in the dump: first of all, see that all of it is here."""
        cut = [lost.why for lost in self.lost if lost.file_offset is not None and len(lost.ranges)]
        if not cut:
            return otherwise
        return f"the dump is not whole ({cut[0]}): copy it again, if there is more of it; or {otherwise}"


@dataclass(frozen=True)
class OpenOptions:
    """How to read a dump where its content leaves a choice."""

    zero_excluded: bool = False
    e_machine: int = EM_X86_64
    """The architecture of a dump that does not say."""
    kind: ElfKind = field(default_factory=lambda: ElfKind(64, "<"))
    """Its word size and byte order."""
    addresses: tuple[int, ...] = ()
    """Where each file of raw memory begins, in their order; none: one file, at 0."""
    spool_directory: str | None = None
    """Where a large temporary file may go if there has to be one."""
    show_progress: bool = False
    use_cache: bool = False
    """Whether what is found out about the file may be kept in the user's cache, and taken from it."""


@dataclass(frozen=True)
class Format:
    """One dump format.  ``probe`` answers whether a file begins like one; ``open`` reads it.

    ``open`` gets more than one file only from a format of which a set makes one dump (``sets``).  Without
    ``layered`` nothing around the file is taken off: its first bytes mean nothing.  ``members_layered`` is
    the same for the other files of a set.
    """

    name: str
    probe: Callable[[bytes], bool]
    open: Callable[[tuple[ByteSource, ...], OpenOptions], Dump]
    sets: bool = False
    layered: bool = True
    members_layered: bool = True


@dataclass(frozen=True)
class Layer:
    """Something around a dump that is taken off first: compression, makedumpfile's flattening.

    What is wrong with it does not end the reading: ``warnings`` and ``missing`` of the contents say so.
    """

    name: str
    probe: Callable[[bytes], bool]
    open: Callable[[ByteSource, OpenOptions], ByteSource]


def there(file: ByteSource, paddr: U64, offset: U64, size: U64) -> tuple[U64, U64, U64]:
    """paddr, file offset and size of those parts of ranges that a layer around the dump has not lost."""
    if not len(file.missing):
        return paddr, offset, size
    whole = Ranges(u64([0]), u64([file.size]))
    kept = intersect(subtract_ranges(whole, file.missing), offset, size)
    return paddr[kept.owner] + (kept.start - offset[kept.owner]), kept.start, kept.size
