"""ELF files: header, program headers and sections as columns, notes.

Everything a file says about itself is a claim: counts and sizes are checked against the file
before anything is allocated.  ``PN_XNUM`` (psABI): with ``e_phnum`` 0xffff the real count is
``sh_info`` of section 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import MAX_NOTES, MOST_HELD, Note, read_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import CorruptDumpError, FormatError
from kdump_elftool.files import ByteSource

MAX_HEADERS = 1 << 21  # 117 MB of Elf64_Phdr; a 512 GB machine was seen with half a million
_MAX_SECTIONS = 1 << 20
_MOST_NOTE_SEGMENTS = 1 << 14
"""kexec gives the crash kernel one for each CPU."""


@dataclass(frozen=True)
class ElfHeader:
    """The file header, ``phnum`` and ``shnum`` already resolved through section 0."""

    kind: ElfKind
    e_type: int
    e_machine: int
    e_entry: int
    e_flags: int
    e_phoff: int
    phnum: int
    e_shoff: int
    shnum: int
    shstrndx: int


@dataclass(frozen=True)
class Segments:
    """Program headers as uint64 columns of equal length, in file order."""

    p_type: U64
    p_flags: U64
    p_offset: U64
    p_vaddr: U64
    p_paddr: U64
    p_filesz: U64
    p_memsz: U64

    def __len__(self) -> int:
        return len(self.p_type)

    def of_type(self, p_type: int) -> Segments:
        """Only the segments of one type."""
        keep = self.p_type == np.uint64(p_type)
        return Segments(*(getattr(self, name)[keep] for name in _SEGMENT_FIELDS))


_SEGMENT_FIELDS = ("p_type", "p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")


@dataclass(frozen=True)
class ElfFile:
    """An open ELF file.  ``missing_headers`` program headers lie beyond the end of the file."""

    file: ByteSource
    header: ElfHeader
    segments: Segments
    missing_headers: int

    @classmethod
    def read(cls, file: ByteSource) -> ElfFile:
        """Read header and program headers.  Raises FormatError, CorruptDumpError."""
        header = read_header(file)
        segments, missing = _read_segments(file, header)
        return cls(file, header, segments, missing)

    def notes(self) -> tuple[tuple[Note, ...], tuple[int, ...]]:
        """All notes of all PT_NOTE segments, and the file offsets where reading had to stop.

        Several headers may lead to the same bytes: what is read and held for all of them is bounded.
        """
        notes: list[Note] = []
        bad: list[int] = []
        ranges, held = self.segments.of_type(c.PT_NOTE), 0
        columns = (
            column[: _MOST_NOTE_SEGMENTS + 1].tolist() for column in (ranges.p_offset, ranges.p_filesz)
        )
        for number, (offset, size) in enumerate(dict.fromkeys(zip(*columns, strict=True))):
            if number == _MOST_NOTE_SEGMENTS or len(notes) >= MAX_NOTES or held > MOST_HELD:
                bad.append(offset)
                break
            found = read_notes(self.file, self.header.kind, offset, size, most=MAX_NOTES - len(notes))
            notes += found.notes
            held += sum(len(note.desc) for note in found.notes if isinstance(note.desc, bytes))
            if found.bad_offset is not None:
                bad.append(found.bad_offset)
        return tuple(notes), tuple(bad)

    def sections(self) -> npt.NDArray[np.void]:
        """Section headers that lie in the file, as a structured array (``kind.shdr``)."""
        header = self.header
        dtype = header.kind.shdr
        if not header.e_shoff or header.shnum > _MAX_SECTIONS:
            return np.zeros(0, dtype=dtype)
        raw = self.file.read_at(header.e_shoff, header.shnum * dtype.itemsize)
        return np.frombuffer(raw[: len(raw) - len(raw) % dtype.itemsize], dtype=dtype)


def read_header(file: ByteSource) -> ElfHeader:
    """The ELF header.  Raises FormatError when this is no ELF file."""
    ident = file.read_at(0, c.EI_NIDENT)
    if ident[:4] != c.ELFMAG:
        raise FormatError(
            file.path,
            "this is not an ELF file",
            file_offset=0,
            hint="a core or a vmlinux is one; a bootable vmlinuz or bzImage is not: the vmlinux is in the "
            "distribution's debug package",
        )
    kind = _kind(file, ident)
    raw = file.read_at(0, kind.ehdr.itemsize)
    if len(raw) < kind.ehdr.itemsize:
        raise CorruptDumpError(
            file.path, "the file ends inside the ELF header", file_offset=len(raw), hint=TRUNCATED
        )
    ehdr = np.frombuffer(raw, dtype=kind.ehdr)[0]
    value = {name: int(ehdr[name]) for name in kind.ehdr.names or () if name != "e_ident"}
    phnum, shnum, shstrndx = _counts(file, kind, value)
    if phnum and value["e_phentsize"] != kind.phdr.itemsize:
        raise CorruptDumpError(
            file.path, f"program headers of {value['e_phentsize']} bytes (must be {kind.phdr.itemsize})"
        )
    return ElfHeader(
        kind=kind,
        e_type=value["e_type"],
        e_machine=value["e_machine"],
        e_entry=value["e_entry"],
        e_flags=value["e_flags"],
        e_phoff=value["e_phoff"],
        phnum=phnum,
        e_shoff=value["e_shoff"],
        shnum=shnum,
        shstrndx=shstrndx,
    )


TRUNCATED = "the file was cut short: copy it again, or check that the disk was not full"


def _counts(file: ByteSource, kind: ElfKind, value: dict[str, int]) -> tuple[int, int, int]:
    """phnum, shnum, shstrndx, from section header 0 where they are too large for the ELF header."""
    phnum, shnum, shstrndx = value["e_phnum"], value["e_shnum"], value["e_shstrndx"]
    section0 = _section0(file, kind, value["e_shoff"])
    if section0 is not None:
        phnum = int(section0["sh_info"]) if phnum == c.PN_XNUM else phnum
        shnum = shnum or int(section0["sh_size"])
        shstrndx = int(section0["sh_link"]) if shstrndx == c.PN_XNUM else shstrndx
    elif phnum == c.PN_XNUM:
        raise CorruptDumpError(
            file.path,
            "more than 65534 program headers, but the section header with their number is missing",
            file_offset=value["e_shoff"],
            hint=TRUNCATED,
        )
    return phnum, shnum, shstrndx


def _kind(file: ByteSource, ident: bytes) -> ElfKind:
    bits = {c.ELFCLASS32: 32, c.ELFCLASS64: 64}.get(ident[c.EI_CLASS] if len(ident) > c.EI_CLASS else 0)
    order = {c.ELFDATA2LSB: "<", c.ELFDATA2MSB: ">"}.get(ident[c.EI_DATA] if len(ident) > c.EI_DATA else 0)
    if bits is None or order is None:
        raise CorruptDumpError(
            file.path, "neither class nor byte order of this ELF file can be told", file_offset=c.EI_CLASS
        )
    return ElfKind(bits, order)


def _section0(file: ByteSource, kind: ElfKind, e_shoff: int) -> np.void | None:
    if not e_shoff:
        return None
    raw = file.read_at(e_shoff, kind.shdr.itemsize)
    if len(raw) < kind.shdr.itemsize:
        return None
    entry: np.void = np.frombuffer(raw, dtype=kind.shdr)[0]
    return entry


def _read_segments(file: ByteSource, header: ElfHeader) -> tuple[Segments, int]:
    dtype = header.kind.phdr
    room = max(file.size - header.e_phoff, 0) // dtype.itemsize
    count = min(header.phnum, room, MAX_HEADERS)
    raw = file.read_at(header.e_phoff, count * dtype.itemsize)
    table = np.frombuffer(raw[: len(raw) - len(raw) % dtype.itemsize], dtype=dtype)
    columns = (table[name].astype(np.uint64) for name in _SEGMENT_FIELDS)
    return Segments(*columns), header.phnum - len(table)
