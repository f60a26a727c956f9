"""The register notes that belong to the kernel which is shown.

A dump taken from outside after a failed kdump has the registers of CPUs that are in the crash kernel
by then.  For the crashed kernel they mean nothing; what it saved of each CPU on its way there
(``crash_notes``) is what /proc/vmcore would have had.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kdump_elftool.elf.constants import NT_PRFPREG, NT_PRSTATUS
from kdump_elftool.elf.notes import Note
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.kernel.cpu_place import CpuPlaces, register_notes
from kdump_elftool.kernel.cpus import CORE, cpus_by_base, is_prstatus
from kdump_elftool.kernel.crash_notes import read_crash_notes
from kdump_elftool.kernel.percpu import PerCpu, find_percpu
from kdump_elftool.kernel.qemu_notes import QEMU, qemu_cpus
from kdump_elftool.kernel.saved_registers import LINUX

log = logging.getLogger(__name__)


def elsewhere(dump: Dump, kernel: Kernel) -> list[bool]:
    """For each register note whether that CPU was certainly in another kernel."""
    identity, places = kernel.identity, CpuPlaces(dump)
    count = len(register_notes(dump, kernel.arch.prstatus.size))
    if not identity.verified:
        return [False] * count
    by_tables = places.by_tables(identity, kernel.info)
    if by_tables:
        # a note of QEMU's for each register note, in the same order, or no way to tell
        return [answer is False for answer in by_tables] if len(by_tables) == count else [False] * count
    described = kernel.description
    if described.paddr is not None and any(found.paddr is None for found in described.kernels):
        return [True] * count  # the dump's maker knew another kernel, and wrote of that one's CPUs
    result = [False] * count
    here = places.by_registers(identity)
    for index, found in enumerate(described.kernels):
        if index != described.chosen and found.verified and found.identity is not None:
            there = places.by_registers(found.identity)
            result = [
                known or (own is False and other is True)
                for known, own, other in zip(result, here, there, strict=True)
            ]
    return result


def own_cpus(dump: Dump, kernel: Kernel) -> tuple[Dump, tuple[str, ...]]:
    """The dump with this kernel's register notes alone, and warnings; unchanged where they all are."""
    foreign = elsewhere(dump, kernel)
    if not any(foreign):
        return dump, ()
    chooser = _Chooser(dump, kernel, foreign)
    percpu = chooser.percpu()
    saved = chooser.saved(percpu) if percpu else {}
    count = f"{sum(foreign)} of {len(foreign)} CPUs were in another kernel"
    if saved:
        log.info("registers by crash_notes: CPUs %s", ", ".join(map(str, saved)))
        notes = chooser.with_saved(saved, percpu)
        message = f"{count}: the registers are those that this one saved of its CPUs when it crashed"
    else:
        notes = chooser.without_foreign(percpu)
        message = f"{count}: their registers are left out"
    return replace(dump, notes=notes), (message,)


@dataclass(frozen=True)
class _Chooser:
    dump: Dump
    kernel: Kernel
    foreign: list[bool]

    def percpu(self) -> PerCpu | None:
        known, memory = knowledge(self.dump, self.kernel), self.kernel.virtual(self.dump)
        return find_percpu(memory, known, self.dump.kind.order, self.kernel.arch.prstatus.word)

    def saved(self, percpu: PerCpu) -> dict[int, bytes]:
        """By CPU number what it saved."""
        known, memory = knowledge(self.dump, self.kernel), self.kernel.virtual(self.dump)
        descs = read_crash_notes(memory, known, percpu, self.kernel.arch.prstatus, self.dump.kind.order)
        return {cpu: desc for cpu, desc in zip(percpu.cpu, descs, strict=True) if desc}

    def with_saved(self, saved: dict[int, bytes], percpu: PerCpu | None) -> tuple[Note, ...]:
        """What was saved, by CPU; a CPU that saved nothing keeps the dump's note if that is known."""
        descs = register_notes(self.dump, self.kernel.arch.prstatus.size)
        by_cpu = {}
        for desc, cpu, foreign in zip(descs, self._numbers(percpu), self.foreign, strict=True):
            if cpu >= 0 and not foreign:
                by_cpu[cpu] = self._with_pid(desc, 0)  # QEMU's number would be taken for a task's
        by_cpu |= saved
        others = [note for note, cpu in self._owned() if cpu is None]
        return (*(Note(CORE, NT_PRSTATUS, by_cpu[cpu]) for cpu in sorted(by_cpu)), *others)

    def without_foreign(self, percpu: PerCpu | None) -> tuple[Note, ...]:
        """The dump's notes; QEMU's numbers of CPUs become this kernel's, which counts its own."""
        numbers = self._numbers(percpu)
        notes = []
        for note, index in self._owned():
            if index is not None and self.foreign[index]:
                continue
            if index is not None and is_prstatus(note) and numbers[index] >= 0:
                assert isinstance(note.desc, bytes)
                note = replace(note, desc=self._with_pid(note.desc, numbers[index] + 1))
            notes.append(note)
        return tuple(notes)

    def _numbers(self, percpu: PerCpu | None) -> list[int]:
        """The kernel's CPU number for each register note, -1 where it is not known."""
        states = qemu_cpus(self.dump.notes)
        if percpu is None or len(states) != len(self.foreign):
            return [-1] * len(self.foreign)
        areas = dict(zip(percpu.address(0).tolist(), percpu.cpu, strict=True))
        return cpus_by_base(states, self.kernel.arch.percpu_registers, areas)

    def _owned(self) -> Iterator[tuple[Note, int | None]]:
        """All notes, each with the index of its CPU, None for those that are of no CPU."""
        cpu, qemu = -1, -1
        size = self.kernel.arch.prstatus.size
        for note in self.dump.notes:
            if is_prstatus(note) and isinstance(note.desc, bytes) and note.size >= size:
                cpu += 1
                yield note, cpu
            elif note.name == QEMU and qemu_cpus((note,)):
                qemu += 1
                yield note, qemu if qemu < len(self.foreign) else None
            elif cpu >= 0 and (note.name == LINUX or (note.name == CORE and note.type == NT_PRFPREG)):
                yield note, cpu  # more registers of the CPU before
            else:
                yield note, None

    def _with_pid(self, desc: bytes, pid: int) -> bytes:
        changed = bytearray(desc)
        struct.pack_into(self.dump.kind.order + "i", changed, self.kernel.arch.prstatus.pid_offset, pid)
        return bytes(changed)
