"""The debug information in a vmlinux: its sections as streams, and the unit that defines an address.

pyelftools reads DWARF (versions 2 to 5), but not whole sections of hundreds of megabytes: it gets
streams of the file.  A unit is found through ``.debug_aranges`` or, where the compiler wrote none (clang),
by the address ranges of all units, for which no more than the first entry of each is read.

Whatever the file claims, reading is bounded by :class:`Budget`.  This module needs pyelftools, which is
optional: it is imported where DWARF is read.  References: DWARF 5 sections 6.1.2, 7.5; gABI, SHF_COMPRESSED.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

import numpy as np
from elftools.common.exceptions import DWARFError, ELFError
from elftools.common.utils import struct_parse
from elftools.construct import ConstructError
from elftools.dwarf.abbrevtable import AbbrevDecl
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from elftools.dwarf.ranges import BaseAddressEntry
from elftools.dwarf.structs import DWARFStructs

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import KdumpError
from kdump_elftool.kernel.debug_sections import unpack
from kdump_elftool.kernel.vmlinux import section_headers

log = logging.getLogger(__name__)

DAMAGED = (
    DWARFError,
    ELFError,
    ConstructError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    zlib.error,
)
"""What pyelftools raises when debug information is not what it should be."""

_MOST_ENTRIES = 500_000
_MOST_BYTES = 64 << 20
_LARGEST_READ = 1 << 20
_LARGEST_SECTION = 2 << 30
_BUFFER = 4096
_IMPLICIT_CONST = 0x21
"""DW_FORM_implicit_const: its value follows in the declaration."""
_SECTIONS = ("info", "abbrev", "str", "line_str", "str_offsets", "addr", "aranges", "ranges", "rnglists")
_UNREAD = (
    "debug_frame eh_frame debug_loc debug_line debug_pubtypes debug_pubnames debug_loclists debug_sup "
    "gnu_debugaltlink debug_types"
)
_Reader = Callable[[int, int], bytes]
"""Bytes of a section by offset and size, as :meth:`InputFile.read_at`."""


@dataclass
class Budget:
    """How much reading one vmlinux is worth."""

    entries: int = _MOST_ENTRIES
    bytes: int = _MOST_BYTES

    def spend(self, entries: int, size: int) -> None:
        """Raises ValueError (one of :data:`DAMAGED`) when it is used up."""
        self.entries -= entries
        self.bytes -= size
        if self.entries < 0 or self.bytes < 0:
            raise ValueError("the debug information is larger than it can be")


class _Section(io.RawIOBase):
    """A section as a stream; ``fd`` is closed with it."""

    def __init__(self, read_at: _Reader, size: int, fd: int = -1) -> None:
        super().__init__()
        self._read_at, self.size, self._fd = read_at, size, fd
        self._position = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        room = max(min(len(buffer), self.size - self._position), 0)
        data = self._read_at(self._position, room)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Metered(io.BufferedReader):
    """Reads that are counted, and never large: what DWARF is asked for here are entries and names."""

    budget: Budget

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_READ:
            raise ValueError(f"{size} bytes for one value")
        self.budget.spend(0, size)
        return super().read(size)


class _Abbreviations:
    """An abbreviation table that is read only as far as it is asked for.

    Declarations are found by a plain scan and only those that are used are parsed: in most units that
    is one, and with gcc it is the last one of the table.
    """

    def __init__(self, structs: DWARFStructs, stream: IO[bytes], offset: int) -> None:
        self._structs, self._stream, self._offset = structs, stream, offset
        self._data, self._at = b"", 0
        self._places: dict[int, int] = {}
        self._known: dict[int, AbbrevDecl] = {}

    def get_abbrev(self, code: int) -> AbbrevDecl:
        """Raises KeyError when there is no such declaration."""
        found = self._known.get(code)
        if found is None:
            while code not in self._places:
                self._scan()
            self._stream.seek(self._offset + self._places[code])
            found = AbbrevDecl(code, struct_parse(self._structs.Dwarf_abbrev_declaration, self._stream))
            self._known[code] = found
        return found

    def _scan(self) -> None:
        """Go over one declaration (DWARF 5, section 7.5.3): code, tag, has children, names and forms."""
        code = self._uleb128()
        if not code:
            raise KeyError("the end of the abbreviation table")
        self._places.setdefault(code, self._at)
        self._uleb128()
        self._uleb128()
        form = name = 1
        while name or form:
            name, form = self._uleb128(), self._uleb128()
            if form == _IMPLICIT_CONST:
                self._uleb128()

    def _uleb128(self) -> int:
        value = shift = 0
        while True:
            if self._at >= len(self._data):
                self._more()
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80 or shift > 63:
                return value
            shift += 7

    def _more(self) -> None:
        self._stream.seek(self._offset + len(self._data))
        piece = self._stream.read(_BUFFER)
        if not piece:
            raise KeyError("the end of the abbreviation table")
        self._data += piece


class _Info(DWARFInfo):
    def get_abbrev_table(self, offset: int) -> Any:
        """As DWARFInfo's, but lazy: most units are asked for their first entry alone."""
        assert self.debug_abbrev_sec is not None
        if offset not in self._lazy:
            self._lazy[offset] = _Abbreviations(self.structs, self.debug_abbrev_sec.stream, offset)
        return self._lazy[offset]

    @cached_property
    def _lazy(self) -> dict[int, _Abbreviations]:
        return {}


