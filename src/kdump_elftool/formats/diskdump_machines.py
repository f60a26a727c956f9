"""Which machine a kdump-compressed dump is of: the name in its header, or what its notes look like.

The header has what uname says; QEMU writes a fixed name per target, "Unknown" or nothing (dump.c,
ELF_MACHINE_UNAME).  Then the size of elf_prstatus decides, which is a registers' set of its own on nearly
every architecture (Linux include/linux/elfcore.h with each arch/*/include/asm/elf.h), and at last the
lines that only one architecture's VMCOREINFO has.
"""

from __future__ import annotations

import re

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import Note

_NAMES: tuple[tuple[str, int, int], ...] = (
    (r"x86_64|amd64", c.EM_X86_64, 64),
    (r"i[3-6]86|x86", c.EM_386, 32),
    (r"aarch64.*|arm64", c.EM_AARCH64, 64),
    (r"arm.*", c.EM_ARM, 32),
    (r"ppc64.*", c.EM_PPC64, 64),
    (r"ppc.*", c.EM_PPC, 32),
    (r"s390x", c.EM_S390, 64),
    (r"s390", c.EM_S390, 32),
    (r"mips.*64.*", c.EM_MIPS, 64),
    (r"mips.*", c.EM_MIPS, 32),
    (r"riscv64", c.EM_RISCV, 64),
    (r"riscv32", c.EM_RISCV, 32),
    (r"loongarch64", c.EM_LOONGARCH, 64),
)
_UNAMES = {
    c.EM_386: "i686",
    c.EM_X86_64: "x86_64",
    c.EM_AARCH64: "aarch64",
    c.EM_ARM: "armv7l",
    c.EM_PPC: "ppc",
    c.EM_S390: "s390x",
    c.EM_RISCV: "riscv64",
    c.EM_LOONGARCH: "loongarch64",
}
_PRSTATUS: dict[tuple[int, str], tuple[int, int]] = {
    (336, "<"): (c.EM_X86_64, 64),
    (336, ">"): (c.EM_S390, 64),
    (392, "<"): (c.EM_AARCH64, 64),
    (392, ">"): (c.EM_AARCH64, 64),
    (376, "<"): (c.EM_RISCV, 64),
    (504, "<"): (c.EM_PPC64, 64),
    (504, ">"): (c.EM_PPC64, 64),
    (480, "<"): (c.EM_LOONGARCH, 64),
    (480, ">"): (c.EM_MIPS, 64),
    (144, "<"): (c.EM_386, 32),
    (148, "<"): (c.EM_ARM, 32),
    (148, ">"): (c.EM_ARM, 32),
    (256, "<"): (c.EM_MIPS, 32),
    (256, ">"): (c.EM_MIPS, 32),
    (268, ">"): (c.EM_PPC, 32),
}
_LINES: tuple[tuple[bytes, int, int], ...] = (
    (b"NUMBER(phys_base)=", c.EM_X86_64, 64),
    (b"NUMBER(kimage_voffset)=", c.EM_AARCH64, 64),
    (b"NUMBER(va_kernel_pa_offset)=", c.EM_RISCV, 64),
)
_X86 = (c.EM_X86_64, c.EM_386)


def find_machine(name: str, order: str, bits: int, notes: tuple[Note, ...]) -> tuple[int, int, str | None]:
    """ELF machine and word size, and what to say when they are no more than a guess.

    A name that QEMU gives to both x86 kinds yields to the notes.
    """
    by_notes = _by_notes(order, notes)
    for pattern, machine, word in _NAMES:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            if by_notes and machine in _X86 and by_notes[0] in _X86:
                return *by_notes, None
            return machine, word, None
    found = by_notes or _by_lines(notes)
    if found:
        return *found, None
    if (bits, order) == (64, "<"):
        return c.EM_X86_64, 64, "the dump does not say of what machine it is: taken for x86_64"
    return 0, bits, "the dump does not say of what machine it is"


def machine_name(e_machine: int, bits: int, order: str) -> bytes:
    """What ``uname -m`` says on such a machine: by this name readers choose the architecture."""
    if e_machine == c.EM_PPC64:
        return b"ppc64le" if order == "<" else b"ppc64"
    if e_machine == c.EM_MIPS:
        return b"mips64" if bits == 64 else b"mips"
    return _UNAMES.get(e_machine, "").encode()


def _by_notes(order: str, notes: tuple[Note, ...]) -> tuple[int, int] | None:
    for note in notes:
        if note.name == b"CORE" and note.type == c.NT_PRSTATUS:
            found = _PRSTATUS.get((note.size, order))
            if found:
                return found
    return None


def _by_lines(notes: tuple[Note, ...]) -> tuple[int, int] | None:
    for note in notes:
        for line, machine, bits in _LINES:
            if isinstance(note.desc, bytes) and line in note.desc:
                return machine, bits
    return None
