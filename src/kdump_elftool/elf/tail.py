"""A core made in place: new program headers and notes behind the data of an existing ELF file.

Pure: what stands in the tail, and which 64 bytes (52 in a 32-bit file) replace the old ELF header
once the tail is on the disk.  From the page border behind the old end there come the notes, the
undo note first, so that it is found without any header; then the program headers; then, only for
``PN_XNUM``, the section headers with a new section 0.  The old bytes stay as they are except for
the ELF header, whose copy is in the undo note.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import U64, Index, align_up
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.layout import (
    MAX_COUNTED,
    PAGE,
    CoreLayout,
    Storage,
    check_class,
    program_headers,
)
from kdump_elftool.elf.notes import Note, chunk_size, encode_notes, read_notes
from kdump_elftool.elf.own_notes import OWNER, TYPE_UNDO, UNDO_NOTE_SIZE, Undo, parse_undo, undo_note
from kdump_elftool.elf.reader import TRUNCATED, ElfFile, ElfHeader
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import CorruptDumpError, OutputError
from kdump_elftool.files import FileSlice, InputFile

_SCANNED = 16 << 20
"""How far behind an old file's end the remains of an interrupted run are looked for."""


@dataclass(frozen=True)
class Original:
    """The file before the change: ELF header (raw and parsed), section headers, length."""

    header: ElfHeader
    ehdr: bytes
    sections: bytes
    length: int


@dataclass(frozen=True)
class Placed:
    """Mapped memory and where the file holds it already: uint64 columns, pieces disjoint in vaddr."""

    vaddr: U64
    paddr: U64
    size: U64
    file_offset: U64
    rank: Index


@dataclass(frozen=True)
class Tail:
    """What is put behind a file: notes (chunks) from ``notes_offset`` on, then the tables of ``headers``."""

    notes: tuple[bytes | FileSlice, ...]
    notes_offset: int
    headers: Headers
    file_size: int


@dataclass(frozen=True)
class Headers:
    """The new ELF header, and the tables that follow the notes at ``offset``."""

    ehdr: bytes
    offset: int
    tables: bytes


def read_original(file: InputFile) -> Original:
    """What has to be known of a file before a tail is put behind it.  Raises OutputError.

    A file that is shorter than it says is refused: the tail would come to lie where its headers,
    which stay valid until the last moment, place memory.
    """
    elf = ElfFile.read(file)
    kind = elf.header.kind
    if claimed_end(elf) > file.size:
        raise OutputError(
            f"{file.path} ends at {file.size:#x} but says that it has {claimed_end(elf):#x} bytes: "
            "nothing can be put behind it",
            hint=f"{TRUNCATED}; or make a copy with -o, which works with what is there",
        )
    sections, ehdr = elf.sections(), file.read_at(0, kind.ehdr.itemsize)
    e_shentsize = int(np.frombuffer(ehdr, dtype=kind.ehdr)["e_shentsize"][0])
    usable = len(sections) == elf.header.shnum and e_shentsize == kind.shdr.itemsize
    return Original(
        header=elf.header,
        ehdr=ehdr,
        sections=sections.tobytes() if usable else b"",
        length=file.size,
    )


def claimed_end(elf: ElfFile) -> int:
    """How long the file must be to hold what its headers name (section contents not counted)."""
    header, segments = elf.header, elf.segments
    ends = [header.kind.ehdr.itemsize, header.e_phoff + header.phnum * header.kind.phdr.itemsize]
    if header.e_shoff:
        ends.append(header.e_shoff + header.shnum * header.kind.shdr.itemsize)
    used = segments.p_filesz > 0
    reach = segments.p_offset[used] + segments.p_filesz[used]
    if np.any(reach < segments.p_offset[used]):
        return 1 << 64
    return max([*ends, int(reach.max(initial=0))])


def tail_layout(original: Original, e_flags: int, placed: Placed, notes: tuple[Note, ...]) -> CoreLayout:
    """Lay out the tail; nothing but headers and notes is to be written.  Raises OutputError."""
    kind = original.header.kind
    encoded = _notes(original, notes, new_length=0)
    start = align_up(original.length, PAGE)
    order = np.lexsort((placed.vaddr, placed.rank))
    nothing = placed.vaddr[:0]
    layout = CoreLayout(
        kind=kind,
        e_machine=original.header.e_machine,
        e_flags=e_flags,
        p_vaddr=placed.vaddr[order],
        p_paddr=placed.paddr[order],
        p_offset=placed.file_offset[order],
        p_filesz=placed.size[order],
        notes=encoded,
        notes_offset=start,
        storage=Storage(nothing, nothing, nothing),
        file_size=0,
        copied_bytes=0,
        p_align=PAGE,
    )
    size = _tables_offset(layout) + _tables_size(layout, original)
    layout = replace(layout, notes=_notes(original, notes, new_length=size), file_size=size)
    if kind.bits == 32 and size >> 32:
        raise OutputError(
            "with headers added this 32-bit ELF file would be longer than the 4 GB it can address",
            hint="convert it into another file with -o",
        )
    check_class(layout)
    return layout


