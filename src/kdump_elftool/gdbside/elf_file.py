"""Sections and one symbol of a vmlinux, for what gdb does not tell of it.

64-bit, little endian.  Reference: the System V ABI, "Object Files".
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any, NamedTuple

LARGEST = 1 << 28
"""Bytes of a section; the symbols and call frames of a kernel have less than a tenth."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_CHDR = struct.Struct("<IIQQ")
_COMPRESSED, _ZLIB = 0x800, 1


class Section(NamedTuple):
    """Where the bytes of a section are."""

    flags: int
    file_offset: int
    size: int


class ElfFile:
    """A file that is open; ``names`` has its sections.  Raises ValueError when it is no such file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        fields = _HEADER.unpack(self._read(0, _HEADER.size))
        ident, offset, size, count, names = fields[0], fields[6], fields[11], fields[12], fields[13]
        if ident[:6] != b"\x7fELF\x02\x01" or size != _SECTION.size:
            raise ValueError("no 64-bit little-endian ELF file with sections")
        headers = list(_SECTION.iter_unpack(self._read(offset, size * count)))
        if names >= len(headers):
            raise ValueError("sections have no names")
        text = self._read(headers[names][4], headers[names][5])
        self.names: dict[bytes, Section] = {}
        for name, _, flags, _, at, length, *_ in headers:
            self.names[text[name : text.find(b"\0", name)]] = Section(flags, at, length)

    def content(self, name: bytes) -> bytes | None:
        """The bytes of a section, decompressed; None when there is none or by a method not known here."""
        section = self.names.get(name)
        if section is None:
            return None
        data = self._read(section.file_offset, section.size)
        if not section.flags & _COMPRESSED:
            return data
        if len(data) < _CHDR.size:
            raise ValueError(f"section {name!r} ends within its header")
        method, _, size, _ = _CHDR.unpack_from(data)
        if method != _ZLIB or size > LARGEST:
            return None
        try:
            found = zlib.decompressobj().decompress(data[_CHDR.size :], size)
        except zlib.error as error:
            raise ValueError(f"section {name!r}: {error}") from None
        if len(found) != size:
            raise ValueError(f"section {name!r} ends early: {len(found)} of {size} bytes")
        return found

    def symbol(self, wanted: bytes) -> int | None:
        """The value of a symbol of .symtab."""
        symbols, strings = self.content(b".symtab"), self.content(b".strtab")
        if symbols is None or strings is None:
            return None
        # a name may be the end of a longer one
        places = {match.start() for match in re.finditer(re.escape(wanted) + b"\0", strings)}
        whole = symbols[: len(symbols) // _SYMBOL.size * _SYMBOL.size]
        return next((each[4] for each in _SYMBOL.iter_unpack(whole) if each[0] in places), None)

    def _read(self, offset: int, size: int) -> bytes:
        if size > LARGEST or offset >= 1 << 62:
            raise ValueError(f"{size} bytes at {offset:#x}")
        self._file.seek(offset)
        data = bytes(self._file.read(size))
        if len(data) != size:
            raise ValueError(f"the file ends before {offset + size:#x}")
        return data