@dataclass(frozen=True)
class DwarfFile:
    """Open debug information.  ``order`` is < or >."""

    info: DWARFInfo
    order: str
    budget: Budget = field(default_factory=Budget)

    def unit_at(self, vaddr: int) -> CompileUnit | None:
        """The unit that defines what is at ``vaddr``.  Raises what :data:`DAMAGED` lists."""
        starts, ends, offsets = self._ranges
        at = int(np.searchsorted(starts, np.uint64(vaddr), side="right")) - 1
        if at < 0 or vaddr >= int(ends[at]):
            return None
        return self.info.get_CU_at(int(offsets[at]))

    @cached_property
    def _ranges(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Start, end and unit of every range, by start."""
        rows = []
        aranges = self.info.get_aranges()
        if aranges is not None:
            rows = [(row.begin_addr, row.begin_addr + row.length, row.info_offset) for row in aranges.entries]
        if not rows:
            log.info("DWARF: no .debug_aranges: the first entry of each unit is read")
            rows = [
                (start, end, cu.cu_offset) for cu in self._units() for start, end in self._unit_ranges(cu)
            ]
        rows = sorted(row for row in rows if 0 < row[0] < row[1] < 1 << 64)
        columns = zip(*rows, strict=True) if rows else ([], [], [])
        return tuple(np.array(column, dtype=np.uint64) for column in columns)

    def _units(self) -> Iterator[CompileUnit]:
        for cu in self.info.iter_CUs():
            self.budget.spend(1, 0)
            yield cu

    def _unit_ranges(self, cu: CompileUnit) -> list[tuple[int, int]]:
        top = cu.get_top_DIE()
        low, high = top.attributes.get("DW_AT_low_pc"), top.attributes.get("DW_AT_high_pc")
        start = int(low.value) if low else 0
        if low and high:
            # an offset, if it is not of the class of addresses
            return [(start, int(high.value) + (0 if high.form == "DW_FORM_addr" else start))]
        ranges = top.attributes.get("DW_AT_ranges")
        lists = self.info.range_lists()
        if ranges is None or lists is None:
            return []
        found = []
        for entry in lists.get_range_list_at_offset(ranges.value, cu):
            self.budget.spend(1, 0)
            if isinstance(entry, BaseAddressEntry):
                start = entry.base_address
            else:
                base = 0 if entry.is_absolute else start
                found.append((base + entry.begin_offset, base + entry.end_offset))
        return found


def children(die: DIE, budget: Budget) -> Iterator[DIE]:
    """The entries directly below ``die``; each step leads forward.  Raises what :data:`DAMAGED` lists."""
    if not die.has_children:
        return
    cu, at, depth = die.cu, die.offset + die.size, 0
    while True:
        budget.spend(1, 0)
        child = cu.get_DIE_from_refaddr(at)
        following = at + child.size
        if child.is_null():
            if not depth:
                return
            depth -= 1
        else:
            if not depth:
                yield child
            if child.has_children:
                sibling = child.attributes.get("DW_AT_sibling")
                skip = 0 if sibling is None else int(sibling.raw_value)
                skip += 0 if sibling is None or sibling.form == "DW_FORM_ref_addr" else cu.cu_offset
                if skip > at:
                    following = skip
                else:
                    depth += 1
        at = following


def open_dwarf(elf: ElfFile) -> DwarfFile | None:
    """The debug information of an ELF file; None, with the reason in the log, when it has none."""
    budget = Budget()
    found: dict[str, DebugSectionDescriptor | None] = {f"{name}_sec": None for name in _UNREAD.split()}
    headers = section_headers(elf)
    for name in _SECTIONS:
        header = headers.get(b".debug_" + name.encode())
        found[f"debug_{name}_sec"] = None if header is None else _descriptor(elf, name, header, budget)
    if found["debug_info_sec"] is None or found["debug_abbrev_sec"] is None:
        log.info("DWARF: none in %s", elf.file.path)
        return None
    config = DwarfConfig(elf.header.kind.order == "<", "", elf.header.kind.bits // 8)
    return DwarfFile(_Info(config, **found), elf.header.kind.order, budget)


def _descriptor(elf: ElfFile, name: str, header: np.void, budget: Budget) -> DebugSectionDescriptor | None:
    start, size = int(header["sh_offset"]), int(header["sh_size"])
    if not size or size > _LARGEST_SECTION or start + size > elf.file.size:
        return None

    def read_at(offset: int, count: int) -> bytes:
        return elf.file.read_at(start + offset, count)

    section: _Section | None = _Section(read_at, size)
    if int(header["sh_flags"]) & c.SHF_COMPRESSED:
        section = _unpack(elf, f".debug_{name}", start, size)
    if section is None:
        return None
    stream = _Metered(section, _BUFFER)
    stream.budget = budget
    return DebugSectionDescriptor(stream, f".debug_{name}", start, section.size, 0)


def _unpack(elf: ElfFile, name: str, start: int, size: int) -> _Section | None:
    """A compressed section.  Raises what :data:`DAMAGED` lists."""
    try:
        found = unpack(elf, name, start, size, _LARGEST_SECTION)
    except KdumpError as error:
        log.info("DWARF: %s is not read: %s", name, error.message)
        return None
    if found.cut is not None:
        log.warning("%s: %s: types may be missing", elf.file.path, found.cut)
    with found.file:
        fd = os.dup(found.file.fileno())
    return _Section(lambda offset, count: os.pread(fd, count, offset), found.size, fd)
