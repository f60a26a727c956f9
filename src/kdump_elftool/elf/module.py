"""The file of a kernel module: sections that are loaded, build id, the release it was built for.

References: System V gABI chapter 4; kernel/module/main.c (layout_sections()); include/linux/vermagic.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import read_notes
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import FormatError
from kdump_elftool.files import ByteSource

_MOST_SECTIONS = 1 << 16
_LARGEST_TABLE = 16 << 20
_LARGEST_ALIGN = 1 << 16
_LONGEST_NAME = 256
_VERMAGIC = re.compile(rb"(?:^|\0)vermagic=(\S{1,200}) ")


@dataclass(frozen=True)
class ModuleSection:
    """A section that takes memory when the module is loaded."""

    name: str
    size: int
    align: int


@dataclass(frozen=True)
class ModuleElf:
    """What is needed of a module's file; ``sections`` in the order of the file.

    ``has_addresses`` when sections were given some (``sh_addr``), as linkers do where the kernel's script
    (scripts/module.lds.S) does not say 0.  They mean nothing, but gdb (default_symfile_offsets()) then
    takes all code of the debug information to be in .text: see :func:`without_addresses`.
    """

    kind: ElfKind
    e_machine: int
    sections: tuple[ModuleSection, ...]
    build_id: bytes | None
    release: str | None
    has_symbols: bool
    has_types: bool
    has_addresses: bool


def read_module(file: ByteSource) -> ModuleElf:
    """Read a module or the debug file of one.  Raises FormatError when it is none."""
    elf = ElfFile.read(file)
    header = elf.header
    if header.e_type != c.ET_REL:
        kind = c.ET_NAMES.get(header.e_type, f"ELF file of type {header.e_type}")
        raise FormatError(file.path, f"this is an ELF {kind}, not a module")
    table = elf.sections()[:_MOST_SECTIONS]
    if header.shstrndx >= len(table):
        raise FormatError(file.path, "its sections have no names")
    where = table[header.shstrndx]
    strings = file.read_at(int(where["sh_offset"]), min(int(where["sh_size"]), _LARGEST_TABLE))
    rows = [(_name(strings, row), row) for row in table]
    sections = []
    for name, row in rows:
        if int(row["sh_flags"]) & c.SHF_ALLOC and int(row["sh_size"]):
            align = min(max(int(row["sh_addralign"]), 1), _LARGEST_ALIGN)
            sections.append(ModuleSection(name, int(row["sh_size"]), align))
    there = {name for name, row in rows if int(row["sh_type"]) != c.SHT_NOBITS and int(row["sh_size"])}
    return ModuleElf(
        header.kind,
        header.e_machine,
        tuple(sections),
        _build_id(elf, [row for _, row in rows if int(row["sh_type"]) == c.SHT_NOTE]),
        _release(file, [row for name, row in rows if name == ".modinfo" and name in there]),
        has_symbols=any(int(row["sh_type"]) == c.SHT_SYMTAB for _, row in rows),
        has_types=not there.isdisjoint((".debug_info", ".zdebug_info")),
        has_addresses=bool((table["sh_addr"] != 0).any()),
    )


def without_addresses(file: ByteSource) -> bytes:
    """The contents of a module's file with all ``sh_addr`` 0."""
    elf = ElfFile.read(file)
    data = bytearray(file.read_at(0, file.size))
    table = elf.sections().copy()
    table["sh_addr"] = 0
    start = elf.header.e_shoff
    data[start : start + table.nbytes] = table.tobytes()
    return bytes(data)


def _name(strings: bytes, row: np.void) -> str:
    start = int(row["sh_name"])
    return strings[start : start + _LONGEST_NAME].split(b"\0", 1)[0].decode("latin-1")


def _build_id(elf: ElfFile, rows: list[np.void]) -> bytes | None:
    for row in rows:
        found = read_notes(elf.file, elf.header.kind, int(row["sh_offset"]), int(row["sh_size"]))
        for note in found.notes:
            if note.name == b"GNU" and note.type == c.NT_GNU_BUILD_ID and isinstance(note.desc, bytes):
                return note.desc
    return None


def _release(file: ByteSource, rows: list[np.void]) -> str | None:
    """The kernel's release by the module's vermagic."""
    for row in rows:
        said = _VERMAGIC.search(file.read_at(int(row["sh_offset"]), min(int(row["sh_size"]), _LARGEST_TABLE)))
        if said:
            return said[1].decode("latin-1")
    return None
