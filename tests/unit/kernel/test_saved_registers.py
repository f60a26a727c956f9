"""Registers by name become the notes that QEMU's dump-guest-memory writes."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import UsageError
from kdump_elftool.formats.base import ClaimedMappings, CpuRegisters, Dump
from kdump_elftool.kernel.qemu_notes import qemu_cpus
from kdump_elftool.kernel.saved_registers import with_register_notes
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory
from tests.builders.notes import X86_64_REGISTERS, qemu_cpu, x86_64_prstatus

NOTHING = u64([])
GENERAL = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
VALUES = {name: 0xFFFF888000000000 + index for index, name in enumerate(GENERAL)}
MORE = {"rflags": 0x246, "gs_base": 0xFFFF88803EC00000, "cr0": 0x80050033, "cr3": 0x1234000, "cr4": 0x20}


class NoFile:
    path = "memory"
    size = 0


def dump_with(*cpus: CpuRegisters, notes: tuple[Note, ...] = (), e_machine: int = 62) -> Dump:
    extents = normalise(NOTHING, NOTHING, NOTHING)
    memory = PhysicalMemory(NoFile(), extents, Ranges(NOTHING, NOTHING))
    claimed = ClaimedMappings(NOTHING, NOTHING, NOTHING)
    return Dump(
        "raw", NoFile(), ElfKind(64, "<"), e_machine, 0, memory, notes, claimed, (), (), cpu_registers=cpus
    )


def test_as_qemu_writes_them():
    """Register notes of all CPUs, QEMU's of all, what else there was."""
    info = Note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")
    old = (Note(b"CORE", 1, bytes(336)), Note(b"CORE", 2, bytes(512)), Note(b"QEMU", 0, bytes(440)))
    cpus = [CpuRegisters(n, {**VALUES, **MORE, "rbp": n, "kernel_gs_base": 7}) for n in (0, 3)]
    dump = with_register_notes(dump_with(*cpus, notes=(*old, info)))
    expected = []
    told = {**VALUES, **MORE, "eflags": 0x246, "kernel_gs_base": 7}
    expected += [x86_64_prstatus(n + 1, told | {"rbp": n}) for n in (0, 3)]
    expected += [qemu_cpu(0x1234000, told | {"rbp": n}) for n in (0, 3)]
    found = [(note.name.decode(), note.type, note.desc) for note in dump.notes]
    assert found == [(spec.name, spec.type, spec.desc) for spec in expected] + [
        ("VMCOREINFO", 0, b"OSRELEASE=6.1\n")
    ]


def test_what_is_not_known_is_cut_off_or_zero():
    """No kernel_gs_base: the note ends before it.  No CR3: no note of QEMU's at all."""
    dump = with_register_notes(dump_with(CpuRegisters(0, {**VALUES, **MORE})))
    prstatus, qemu = dump.notes
    assert (qemu.size, struct.unpack_from("<II", qemu.desc)) == (432, (1, 432))
    (values,) = qemu_cpus(dump.notes)
    assert values["cr3"] == 0x1234000
    assert "kernel_gs_base" not in values
    assert prstatus.desc[112 + 8 * X86_64_REGISTERS.index("orig_rax") :][:8] == bytes(8)
    (only,) = with_register_notes(dump_with(CpuRegisters(0, VALUES))).notes
    assert only.size == 336


def test_a_cpu_without_cr3_takes_the_notes_of_all():
    cpus = [CpuRegisters(0, {**VALUES, **MORE}), CpuRegisters(1, VALUES)]
    assert [note.name for note in with_register_notes(dump_with(*cpus)).notes] == [b"CORE", b"CORE"]


def test_a_cpu_in_32_bit_mode():
    values = {"eip": 0x8049000, "esp": 0xBF000000, "eax": 5, "cr3": 0x1000}
    prstatus, qemu = with_register_notes(dump_with(CpuRegisters(0, values))).notes
    assert prstatus.desc == x86_64_prstatus(1, {"rip": 0x8049000, "rsp": 0xBF000000, "rax": 5}).desc
    assert qemu_cpus((qemu,))[0]["rax"] == 5


def test_another_architecture_is_refused():
    with pytest.raises(UsageError, match="CPU 2 are not those of x86_64: rip"):
        with_register_notes(dump_with(CpuRegisters(2, {"pc": 1, "sp": 2})))


def test_unchanged_without_registers_or_for_an_unknown_machine():
    for dump in (dump_with(), dump_with(CpuRegisters(0, VALUES), e_machine=4711)):
        assert with_register_notes(dump) is dump


def test_too_wide_values_are_cut():
    dump = with_register_notes(dump_with(CpuRegisters(0, {**VALUES, **MORE, "cs": 1 << 40, "rip": 1 << 70})))
    assert dataclasses.is_dataclass(dump)
    assert (
        dump.notes[0].desc
        == x86_64_prstatus(1, {**VALUES, **MORE, "eflags": 0x246, "cs": 1 << 40, "rip": 0}).desc
    )
