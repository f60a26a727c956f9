"""A vmlinux file: build id, entry point, a few symbols by name.

The symbol table is read as one array and a name is found by searching the string table, so a
588 MB debug vmlinux costs a few megabytes of reading.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import read_notes
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import FormatError
from kdump_elftool.files import ByteSource

_MAX_TABLE = 1 << 29
_BANNER = re.compile(rb"Linux version (\S{1,200}) ")
_BANNER_SIZE = 1024
WANTED = ("_stext", "_text", "_end", "linux_banner")


@dataclass(frozen=True)
class Vmlinux:
    """What the conversion needs of a vmlinux; ``symbols`` are link-time addresses."""

    path: str
    e_machine: int
    e_entry: int
    build_id: bytes | None
    release: str | None
    symbols: dict[str, int]


def read_vmlinux(file: ByteSource) -> Vmlinux:
    """Read a vmlinux.  Raises FormatError when it is none."""
    elf = ElfFile.read(file)
    header = elf.header
    if header.e_type not in (c.ET_EXEC, c.ET_DYN):
        kind = c.ET_NAMES.get(header.e_type, f"ELF file of type {header.e_type}")
        raise FormatError(
            file.path, f"this is an ELF {kind}, not a vmlinux", hint="-m wants the kernel's ELF"
        )
    symbols = find_symbols(elf, WANTED)
    return Vmlinux(
        path=file.path,
        e_machine=header.e_machine,
        e_entry=header.e_entry,
        build_id=_build_id(elf),
        release=_release(elf, symbols.get("linux_banner")),
        symbols=symbols,
    )


def find_symbols(elf: ElfFile, names: Sequence[str]) -> dict[str, int]:
    """Values of those ``names`` that .symtab defines."""
    sections = elf.sections()
    found: dict[str, int] = {}
    for section in sections[sections["sh_type"] == c.SHT_SYMTAB]:
        link = int(section["sh_link"])
        if link >= len(sections):
            continue
        strings = _section_data(elf.file, sections[link])
        data = _section_data(elf.file, section)
        dtype = elf.header.kind.sym
        table = np.frombuffer(data[: len(data) - len(data) % dtype.itemsize], dtype=dtype)
        table = table[table["st_shndx"] != c.SHN_UNDEF]
        for name in names:
            for offset in _occurrences(strings, name.encode()):
                hits = np.flatnonzero(table["st_name"] == offset)
                if len(hits):
                    found[name] = int(table["st_value"][hits[0]])
                    break
    return found


def _occurrences(strings: bytes, name: bytes) -> list[int]:
    """Offsets at which ``name`` ends a string: linkers share the tails of names."""
    offsets = []
    at = strings.find(name + b"\0")
    while at >= 0:
        offsets.append(at)
        at = strings.find(name + b"\0", at + 1)
    return offsets


def _section_data(file: ByteSource, section: np.void) -> bytes:
    size = int(section["sh_size"])
    if size > _MAX_TABLE:
        raise FormatError(file.path, f"a symbol or string table of {size:#x} bytes")
    return file.read_at(int(section["sh_offset"]), size)


def _build_id(elf: ElfFile) -> bytes | None:
    sections = elf.sections()
    places = [
        (int(section["sh_offset"]), int(section["sh_size"]))
        for section in sections[sections["sh_type"] == c.SHT_NOTE]
    ]
    notes = elf.segments.of_type(c.PT_NOTE)
    places += zip(notes.p_offset.tolist(), notes.p_filesz.tolist(), strict=True)
    for offset, size in places:
        for note in read_notes(elf.file, elf.header.kind, offset, size).notes:
            if note.name == b"GNU" and note.type == c.NT_GNU_BUILD_ID and isinstance(note.desc, bytes):
                return note.desc
    return None


def _release(elf: ElfFile, banner: int | None) -> str | None:
    if banner is None:
        return None
    for section in elf.sections():
        start, size = int(section["sh_addr"]), int(section["sh_size"])
        if start and start <= banner < start + size:
            text = elf.file.read_at(int(section["sh_offset"]) + banner - start, _BANNER_SIZE)
            match = _BANNER.match(text)
            return match[1].decode("latin-1") if match else None
    return None
