"""A small ELF file for debuggers: sections at run-time addresses and a symbol table, out of columns.

gdb takes such a file by ``add-symbol-file FILE`` as it is: nothing in it is relocated.  Sections
whose memory is in the core are NOBITS, so that no reader can fill absent memory from the file.
Reference: System V gABI chapter 4, "Sections", "String Table", "Symbol Table".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Index, align_up, u64
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import OutputError

U8 = npt.NDArray[np.uint8]

ABSOLUTE = -1
"""In ``SymbolColumns.section``: a symbol of no section."""
_WORD = 8
_NO_NAME = ord("?")
_AT_ONCE = 4 << 20
"""Letters, times 8 bytes in several columns."""


@dataclass(frozen=True)
class Section:
    """One section; without ``data`` it is NOBITS of ``size`` bytes, with it ``size`` is not looked at.

    ``flags`` are SHF_ALLOC, SHF_WRITE, SHF_EXECINSTR, or SHF_MERGE | SHF_STRINGS for strings of bytes;
    ``addr`` is a run-time address.
    """

    name: str
    flags: int = 0
    addr: int = 0
    size: int = 0
    data: bytes | None = None
    sh_type: int = c.SHT_PROGBITS
    align: int = 1

    @property
    def length(self) -> int:
        """Bytes in memory."""
        return self.size if self.data is None else len(self.data)


@dataclass(frozen=True)
class SymbolColumns:
    """Symbols as columns of equal length, in any order.

    ``address`` and ``size`` uint64; ``kind`` uint8 (STT_*) and ``binding`` uint8 (STB_*); ``section``
    intp: which of the file's sections, counted from 0, or ABSOLUTE.  The name of row i lies from
    ``begin[i]`` to ``end[i]`` (intp) in ``text``; bytes of it that are no printable ASCII are written
    as question marks, since debuggers print names as they are.
    """

    address: U64
    size: U64
    kind: U8
    binding: U8
    section: Index
    text: bytes
    begin: Index
    end: Index

    def __len__(self) -> int:
        return len(self.address)

    @classmethod
    def of(cls, rows: Sequence[tuple[str | bytes, int, int, int, int, int]]) -> SymbolColumns:
        """From a few rows: name, address, size, kind, binding, section."""
        names = [row[0].encode("latin-1", "replace") if isinstance(row[0], str) else row[0] for row in rows]
        end = np.cumsum([len(name) for name in names], dtype=np.intp)
        begin = end - np.array([len(name) for name in names], dtype=np.intp)
        columns = [[row[at] for row in rows] for at in range(1, 6)]
        return cls(
            u64(columns[0]),
            u64(columns[1]),
            np.array(columns[2], dtype=np.uint8),
            np.array(columns[3], dtype=np.uint8),
            np.array(columns[4], dtype=np.intp),
            b"".join(names),
            begin,
            end,
        )


NO_SYMBOLS = SymbolColumns.of([])


def symbol_file(
    kind: ElfKind,
    e_machine: int,
    sections: Sequence[Section],
    symbols: SymbolColumns = NO_SYMBOLS,
    *,
    e_type: int = c.ET_EXEC,
    e_flags: int = 0,
    osabi: int = 0,
    loads: Sequence[tuple[int, int]] = (),
) -> bytes:
    """The whole file.  Raises OutputError for more sections than it can have, ValueError for bad columns.

    Of numbers that are larger than a word the low bits are taken.  ``loads`` are address and size of
    segments, which have no content either; ``osabi`` is EI_OSABI.
    """
    if len(sections) + 4 >= c.SHN_LORESERVE:
        raise OutputError(f"{len(sections)} sections do not fit an ELF file")
    all_sections = list(sections)
    table, strings, locals_ = _symbol_table(kind, symbols, len(sections))
    if len(symbols):
        all_sections.append(Section(".symtab", data=table, sh_type=c.SHT_SYMTAB, align=_WORD))
        all_sections.append(Section(".strtab", data=strings, sh_type=c.SHT_STRTAB))
    text, names = _section_names(all_sections)
    all_sections.append(Section(".shstrtab", data=text, sh_type=c.SHT_STRTAB))
    headers, segments = np.zeros(len(all_sections) + 1, dtype=kind.shdr), _segments(kind, loads)
    offset = kind.ehdr.itemsize + len(segments)
    parts: list[bytes] = []
    for header, section, name in zip(headers[1:], all_sections, names, strict=True):
        data, start = section.data or b"", align_up(offset, section.align)
        parts += [bytes(start - offset), data]
        offset = start + len(data)
        _describe(kind, header, section, name, start)
        if section.sh_type == c.SHT_SYMTAB:
            # sh_info: one greater than the last local symbol, the null symbol included
            header["sh_link"], header["sh_info"] = len(sections) + 2, locals_ + 1
    shoff = align_up(offset, _WORD)
    ident = c.ELFMAG + bytes([kind.ei_class, kind.ei_data, c.EV_CURRENT, osabi])
    ehdr = _file_header(kind, ident, (e_type, e_machine, e_flags), shoff, len(headers), len(loads))
    return b"".join([ehdr, segments, *parts, bytes(shoff - offset), headers.tobytes()])


def _describe(kind: ElfKind, header: np.void, section: Section, name: int, start: int) -> None:
    """Fill the header of a section whose name and contents begin there."""
    mask = (1 << kind.bits) - 1
    header["sh_name"] = name
    header["sh_type"] = c.SHT_NOBITS if section.data is None else section.sh_type
    header["sh_flags"], header["sh_addr"] = section.flags, section.addr & mask
    header["sh_offset"], header["sh_size"] = start, section.length & mask
    header["sh_addralign"] = section.align
    if section.sh_type == c.SHT_SYMTAB:
        header["sh_entsize"] = kind.sym.itemsize
    elif section.flags & c.SHF_STRINGS:
        header["sh_entsize"] = 1


def _segments(kind: ElfKind, loads: Sequence[tuple[int, int]]) -> bytes:
    """Program headers: memory of the size given, none of it in the file."""
    headers = np.zeros(len(loads), dtype=kind.phdr)
    headers["p_type"], headers["p_flags"], headers["p_align"] = c.PT_LOAD, c.PF_RWX, 1
    headers["p_vaddr"] = u64([address for address, _ in loads])
    headers["p_memsz"] = u64([size for _, size in loads])
    return headers.tobytes()


def _file_header(
    kind: ElfKind, ident: bytes, file: tuple[int, int, int], shoff: int, shnum: int, phnum: int
) -> bytes:
    """``file``: its e_type, e_machine and e_flags."""
    header = np.zeros(1, dtype=kind.ehdr)
    header["e_ident"], header["e_version"] = ident, c.EV_CURRENT
    header["e_type"], header["e_machine"], header["e_flags"] = file
    header["e_shoff"] = shoff
    if phnum:
        header["e_phoff"], header["e_phentsize"], header["e_phnum"] = (
            kind.ehdr.itemsize,
            kind.phdr.itemsize,
            phnum,
        )
    header["e_ehsize"], header["e_shentsize"] = kind.ehdr.itemsize, kind.shdr.itemsize
    header["e_shnum"], header["e_shstrndx"] = shnum, shnum - 1
    return header.tobytes()


def _section_names(sections: Sequence[Section]) -> tuple[bytes, list[int]]:
    """.shstrtab, and where in it the name of each section is; the table's own is the last."""
    strings, places = bytearray(b"\0"), []
    for name in [*(section.name for section in sections), ".shstrtab"]:
        places.append(len(strings))
        strings += _printable(np.frombuffer(name.encode("latin-1", "replace"), np.uint8)).tobytes() + b"\0"
    return bytes(strings), places


