"""The compilation units of a program, by their own entries alone: source file, code, line table.

Of DWARF 2 to 5, from gcc, the assembler and clang (whose strings and addresses are numbers of tables'
entries).  Units without code or without line table are passed over, as are those of types.  Nothing is
believed: what a unit refers to may lie anywhere, and a unit that cannot be read is counted.

References: DWARF 5, 7.5.1 (unit headers), 7.5.6 (forms), 3.1.1 (attributes of units).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kdump_elftool.dwarf.abbreviation_search import UnitDeclarations, leb
from kdump_elftool.dwarf.constants import UT_COMPILE
from kdump_elftool.dwarf.debug_input import MOST_RANGES, DebugInput, old_ranges, range_entries, text

_MOST_UNITS = 1 << 17
"""A kernel has 2,500, one with everything built in 10 times as many."""
_MOST_BYTES = 4096
"""Of a unit's own entry: strings may stand in it."""
_STMT_LIST, _LOW_PC, _HIGH_PC, _LANGUAGE, _NAME, _COMP_DIR = 0x10, 0x11, 0x12, 0x13, 0x03, 0x1B
_RANGES, _STR_OFFSETS_BASE, _ADDR_BASE, _RNGLISTS_BASE = 0x55, 0x72, 0x73, 0x74
_ADDR, _STRING, _STRP, _LINE_STRP, _STRX, _RNGLISTX, _IMPLICIT = 0x01, 0x08, 0x0E, 0x1F, 0x1A, 0x23, 0x21
_FIXED = {
    0x0B: 1,
    0x05: 2,
    0x06: 4,
    0x07: 8,
    0x1E: 16,
    0x0C: 1,
    0x19: 0,
    _IMPLICIT: 0,
    _STRP: 4,
    _LINE_STRP: 4,
    0x17: 4,
    0x1D: 4,
    0x10: 4,
    0x1F20: 4,
    0x1F21: 4,
    0x11: 1,
    0x12: 2,
    0x13: 4,
    0x14: 8,
    0x1C: 4,
    0x20: 8,
    0x24: 8,
    0x25: 1,
    0x26: 2,
    0x27: 3,
    0x28: 4,
    0x29: 1,
    0x2A: 2,
    0x2B: 3,
    0x2C: 4,
}
"""Bytes by form, of those with as many always: data, flag, references, and numbers of tables' entries."""
_STRX_FORMS, _ADDRX_FORMS = (_STRX, 0x25, 0x26, 0x27, 0x28), (0x1B, 0x29, 0x2A, 0x2B, 0x2C)
_LEB_FORMS = (0x0D, 0x0F, 0x15, _STRX, 0x1B, 0x22, _RNGLISTX)
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4}
"""Bytes of a block's length."""


@dataclass(frozen=True)
class SourceUnit:
    """``line`` is where its line table begins in .debug_line; ``ranges`` are half-open, of its code."""

    name: bytes
    directory: bytes
    language: int
    line: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SourceUnits:
    """All that have code and a line table, how many could not be read, and what was not looked at."""

    units: list[SourceUnit]
    unread: int
    rest: str | None = None


@dataclass(frozen=True)
class _Head:
    """A unit's header: ``entry`` is where its own entry begins."""

    version: int
    abbrev: int
    entry: int
    is_compile: bool


@dataclass(frozen=True)
class _Value:
    """An attribute: a number, or the bytes that stand in the entry itself."""

    form: int
    number: int
    data: bytes = b""


