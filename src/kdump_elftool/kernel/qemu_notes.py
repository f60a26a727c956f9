"""QEMU's own note for each CPU: control registers and segment bases that NT_PRSTATUS lacks.

Written for x86 guests of either width, always little-endian, in the order of the NT_PRSTATUS
notes.  Reference: QEMU target/i386/arch_dump.c, struct QEMUCPUState, version 1; kernel_gs_base was
added behind the rest without a new version, so the size decides what is there.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping

from kdump_elftool.elf.notes import Note

log = logging.getLogger(__name__)

QEMU = b"QEMU"
VERSION = 1
_GENERAL = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
_SEGMENTS = "cs ds es fs gs ss ldt tr gdt idt"
_CONTROL = "cr0 cr1 cr2 cr3 cr4"

LAYOUT: tuple[tuple[str, str], ...] = (
    ("version", "I"),
    ("size", "I"),
    *((name, "Q") for name in _GENERAL.split()),
    *(
        (f"{segment}{field}", kind)
        for segment in _SEGMENTS.split()
        for field, kind in (("", "I"), ("_limit", "I"), ("_flags", "I"), ("_pad", "I"), ("_base", "Q"))
    ),
    *((name, "Q") for name in _CONTROL.split()),
    ("kernel_gs_base", "Q"),
)
"""Fields in their order, with the letters of ``struct``; nothing is padded."""


def qemu_cpus(notes: tuple[Note, ...]) -> tuple[Mapping[str, int], ...]:
    """The registers by name of each CPU that has such a note, in order; what is cut off is left out."""
    found = []
    for note in notes:
        if note.name != QEMU or note.type != 0 or not isinstance(note.desc, bytes):
            continue
        values = dict(_fields(note.desc))
        if values.get("version") != VERSION or "cr4" not in values:
            log.info("a note of QEMU's of %d bytes, version %s: not used", note.size, values.get("version"))
            continue
        found.append(values)
    return tuple(found)


def _fields(desc: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    for name, kind in LAYOUT:
        width = struct.calcsize("<" + kind)
        if at + width > len(desc):
            return
        yield name, struct.unpack_from("<" + kind, desc, at)[0]
        at += width
