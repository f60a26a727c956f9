"""CPU threads: the dump's NT_PRSTATUS notes with thread ids that every gdb can live with.

gdb 13 shows another thread's registers for pid 0 and gdb 16 aborts on two equal ids, so ids are
made unique and never 0: the idle thread of CPU n becomes -(n + 1).  QEMU's own notes carry CPU
number + 1 in pr_pid and keep it, because drgn looks CPUs up by it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdump_elftool.arch.base import Architecture, PrStatusLayout
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.structs import ElfKind

CORE = b"CORE"


@dataclass(frozen=True)
class CpuThread:
    """One CPU at the time of the dump: thread id, stack and instruction pointer."""

    cpu: int
    lwp: int
    sp: int
    ip: int


@dataclass(frozen=True)
class CpuNotes:
    """The dump's notes with the ids set, and the threads they make."""

    notes: tuple[Note, ...]
    threads: tuple[CpuThread, ...]


def is_prstatus(note: Note) -> bool:
    """True for the register note of a CPU (other owners reuse type 1 for other things)."""
    return note.type == c.NT_PRSTATUS and note.name == CORE


def cpu_threads(notes: tuple[Note, ...], arch: Architecture, kind: ElfKind) -> CpuNotes:
    """Give every CPU note a thread id; all other notes pass through unchanged, in order."""
    layout = arch.prstatus
    result: list[Note] = []
    threads: list[CpuThread] = []
    used: set[int] = set()
    for note in notes:
        if not is_prstatus(note) or not isinstance(note.desc, bytes) or note.size < layout.size:
            result.append(note)
            continue
        cpu = len(threads)
        (pid,) = struct.unpack_from(kind.order + "i", note.desc, layout.pid_offset)
        lwp = pid if pid > 0 and pid not in used else -(cpu + 1)
        used.add(lwp)
        desc = bytearray(note.desc)
        struct.pack_into(kind.order + "i", desc, layout.pid_offset, lwp)
        result.append(replace(note, desc=bytes(desc)))
        sp, ip = (
            _register(note.desc, arch, kind, name) for name in (arch.stack_pointer, arch.instruction_pointer)
        )
        threads.append(CpuThread(cpu, lwp, sp, ip))
    return CpuNotes(tuple(result), tuple(threads))


def cpus_by_base(
    states: Sequence[Mapping[str, int]], registers: tuple[str, ...], areas: Mapping[int, int]
) -> list[int]:
    """The CPU whose per-CPU area each state's registers point at, -1 where none is or several are.

    ``areas`` has the CPU by the base of its area.  In user mode the kernel's base waits in another
    register than in kernel mode, so all are looked at.
    """
    result = []
    for values in states:
        at = {areas[values[name]] for name in registers if values.get(name) in areas}
        result.append(at.pop() if len(at) == 1 else -1)
    return result


def cpu_of_notes(
    descs: list[bytes],
    qemu: bool,
    numbers: tuple[int, ...],
    saved: list[bytes],
    running: list[int],
    layout: PrStatusLayout,
    order: str,
    by_base: Sequence[int] = (),
) -> list[int]:
    """The index in ``numbers``, the CPUs, that each register note belongs to, -1 where it can't be told.

    ``saved`` is what each CPU has in its own crash_notes, ``running`` the tid of what its run queue says it
    runs, ``by_base`` the CPU whose per-CPU area each note's registers point at (or -1).  QEMU writes a note
    for each CPU, numbered from 1, which is not always the kernel's number; a kernel's dump has none for a
    CPU that did not answer, so that counting would give its registers to another one.
    """
    result = [-1] * len(descs)
    free = set(range(len(saved)))

    def give(index: int, cpu: int) -> None:
        if result[index] < 0 and cpu in free:
            result[index] = cpu
            free.discard(cpu)

    if len(by_base) == len(descs):
        for index, cpu in enumerate(by_base):
            give(index, cpu)
    pids = [struct.unpack_from(order + "i", desc, layout.pid_offset)[0] for desc in descs]
    if qemu:
        for index, pid in enumerate(pids):
            if pid - 1 in numbers:
                give(index, numbers.index(pid - 1))
    for index, desc in enumerate(descs):
        for cpu, own in enumerate(saved):
            if own == desc[: layout.size]:
                give(index, cpu)
    for index, pid in enumerate(pids):
        if pid > 0 and running.count(pid) == 1:
            give(index, running.index(pid))
    if len(free) == result.count(-1):
        for index in range(len(descs)):
            if free:
                give(index, min(free))
    return result


def _register(desc: bytes, arch: Architecture, kind: ElfKind, name: str) -> int:
    letter = "Q" if arch.prstatus.word == 8 else "I"
    (value,) = struct.unpack_from(kind.order + letter, desc, arch.prstatus.register_offset(name))
    return int(value)