@dataclass
class _Budget:
    """Entries of lists that may still be read, those of units that then make no sense included."""

    left: int = MOST_RANGES

    def counted(self, ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Raises ValueError where they are too many."""
        for each in ranges:
            self.left -= 1
            if self.left < 0:
                raise ValueError("more ranges than any program has")
            yield each


def source_units(source: DebugInput) -> SourceUnits:
    """What .debug_info says of its units."""
    declarations = UnitDeclarations(source.abbrev)
    found: list[SourceUnit] = []
    unread, budget = 0, _Budget()
    for number, at in enumerate(_starts(source)):
        if at is None:
            return SourceUnits(
                found, unread, "units in the 64-bit form of DWARF are not read, nor what follows them"
            )
        if number >= _MOST_UNITS:
            return SourceUnits(found, unread, f"units behind the first {_MOST_UNITS} are not read")
        try:
            unit = _unit(source, declarations, at, budget)
        except (ValueError, IndexError):
            unread += 1
            continue
        if unit is not None:
            found.append(unit)
    return SourceUnits(found, unread)


def _starts(source: DebugInput) -> Iterator[int | None]:
    """Where units begin; None, and that is all, for one of the 64-bit form (which no kernel has)."""
    at = 0
    while at + 4 <= source.info_size:
        length = source.number(source.info(at, 4).ljust(4, b"\xff"), 0, 4)
        if length >= 0xFFFFFFF0:
            yield None
            return
        yield at
        at += 4 + length


def _unit(source: DebugInput, declarations: UnitDeclarations, at: int, budget: _Budget) -> SourceUnit | None:
    """Raises ValueError, IndexError."""
    data = source.info(at, _MOST_BYTES)
    head = _head(source, data)
    if not head.is_compile:
        return None
    code, start = leb(data, head.entry)
    declared = declarations.find(head.abbrev, code) if code else None
    if declared is None:
        return None
    has = _values(source, data, start, declared)
    line = has.get(_STMT_LIST)
    if line is None:
        return None
    bases = {
        name: has[name].number for name in (_STR_OFFSETS_BASE, _ADDR_BASE, _RNGLISTS_BASE) if name in has
    }
    listed = budget.counted(_code(source, has, bases, head.version))
    ranges = [(start, end) for start, end in listed if start < end < 1 << 8 * source.word]
    if not ranges:
        return None
    language = has.get(_LANGUAGE, _Value(0, 0)).number & 0xFFFF
    name, directory = (_string(source, has.get(which), bases) for which in (_NAME, _COMP_DIR))
    return SourceUnit(name, directory, language, line.number, tuple(ranges))


def _head(source: DebugInput, data: bytes) -> _Head:
    version = source.number(data, 4, 2)
    if not 2 <= version <= 5:
        raise ValueError(f"a unit of DWARF version {version}")
    if version == 5:
        kind, word, abbrev, entry = data[6], data[7], source.number(data, 8, 4), 12
    else:
        kind, word, abbrev, entry = UT_COMPILE, data[10], source.number(data, 6, 4), 11
    if word != source.word:
        raise ValueError(f"a unit with addresses of {word} bytes")
    return _Head(version, abbrev, entry, kind == UT_COMPILE)


def _values(
    source: DebugInput, data: bytes, at: int, declared: tuple[tuple[int, int, int], ...]
) -> dict[int, _Value]:
    found = {}
    for name, form, constant in declared:
        value, at = _value(source, data, at, form)
        found[name] = _Value(form, constant) if form == _IMPLICIT else value
    return found


def _value(source: DebugInput, data: bytes, at: int, form: int) -> tuple[_Value, int]:
    if form == _ADDR or form in _FIXED:
        size = _FIXED.get(form, source.word)
        return _Value(form, source.number(data, at, size)), at + size
    if form in _LEB_FORMS:
        number, at = leb(data, at)
        return _Value(form, number), at
    if form == _STRING:
        end = data.index(b"\0", at)
        return _Value(form, 0, data[at:end]), end + 1
    if form in _BLOCKS:
        return _Value(form, 0), at + _BLOCKS[form] + source.number(data, at, _BLOCKS[form])
    if form in (0x09, 0x18):
        length, at = leb(data, at)
        return _Value(form, 0), at + length
    raise ValueError(f"an attribute of form {form:#x}")


def _code(
    source: DebugInput, has: Mapping[int, _Value], bases: Mapping[int, int], version: int
) -> Iterator[tuple[int, int]]:
    """The unit's ranges.  Raises ValueError, IndexError."""
    low, high, ranges = has.get(_LOW_PC), has.get(_HIGH_PC), has.get(_RANGES)
    start = 0 if low is None else _address(source, low, bases)
    if ranges is None:
        if low is not None and high is not None:
            is_address = high.form == _ADDR or high.form in _ADDRX_FORMS
            yield start, _address(source, high, bases) if is_address else start + high.number
        return
    if version < 5:
        yield from old_ranges(source, ranges.number, start)
        return
    at = ranges.number
    if ranges.form == _RNGLISTX:
        base = bases.get(_RNGLISTS_BASE, 0)
        at = base + source.number(source.rnglists, base + 4 * at, 4)
    yield from range_entries(source, at, start, bases.get(_ADDR_BASE, 0))


def _address(source: DebugInput, value: _Value, bases: Mapping[int, int]) -> int:
    if value.form in _ADDRX_FORMS:
        return source.address(bases.get(_ADDR_BASE, 0), value.number)
    return value.number


def _string(source: DebugInput, value: _Value | None, bases: Mapping[int, int]) -> bytes:
    """Empty if there is none, or in a file that is not here (dwz)."""
    if value is None:
        return b""
    if value.form == _STRING:
        return value.data
    if value.form == _LINE_STRP:
        return text(source.line_str, value.number)
    if value.form in _STRX_FORMS:
        at = bases.get(_STR_OFFSETS_BASE, 0) + 4 * value.number
        return text(source.str, source.number(source.str_offsets, at, 4))
    return text(source.str, value.number) if value.form == _STRP else b""
