"""Notes of a kernel dump: CPU registers, QEMU's CPU state, VMCOREINFO.

Layouts: ``struct elf_prstatus`` (include/linux/elfcore.h) with the register order of
arch/x86/include/asm/user_64.h; QEMU's ``QEMUCPUState`` (target/i386/arch_dump.c).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tests.builders.elfcore import NT_PRSTATUS, NoteSpec

X86_64_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax "
    "rip cs eflags rsp ss fs_base gs_base ds es fs gs"
).split()
X86_64_PRSTATUS_SIZE = 336
X86_64_REGISTERS_AT = 112
PR_PID_AT = 32
QEMU_NOTE_SIZE = 440


def x86_64_prstatus(pid: int, registers: Mapping[str, int] | None = None) -> NoteSpec:
    """An NT_PRSTATUS note of 336 bytes."""
    desc = bytearray(X86_64_PRSTATUS_SIZE)
    struct.pack_into("<i", desc, PR_PID_AT, pid)
    for index, name in enumerate(X86_64_REGISTERS):
        value = (registers or {}).get(name, 0)
        struct.pack_into("<Q", desc, X86_64_REGISTERS_AT + 8 * index, value)
    return NoteSpec("CORE", NT_PRSTATUS, bytes(desc))


def prstatus_pid(desc: bytes) -> int:
    """``pr_pid`` of an x86_64 NT_PRSTATUS."""
    return int(struct.unpack_from("<i", desc, PR_PID_AT)[0])


def prstatus_register(desc: bytes, name: str) -> int:
    """One register of an x86_64 NT_PRSTATUS."""
    at = X86_64_REGISTERS_AT + 8 * X86_64_REGISTERS.index(name)
    return int(struct.unpack_from("<Q", desc, at)[0])


def qemu_cpu(cr3: int, registers: Mapping[str, int] | None = None, cr4: int = 0x20) -> NoteSpec:
    """QEMU's own CPU note: version, size, 18 registers, 10 segments of 24 bytes, cr0-cr4, gs base."""
    values = registers or {}
    order = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags".split()
    desc = struct.pack("<II", 1, QEMU_NOTE_SIZE)
    desc += b"".join(struct.pack("<Q", values.get(name, 0)) for name in order)
    desc += bytes(24 * 4) + struct.pack("<IIIIQ", 0, 0, 0, 0, values.get("gs_base", 0)) + bytes(24 * 5)
    desc += struct.pack("<5Q", 0x80050033, 0, 0, cr3, cr4)
    desc += struct.pack("<Q", values.get("kernel_gs_base", 0))
    return NoteSpec("QEMU", 0, desc.ljust(QEMU_NOTE_SIZE, b"\0"))


def vmcoreinfo_note(text: str) -> NoteSpec:
    """The VMCOREINFO note with this text (type 0, no NUL behind the text: as the kernel has it)."""
    return NoteSpec("VMCOREINFO", 0, text.encode("latin-1"))
