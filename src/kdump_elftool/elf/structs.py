"""ELF structures as tables, bound once to a class and a byte order.

Columns: field, ELF32 type, ELF64 type (numpy letters without byte order).  The order of fields is
the file's.  Source: System V gABI chapters 4 and 5; psABI for ``PN_XNUM``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdump_elftool.elf.constants import ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFDATA2MSB

Table = tuple[tuple[str, str, str], ...]

EHDR: Table = (
    ("e_ident", "S16", "S16"),
    ("e_type", "u2", "u2"),
    ("e_machine", "u2", "u2"),
    ("e_version", "u4", "u4"),
    ("e_entry", "u4", "u8"),
    ("e_phoff", "u4", "u8"),
    ("e_shoff", "u4", "u8"),
    ("e_flags", "u4", "u4"),
    ("e_ehsize", "u2", "u2"),
    ("e_phentsize", "u2", "u2"),
    ("e_phnum", "u2", "u2"),
    ("e_shentsize", "u2", "u2"),
    ("e_shnum", "u2", "u2"),
    ("e_shstrndx", "u2", "u2"),
)
PHDR32: Table = tuple(
    (name, "u4", "")
    for name in ("p_type", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_flags", "p_align")
)
PHDR64: Table = (
    ("p_type", "", "u4"),
    ("p_flags", "", "u4"),
    *((name, "", "u8") for name in ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_align")),
)
SHDR: Table = (
    ("sh_name", "u4", "u4"),
    ("sh_type", "u4", "u4"),
    ("sh_flags", "u4", "u8"),
    ("sh_addr", "u4", "u8"),
    ("sh_offset", "u4", "u8"),
    ("sh_size", "u4", "u8"),
    ("sh_link", "u4", "u4"),
    ("sh_info", "u4", "u4"),
    ("sh_addralign", "u4", "u8"),
    ("sh_entsize", "u4", "u8"),
)
SYM32: Table = (
    ("st_name", "u4", ""),
    ("st_value", "u4", ""),
    ("st_size", "u4", ""),
    ("st_info", "u1", ""),
    ("st_other", "u1", ""),
    ("st_shndx", "u2", ""),
)
SYM64: Table = (
    ("st_name", "", "u4"),
    ("st_info", "", "u1"),
    ("st_other", "", "u1"),
    ("st_shndx", "", "u2"),
    ("st_value", "", "u8"),
    ("st_size", "", "u8"),
)
NHDR: Table = (("n_namesz", "u4", "u4"), ("n_descsz", "u4", "u4"), ("n_type", "u4", "u4"))
AUXV: Table = (("a_type", "u4", "u8"), ("a_val", "u4", "u8"))


@dataclass(frozen=True)
class ElfKind:
    """Word size (``bits`` 32 or 64) and byte order (``order`` ``<`` or ``>``) of one ELF file."""

    bits: int
    order: str

    @property
    def ehdr(self) -> np.dtype[np.void]:
        """``Elf32_Ehdr`` or ``Elf64_Ehdr``."""
        return bind(EHDR, self)

    @property
    def phdr(self) -> np.dtype[np.void]:
        """``Elf32_Phdr`` or ``Elf64_Phdr``."""
        return bind(PHDR64 if self.bits == 64 else PHDR32, self)

    @property
    def shdr(self) -> np.dtype[np.void]:
        """``Elf32_Shdr`` or ``Elf64_Shdr``."""
        return bind(SHDR, self)

    @property
    def sym(self) -> np.dtype[np.void]:
        """``Elf32_Sym`` or ``Elf64_Sym``."""
        return bind(SYM64 if self.bits == 64 else SYM32, self)

    @property
    def nhdr(self) -> np.dtype[np.void]:
        """``Elf32_Nhdr`` (the same for both classes)."""
        return bind(NHDR, self)

    @property
    def auxv(self) -> np.dtype[np.void]:
        """``Elf32_auxv_t`` or ``Elf64_auxv_t``."""
        return bind(AUXV, self)

    @property
    def ei_class(self) -> int:
        """The byte at ``EI_CLASS``."""
        return ELFCLASS64 if self.bits == 64 else ELFCLASS32

    @property
    def ei_data(self) -> int:
        """The byte at ``EI_DATA``."""
        return ELFDATA2LSB if self.order == "<" else ELFDATA2MSB


@lru_cache(maxsize=32)
def bind(table: Table, kind: ElfKind) -> np.dtype[np.void]:
    """``table`` as a packed numpy dtype for this class and byte order."""
    column = 2 if kind.bits == 64 else 1
    fields = []
    for row in table:
        letters = row[column]
        fields.append((row[0], letters if letters.startswith("S") else kind.order + letters))
    return np.dtype(fields)