def _symbol_table(kind: ElfKind, symbols: SymbolColumns, sections: int) -> tuple[bytes, bytes, int]:
    """.symtab, .strtab and the number of local symbols, which come first and keep their order."""
    order = np.argsort(symbols.binding != c.STB_LOCAL, kind="stable")
    if len(symbols) and not (symbols.section < sections).all():
        raise ValueError("a symbol's section is none of the file's")
    strings, places = _strings(symbols, order)
    table = np.zeros(len(symbols) + 1, dtype=kind.sym)
    rows = table[1:]
    rows["st_name"] = places
    rows["st_info"] = symbols.binding[order] << 4 | symbols.kind[order] & 0xF
    section = symbols.section[order]
    rows["st_shndx"] = np.where(section < 0, c.SHN_ABS, section + 1)
    rows["st_value"], rows["st_size"] = symbols.address[order], symbols.size[order]
    return table.tobytes(), strings, int((symbols.binding == c.STB_LOCAL).sum())


def _strings(symbols: SymbolColumns, order: Index) -> tuple[bytes, Index]:
    """The names of the symbols in this order, each with its NUL, and where they begin."""
    begin = symbols.begin[order]
    length = symbols.end[order] - begin
    if len(length) and (length.min() < 0 or begin.min() < 0 or symbols.end.max() > len(symbols.text)):
        raise ValueError("a symbol's name lies outside of the text")
    letters = _printable(np.frombuffer(symbols.text, dtype=np.uint8))
    strings, places = packed_names(letters, begin, length)
    return b"\0" + strings.tobytes(), places + 1


def packed_names(letters: U8, begin: Index, length: Index) -> tuple[U8, Index]:
    """Names out of a text, one behind the other and each with a NUL, and where each begins."""
    after = np.cumsum(length + 1)
    places = after - length - 1
    total = int(after[-1]) if len(after) else 0
    strings = np.zeros(total, dtype=np.uint8)
    cuts = np.searchsorted(after, np.arange(_AT_ONCE, total, _AT_ONCE)).tolist()
    for low, high in zip([0, *cuts], [*cuts, len(length)], strict=True):
        some = length[low:high]
        within = np.arange(int(some.sum()), dtype=np.intp) - np.repeat(np.cumsum(some) - some, some)
        target = np.repeat(places[low:high], some) + within
        strings[target] = letters[np.repeat(begin[low:high], some) + within]
    return strings, places


def _printable(letters: U8) -> U8:
    return np.where((letters > 0x20) & (letters < 0x7F), letters, np.uint8(_NO_NAME))
