"""The file of a kernel module: sections that are loaded, build id, the release it was built for.

References: System V gABI chapter 4; kernel/module/main.c (layout_sections()); include/linux/vermagic.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kdump_elftool.errors import FormatError
from kdump_elftool.plain.module_sections import build_id_in

Read = Callable[[int, int], bytes]
"""Up to so many bytes of a file: offset, size."""

_MOST_SECTIONS = 1 << 16
_LARGEST_TABLE = 16 << 20
_LARGEST_ALIGN = 1 << 16
_LARGEST_OFFSET = 1 << 62
_LONGEST_NAME = 256
_VERMAGIC = re.compile(rb"(?:^|\0)vermagic=(\S{1,200}) ")
_ET_REL = 1
_SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS = 2, 7, 8
_SHF_ALLOC = 2
_DEBUG_INFO = (b".debug_info", b".zdebug_info")


class ModuleSection(NamedTuple):
    """A section that takes memory when the module is loaded."""

    name: str
    size: int
    align: int


class ModuleElf(NamedTuple):
    """What is needed of a module's file; ``sections`` in the order of the file.

    ``word`` and ``order`` as in ``plain.target``.  ``has_addresses`` when sections were given some
    (``sh_addr``), as linkers do where the kernel's script (scripts/module.lds.S) does not say 0.  They mean
    nothing, but gdb (default_symfile_offsets()) then takes all code of the debug information to be in
    .text: see :func:`without_addresses`.
    """

    word: int
    order: str
    e_machine: int
    sections: tuple[ModuleSection, ...]
    build_id: bytes | None
    release: str | None
    has_symbols: bool
    has_types: bool
    has_addresses: bool


class _Row(NamedTuple):
    """A section header, as far as it is needed."""

    name: bytes
    type: int
    flags: int
    addr: int
    file_offset: int
    size: int
    align: int


class _Table(NamedTuple):
    """Where the section headers are; ``addr`` is where in one of them ``sh_addr`` is."""

    word: int
    order: str
    e_machine: int
    file_offset: int
    each: int
    length: int
    names: int

    @property
    def addr(self) -> int:
        """Bytes from the beginning of a header."""
        return 8 + self.word


def read_module(path: str, read: Read) -> ModuleElf:
    """Read a module or the debug file of one.  Raises FormatError when it is none, what ``read`` raises."""
    table = _table(path, read)
    rows = _rows(path, read, table)
    there = {row.name for row in rows if row.type != _SHT_NOBITS and row.size}
    return ModuleElf(
        table.word,
        table.order,
        table.e_machine,
        tuple(
            ModuleSection(row.name.decode("latin-1"), row.size, min(max(row.align, 1), _LARGEST_ALIGN))
            for row in rows
            if row.flags & _SHF_ALLOC and row.size
        ),
        _build_id(read, table.order, (row for row in rows if row.type == _SHT_NOTE)),
        _release(read, (row for row in rows if row.name == b".modinfo" and row.name in there)),
        has_symbols=any(row.type == _SHT_SYMTAB for row in rows),
        has_types=not there.isdisjoint(_DEBUG_INFO),
        has_addresses=any(row.addr for row in rows),
    )


def without_addresses(path: str, data: bytes) -> bytes:
    """The contents of a module's file with all ``sh_addr`` 0.  Raises FormatError."""
    table = _table(path, lambda offset, size: data[offset : offset + size])
    changed = bytearray(data)
    for number in range(table.length):
        start = table.file_offset + number * table.each + table.addr
        changed[start : start + table.word] = bytes(table.word)
    return bytes(changed[: len(data)])


def _table(path: str, read: Read) -> _Table:
    head = read(0, 64)
    if head[:4] != b"\x7fELF" or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise FormatError(path, "this is not an ELF file")
    word, order = 4 * head[4], "<" if head[5] == 1 else ">"
    fields = struct.Struct(order + ("16sHHIIIIIHHHHHH" if word == 4 else "16sHHIQQQIHHHHHH"))
    if len(head) < fields.size:
        raise FormatError(path, "it ends within its header")
    _, kind, machine, _, _, _, offset, _, _, _, _, each, count, names = fields.unpack(head[: fields.size])
    if kind != _ET_REL:
        raise FormatError(path, f"this is an ELF file of type {kind}, not a module")
    # more than 0xff00 sections are counted elsewhere; no module has as many
    if each != _header(word, order).size or not 0 < count < _MOST_SECTIONS or names >= count:
        raise FormatError(path, "its sections have no names")
    return _Table(word, order, machine, offset, each, count, names)


def _header(word: int, order: str) -> struct.Struct:
    return struct.Struct(order + ("10I" if word == 4 else "IIQQQQIIQQ"))


def _rows(path: str, read: Read, table: _Table) -> list[_Row]:
    data = _read(read, table.file_offset, table.length * table.each)
    if len(data) != table.length * table.each:
        raise FormatError(path, "it ends within the table of its sections")
    headers = list(_header(table.word, table.order).iter_unpack(data))
    strings = _read(read, headers[table.names][4], headers[table.names][5])
    return [
        _Row(strings[name : name + _LONGEST_NAME].split(b"\0", 1)[0], kind, flags, addr, offset, size, align)
        for name, kind, flags, addr, offset, size, _, _, align, _ in headers
    ]


def _read(read: Read, offset: int, size: int) -> bytes:
    return read(offset, min(size, _LARGEST_TABLE)) if offset < _LARGEST_OFFSET else b""


def _build_id(read: Read, order: str, rows: Iterable[_Row]) -> bytes | None:
    for row in rows:
        found = build_id_in(_read(read, row.file_offset, row.size), order)
        if found is not None:
            return found
    return None


def _release(read: Read, rows: Iterable[_Row]) -> str | None:
    """The kernel's release by the module's vermagic."""
    for row in rows:
        said = _VERMAGIC.search(_read(read, row.file_offset, row.size))
        if said:
            return said[1].decode("latin-1")
    return None
