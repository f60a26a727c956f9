"""Notes of CPUs whose registers came by name: as QEMU's dump-guest-memory writes them.

An NT_PRSTATUS note for each CPU, CPU number + 1 in pr_pid; for x86 also QEMU's own notes, which have the
control registers.  The one place that makes them, wherever registers come from.
Sources: target/i386/arch_dump.c and target/arm/arch_dump.c of QEMU.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from dataclasses import replace

from kdump_elftool.arch import find_architecture
from kdump_elftool.arch.base import Architecture, PrStatusLayout
from kdump_elftool.elf.constants import EM_386, EM_X86_64, NT_PRFPREG, NT_PRSTATUS
from kdump_elftool.elf.notes import Note
from kdump_elftool.errors import UsageError
from kdump_elftool.formats.base import CpuRegisters, Dump
from kdump_elftool.kernel.cpus import CORE, is_prstatus
from kdump_elftool.kernel.qemu_notes import LAYOUT, QEMU, VERSION

log = logging.getLogger(__name__)

LINUX = b"LINUX"
_X86 = (EM_X86_64, EM_386)
_WIDE = {f"e{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "sp", "bp", "ip")}
_SAME: tuple[tuple[str, ...], ...] = (
    *((wide, narrow) for narrow, wide in _WIDE.items()),
    *((f"x{number}", f"r{number}") for number in range(15)),
    ("rflags", "eflags"),
    ("pstate", "cpsr"),
    ("x29", "fp"),
    ("x30", "lr"),
    ("r13", "sp"),
    ("r14", "lr"),
    ("r15", "pc"),
    ("pc", "epc", "cp0_epc"),
    ("status", "cp0_status"),
    ("cause", "cp0_cause"),
    ("badvaddr", "cp0_badvaddr"),
)
"""Names of one register: a CPU in 32-bit mode is shown with narrow ones."""
_OTHERS = {
    name: tuple(other for same in _SAME if name in same for other in same) for same in _SAME for name in same
}


def with_register_notes(dump: Dump) -> Dump:
    """The dump with notes of its ``cpu_registers``, which replace those of CPUs that it had.

    Unchanged without any, or if the architecture is not known.  Raises UsageError where they can't be
    this architecture's.
    """
    arch = find_architecture(dump.e_machine, dump.kind.bits)
    if arch is None or not dump.cpu_registers:
        return dump
    layout, order = arch.prstatus, dump.kind.order
    prstatus = [_prstatus(arch, layout, order, cpu) for cpu in dump.cpu_registers]
    qemu = []
    if dump.e_machine in _X86:
        qemu = [_qemu_note(cpu.values) for cpu in dump.cpu_registers if "cr3" in cpu.values]
    others = [note for note in dump.notes if not is_cpu_note(note)]
    if len(others) < len(dump.notes):
        log.info("the dump's own notes of its CPUs are not used: %d", len(dump.notes) - len(others))
    whole = qemu if len(qemu) == len(prstatus) else []  # they are told apart by their order alone
    return replace(dump, notes=(*prstatus, *whole, *others))


def is_cpu_note(note: Note) -> bool:
    """Whether a note holds registers of a CPU."""
    return (
        is_prstatus(note)
        or (note.name == QEMU and note.type == 0)
        or note.name == LINUX
        or (note.name == CORE and note.type == NT_PRFPREG)
    )


def _prstatus(arch: Architecture, layout: PrStatusLayout, order: str, cpu: CpuRegisters) -> Note:
    for name in (arch.instruction_pointer, arch.stack_pointer):
        if _value(cpu.values, name) is None:
            raise UsageError(
                f"the registers of CPU {cpu.number} are not those of {arch.name}: {name} is not among them",
                hint="--arch says what a memory image is of",
            )
    desc = bytearray(layout.size)
    struct.pack_into(order + "i", desc, layout.pid_offset, cpu.number + 1)
    letter, mask = (order + "Q", (1 << 64) - 1) if layout.word == 8 else (order + "I", (1 << 32) - 1)
    for name in layout.registers:
        value = _value(cpu.values, name) or 0
        struct.pack_into(letter, desc, layout.register_offset(name), value & mask)
    return Note(CORE, NT_PRSTATUS, bytes(desc))


def _qemu_note(values: Mapping[str, int]) -> Note:
    """QEMU's note; it ends before kernel_gs_base where that is not known, as older ones do."""
    fields = LAYOUT if "kernel_gs_base" in values else LAYOUT[:-1]
    size = struct.calcsize("<" + "".join(kind for _, kind in fields))
    told = {"version": VERSION, "size": size}
    data = b""
    for name, kind in fields:
        value = told.get(name) or _value(values, name) or 0
        data += struct.pack("<" + kind, value & ((1 << (8 * struct.calcsize("<" + kind))) - 1))
    return Note(QEMU, 0, data)


def _value(values: Mapping[str, int], name: str) -> int | None:
    return next((values[other] for other in (name, *_OTHERS.get(name, ())) if other in values), None)
