"""DWARF 4 and 5 of any content, in either byte order, and small ELF files to hold it.

Independent of the package under test: only ``struct`` and the DWARF standard, sections 7.5 (entries,
abbreviations, forms) and 6.1.2 (address ranges).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ARRAY, ENUM, MEMBER, POINTER, CU, STRUCT, TYPEDEF, UNION = 0x01, 0x04, 0x0D, 0x0F, 0x11, 0x13, 0x16, 0x17
SUBRANGE, BASE, CONST, ENUMERATOR, SUBPROGRAM, VARIABLE, SKELETON = 0x21, 0x24, 0x26, 0x28, 0x2E, 0x34, 0x4A
SIBLING, NAME, BYTE_SIZE, BIT_OFFSET, BIT_SIZE, LOW_PC, HIGH_PC = 0x01, 0x03, 0x0B, 0x0C, 0x0D, 0x11, 0x12
CONST_VALUE, UPPER_BOUND, COUNT, LOCATION, DECLARATION = 0x1C, 0x2F, 0x37, 0x38, 0x3C
SPECIFICATION, TYPE, RANGES, DATA_BIT_OFFSET = 0x47, 0x49, 0x55, 0x6B
ADDR, DATA2, DATA4, DATA8, STRING, BLOCK1, DATA1 = 0x01, 0x05, 0x06, 0x07, 0x08, 0x0A, 0x0B
SDATA, STRP, UDATA, REF4, SEC_OFFSET, EXPRLOC, PRESENT, IMPLICIT = (
    0x0D,
    0x0E,
    0x0F,
    0x13,
    0x17,
    0x18,
    0x19,
    0x21,
)
FORMATS = {DATA1: "B", DATA2: "H", DATA4: "I", DATA8: "Q", SEC_OFFSET: "I"}
SHT_NOBITS = 8


@dataclass(eq=False)
class Die:
    """One entry: tag, attributes as (name, form, value), children.  A REF4 value is another Die."""

    tag: int
    attrs: list[tuple[int, int, Any]] = field(default_factory=list)
    children: list[Die] = field(default_factory=list)


def uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = value == (-1 if byte & 0x40 else 0)
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)


def named(tag: int, name: str | None, *attrs: tuple[int, int, Any], children: Iterable[Die] = ()) -> Die:
    return Die(tag, [*([(NAME, STRP, name)] if name else []), *attrs], list(children))


def base(name: str, size: int) -> Die:
    return named(BASE, name, (BYTE_SIZE, DATA1, size))


def pointer(to: Die | None = None, size: int | None = 8) -> Die:
    return Die(
        POINTER, [(BYTE_SIZE, DATA1, size)] * (size is not None) + [(TYPE, REF4, to)] * (to is not None)
    )


def typedef(name: str, to: Die) -> Die:
    return named(TYPEDEF, name, (TYPE, REF4, to))


def member(name: str | None, kind: Die, at: int, *attrs: tuple[int, int, Any]) -> Die:
    return named(MEMBER, name, (TYPE, REF4, kind), (LOCATION, DATA2, at), *attrs)


def record(name: str | None, size: int, *members: Die, tag: int = STRUCT) -> Die:
    return named(tag, name, (BYTE_SIZE, DATA2, size), children=members)


def declared(name: str) -> Die:
    return named(STRUCT, name, (DECLARATION, PRESENT, True))


def array(of: Die, *bounds: tuple[int, int, int]) -> Die:
    return Die(ARRAY, [(TYPE, REF4, of)], [Die(SUBRANGE, [bound]) for bound in bounds])


def enum(name: str | None, *values: tuple[str, int, int]) -> Die:
    """Values as (name, form, value)."""
    return named(
        ENUM, name, (BYTE_SIZE, DATA1, 4),
        children=[named(ENUMERATOR, label, (CONST_VALUE, form, value)) for label, form, value in values],
    )  # fmt: skip


@dataclass(frozen=True)
class UnitSpec:
    """A compilation unit, and the code it has."""

    name: str
    low: int
    size: int
    dies: Sequence[Die]
    top: Sequence[tuple[int, int, Any]] = ()


class DwarfWriter:
    """Collects units; ``sections()`` are their contents by name."""

    def __init__(
        self,
        version: int = 5,
        order: str = "<",
        word: int = 8,
        *,
        siblings: bool = True,
        aranges: bool = True,
    ) -> None:
        self.version, self.order, self.word = version, order, word
        self.siblings, self.aranges = siblings, aranges
        self.info, self.abbrev, self.strings, self.ranges = bytearray(), bytearray(), bytearray(b"\0"), b""

    def pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form, *values)

    def add(self, unit: UnitSpec) -> None:
        start, abbrev_at = len(self.info), len(self.abbrev)
        top = named(CU, unit.name, *unit.top, children=unit.dies)
        if not self.aranges and not unit.top:
            top.attrs += [(LOW_PC, ADDR, unit.low), (HIGH_PC, DATA4, unit.size)]
        head = self.pack("HBBI", 5, 1, self.word, abbrev_at) if self.version == 5 else (
            self.pack("HIB", self.version, abbrev_at, self.word)
        )  # fmt: skip
        self._body = bytearray(4) + head
        self._places: dict[Die, int] = {}
        self._fixups: list[tuple[int, Die]] = []
        self._code = 0
        self._entry(top)
        self.abbrev += b"\0"
        for at, target in self._fixups:
            self._body[at : at + 4] = self.pack("I", self._places.get(target, 0))
        self._body[:4] = self.pack("I", len(self._body) - 4)
        self.info += self._body
        if self.aranges:
            body = self.pack("HIBB", 2, start, self.word, 0)
            body += bytes(-(4 + len(body)) % (2 * self.word))
            width = "Q" if self.word == 8 else "I"
            body += self.pack(2 * width, unit.low, unit.size) + bytes(2 * self.word)
            self.ranges += self.pack("I", len(body)) + body

    def _entry(self, die: Die) -> None:
        self._code += 1
        sibling = bool(die.children) and self.siblings and die.tag != CU
        attrs = [*([(SIBLING, REF4, None)] if sibling else []), *die.attrs]
        self.abbrev += uleb(self._code) + uleb(die.tag) + bytes([bool(die.children)])
        for name, form, value in attrs:
            self.abbrev += uleb(name) + uleb(form) + (sleb(value) if form == IMPLICIT else b"")
        self.abbrev += b"\0\0"
        self._places[die] = len(self._body)
        self._body += uleb(self._code)
        sibling_at = len(self._body)
        for _, form, value in attrs:
            self._value(form, value)
        if die.children:
            for child in die.children:
                self._entry(child)
            self._body += b"\0"
        if sibling:
            self._body[sibling_at : sibling_at + 4] = self.pack("I", len(self._body))

    def _value(self, form: int, value: Any) -> None:
        if form in FORMATS:
            self._body += self.pack(FORMATS[form], value)
        elif form == REF4:
            if value is not None:
                self._fixups.append((len(self._body), value))
            self._body += bytes(4)
        elif form == STRP:
            self._body += self.pack("I", len(self.strings))
            self.strings += value.encode() + b"\0"
        elif form == ADDR:
            self._body += self.pack("Q" if self.word == 8 else "I", value)
        elif form in (EXPRLOC, BLOCK1):
            self._body += bytes([len(value)]) + value
        elif form in (UDATA, SDATA):
            self._body += uleb(value) if form == UDATA else sleb(value)

    def sections(self) -> dict[str, bytes]:
        found = {".debug_info": self.info, ".debug_abbrev": self.abbrev, ".debug_str": self.strings}
        return {name: bytes(data) for name, data in found.items()} | (
            {".debug_aranges": self.ranges} if self.aranges else {}
        )


def elf_file(
    sections: Mapping[str, bytes],
    symbols: Mapping[str, int],
    *,
    order: str = "<",
    bits: int = 64,
    machine: int = 62,
    build_id: bytes | None = b"\x12" * 20,
    flags: Mapping[str, int] = {},
) -> bytes:
    """An executable with these sections, a symbol table and a build id."""
    wide = bits == 64
    strings, table = b"\0", bytes(24 if wide else 16)
    for name, value in symbols.items():
        if wide:
            table += struct.pack(order + "IBBHQQ", len(strings), 0x12, 0, 1, value, 16)
        else:
            table += struct.pack(order + "IIIBBH", len(strings), value, 16, 0x12, 0, 1)
        strings += name.encode() + b"\0"
    contents: list[tuple[str, int, bytes, int]] = [("", 0, b"", 0)]
    if build_id is not None:
        note = struct.pack(order + "III", 4, len(build_id), 3) + b"GNU\0" + build_id
        contents.append((".notes", 7, note, 0))
    contents += [(name, 1, data, 0) for name, data in sections.items()]
    contents.append((".symtab", 2, table, len(contents) + 1))
    contents.append((".strtab", 3, strings, 0))
    names = b"".join(name.encode() + b"\0" for name, *_ in contents) + b".shstrtab\0"
    contents.append((".shstrtab", 3, names, 0))
    at, body, headers = (64 if wide else 52), b"", b""
    for name, kind, data, link in contents:
        start = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        fields = (
            start,
            kind,
            flags.get(name, 0),
            0,
            at + len(body),
            len(data),
            link,
            0,
            1,
            24 if wide else 16,
        )
        headers += struct.pack(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"), *fields)
        body += data
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    ehdr = struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        2, machine, 1, 0x1000, 0, at + len(body), 0, at, 0, 0, 64 if wide else 40,
        len(contents), len(contents) - 1,
    )  # fmt: skip
    return ident + ehdr + body + headers
