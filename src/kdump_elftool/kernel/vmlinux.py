"""A vmlinux file: build id, entry point, a few symbols by name.

The symbol table is read as one array and a name is looked for where its entries point to, so a
588 MB debug vmlinux costs a few megabytes of reading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import Index
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import read_notes
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import FormatError
from kdump_elftool.files import ByteSource

_MAX_TABLE = 1 << 29
_LONGEST_NAME = 256
_BANNER = re.compile(rb"Linux version (\S{1,200}) ")
_BANNER_SIZE = 1024
WANTED = ("_stext", "_text", "_end", "linux_banner")


@dataclass(frozen=True)
class SymbolTable:
    """The defined symbols of a file: tables with the strings that hold their names."""

    parts: tuple[tuple[npt.NDArray[np.void], bytes], ...]

    def find(self, name: str) -> int | None:
        """The value of the first symbol of that name."""
        for table, strings in self.parts:
            rows = _named(table, strings, name.encode() + b"\0")
            if len(rows):
                return int(table["st_value"][rows[0]])
        return None


@dataclass(frozen=True)
class Vmlinux:
    """What the conversion needs of a vmlinux; ``symbols`` and ``table`` are link-time addresses,
    ``banner`` is the text of linux_banner.  ``file`` stays open as long as types may be read from it.
    ``is_made``: by mkvmlinux, with the build id of the kernel's own.
    """

    file: ByteSource
    e_machine: int
    kind: ElfKind
    e_entry: int
    build_id: bytes | None
    release: str | None
    symbols: dict[str, int]
    table: SymbolTable
    has_types: bool
    banner: bytes | None = None
    e_flags: int = 0
    is_made: bool = False

    @property
    def path(self) -> str:
        """The file's name, printable."""
        return self.file.path


def read_vmlinux(file: ByteSource) -> Vmlinux:
    """Read a vmlinux.  Raises FormatError when it is none."""
    elf = ElfFile.read(file)
    header = elf.header
    if header.e_type not in (c.ET_EXEC, c.ET_DYN):
        kind = c.ET_NAMES.get(header.e_type, f"ELF file of type {header.e_type}")
        raise FormatError(
            file.path,
            f"this is an ELF {kind}, not a vmlinux",
            hint="-m wants the vmlinux; a dump is named without it",
        )
    table = read_symbols(elf)
    found = {name: table.find(name) for name in WANTED}
    symbols = {name: value for name, value in found.items() if value is not None}
    banner = _banner(elf, symbols.get("linux_banner"))
    sections = section_headers(elf)
    made = _banner_of_a_made_file(elf, sections)
    said = _BANNER.match(banner or made)
    return Vmlinux(
        file=file,
        e_machine=header.e_machine,
        kind=header.kind,
        e_entry=header.e_entry,
        build_id=build_id_of(elf),
        release=said[1].decode("latin-1") if said else None,
        symbols=symbols,
        table=table,
        has_types=not sections.keys().isdisjoint((b".BTF", b".debug_info")),
        banner=banner if banner and said else None,
        e_flags=header.e_flags,
        is_made=bool(made),
    )


def _banner_of_a_made_file(elf: ElfFile, sections: dict[bytes, np.void]) -> bytes:
    """What mkvmlinux puts beside the memory, behind a NUL; empty in other files."""
    section = sections.get(b".linux_banner")
    if section is None:
        return b""
    size = min(int(section["sh_size"]), _BANNER_SIZE)
    return elf.file.read_at(int(section["sh_offset"]), size).lstrip(b"\0")


def read_symbols(elf: ElfFile) -> SymbolTable:
    """The symbol tables of an ELF file.  Raises FormatError when one is absurdly large."""
    sections = elf.sections()
    parts = []
    for section in sections[sections["sh_type"] == c.SHT_SYMTAB]:
        link = int(section["sh_link"])
        if link >= len(sections):
            continue
        strings = _section_data(elf.file, sections[link])
        data = _section_data(elf.file, section)
        dtype = elf.header.kind.sym
        table = np.frombuffer(data[: len(data) - len(data) % dtype.itemsize], dtype=dtype)
        parts.append((table[table["st_shndx"] != c.SHN_UNDEF], strings))
    return SymbolTable(tuple(parts))


def _named(table: npt.NDArray[np.void], strings: bytes, name: bytes) -> Index:
    """The entries whose string is ``name``, its NUL included; it may be the tail of another's."""
    letters, offsets = np.frombuffer(strings, dtype=np.uint8), table["st_name"]
    rows = np.flatnonzero(offsets < max(len(strings) - len(name) + 1, 0))
    at = offsets[rows].astype(np.intp)
    # from its end: few other names have theirs there
    for place in range(len(name) - 1, -1, -1):
        same = letters[at + place] == name[place]
        rows, at = rows[same], at[same]
    return rows


def section_headers(elf: ElfFile) -> dict[bytes, np.void]:
    """The headers of the sections that have a name and contents, the first of each name."""
    sections = elf.sections()
    index = elf.header.shstrndx
    if index >= len(sections):
        return {}
    strings = _section_data(elf.file, sections[index])
    found: dict[bytes, np.void] = {}
    for section in sections[(sections["sh_type"] != c.SHT_NOBITS) & (sections["sh_size"] != 0)]:
        start = int(section["sh_name"])
        name = strings[start : start + _LONGEST_NAME].split(b"\0", 1)[0]
        found.setdefault(name, section)
    return found


def _section_data(file: ByteSource, section: np.void) -> bytes:
    size = int(section["sh_size"])
    if size > _MAX_TABLE:
        raise FormatError(file.path, f"a symbol or string table of {size:#x} bytes")
    return file.read_at(int(section["sh_offset"]), size)


def build_id_of(elf: ElfFile) -> bytes | None:
    """Its GNU build id, of sections or segments of notes."""
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


def _banner(elf: ElfFile, banner: int | None) -> bytes | None:
    """What linux_banner says, with the NUL behind it."""
    if banner is None:
        return None
    sections = elf.sections()
    for section in sections[sections["sh_type"] != c.SHT_NOBITS]:
        start, size = int(section["sh_addr"]), int(section["sh_size"])
        if start and start <= banner < start + size:
            text = elf.file.read_at(int(section["sh_offset"]) + banner - start, _BANNER_SIZE)
            said, end, _ = text.partition(b"\0")
            return said + end if end else None
    return None