def tail_headers(original: Original, layout: CoreLayout) -> Headers:
    """The header to switch to and the tables it points to."""
    kind, phnum = layout.kind, layout.nr_segments + 1
    offset = _tables_offset(layout)
    programs = program_headers(layout).tobytes()
    ehdr = np.frombuffer(original.ehdr, dtype=kind.ehdr).copy()
    ident = bytearray(original.ehdr[: c.EI_NIDENT])
    ident[c.EI_OSABI] = c.ELFOSABI_GNU
    ehdr["e_ident"] = bytes(ident)
    ehdr["e_phoff"] = offset
    ehdr["e_ehsize"] = kind.ehdr.itemsize  # QEMU writes 8
    ehdr["e_phentsize"] = kind.phdr.itemsize
    ehdr["e_phnum"] = phnum if phnum <= MAX_COUNTED else c.PN_XNUM
    sections = b""
    if phnum > MAX_COUNTED:
        sections = _sections(original, phnum)
        ehdr["e_shoff"] = offset + len(programs)
        ehdr["e_shentsize"] = kind.shdr.itemsize
        if not original.sections:
            ehdr["e_shnum"], ehdr["e_shstrndx"] = 1, c.SHN_UNDEF
    return Headers(ehdr.tobytes(), offset, programs + sections)


def tail_of(original: Original, layout: CoreLayout) -> Tail:
    """The tail of :func:`tail_layout`, ready to be written."""
    return Tail(layout.notes, layout.notes_offset, tail_headers(original, layout), layout.file_size)


def notes_tail(original: Original, elf: ElfFile, notes: tuple[Note, ...]) -> Tail:
    """A tail that exchanges the notes alone: all other program headers stay what they are.

    The first PT_NOTE leads to the new notes; further ones come to hold nothing.
    """
    kind, header = original.header.kind, original.header
    table = np.frombuffer(
        elf.file.read_at(header.e_phoff, header.phnum * kind.phdr.itemsize), dtype=kind.phdr
    ).copy()
    rows = np.flatnonzero(table["p_type"] == c.PT_NOTE)
    if not len(rows):
        raise OutputError(
            f"{elf.file.path} has no program header for notes", hint="convert it with tovelf -m"
        )
    start = align_up(original.length, PAGE)
    size = sum(map(chunk_size, _notes(original, notes, new_length=0)))
    table["p_filesz"][rows] = 0
    table["p_offset"][rows[0]], table["p_filesz"][rows[0]] = start, size
    offset = align_up(start + size, 8)
    file_size = offset + table.nbytes
    if kind.bits == 32 and file_size >> 32:
        raise OutputError("this 32-bit ELF file would become longer than the 4 GB it can address")
    ehdr = np.frombuffer(original.ehdr, dtype=kind.ehdr).copy()
    ehdr["e_phoff"] = offset
    encoded = _notes(original, notes, new_length=file_size)
    return Tail(encoded, start, Headers(ehdr.tobytes(), offset, table.tobytes()), file_size)


def find_undo(file: InputFile) -> Undo | None:
    """The undo note of a file that was changed in place; None for any other ELF file.

    Raises CorruptDumpError for a note that cannot be true.
    """
    elf = ElfFile.read(file)
    noted = elf.segments.of_type(c.PT_NOTE)
    if not len(noted):
        return None
    offset = int(noted.p_offset[0])
    note = _first_note(file, elf.header.kind, offset)
    if note is None:
        return None
    undo = _valid_undo(file, elf.header.kind, note, offset)
    if undo is None:
        raise CorruptDumpError(
            file.path, "the note that tells how to undo the change is damaged", file_offset=offset
        )
    return undo


def find_remains(file: InputFile) -> Undo | None:
    """The undo note of a run that was interrupted while the old header was still, or again, in force."""
    elf = ElfFile.read(file)
    kind = elf.header.kind
    ehdr = file.read_at(0, kind.ehdr.itemsize)
    start = align_up(claimed_end(elf), PAGE)
    for offset in range(start, min(file.size, start + _SCANNED), PAGE):
        note = _first_note(file, kind, offset)
        undo = _valid_undo(file, kind, note, offset) if note else None
        if undo is not None and undo.ehdr == ehdr and file.size <= undo.new_length:
            return undo
    return None


def _notes(original: Original, notes: tuple[Note, ...], *, new_length: int) -> tuple[bytes | FileSlice, ...]:
    undo = Undo(original.ehdr, original.length, new_length)
    kind = original.header.kind
    return tuple(encode_notes((undo_note(kind, undo), *notes), kind))


def _tables_offset(layout: CoreLayout) -> int:
    return align_up(layout.notes_offset + sum(map(chunk_size, layout.notes)), 8)


def _tables_size(layout: CoreLayout, original: Original) -> int:
    kind, phnum = layout.kind, layout.nr_segments + 1
    sections = len(original.sections) or kind.shdr.itemsize
    return phnum * kind.phdr.itemsize + (sections if phnum > MAX_COUNTED else 0)


def _sections(original: Original, phnum: int) -> bytes:
    """The old section headers, or none but section 0, with the count of program headers."""
    kind = original.header.kind
    table = np.zeros(1, dtype=kind.shdr)
    if original.sections:
        table = np.frombuffer(original.sections, dtype=kind.shdr).copy()
    table["sh_info"][0] = phnum
    return table.tobytes()


def _first_note(file: InputFile, kind: ElfKind, offset: int) -> Note | None:
    """The note at ``offset`` if it is, by name and type, an undo note that fits."""
    for note in read_notes(file, kind, offset, UNDO_NOTE_SIZE).notes[:1]:
        if (note.name, note.type) == (OWNER, TYPE_UNDO):
            return note
    return None


def _valid_undo(file: InputFile, kind: ElfKind, note: Note, offset: int) -> Undo | None:
    """The note's content if it fits this file: where the note lies follows from the old length."""
    undo = parse_undo(kind, note)
    if undo is None or undo.ehdr[: c.EI_DATA + 1] != file.read_at(0, c.EI_DATA + 1):
        return None
    fits = kind.ehdr.itemsize <= undo.old_length <= offset == align_up(undo.old_length, PAGE)
    return undo if fits else None
