"""Where the addresses are in line tables: the only thing in them that moves with a program.

An address stands behind DW_LNE_set_address; all others are counted from there.  Each table is decoded from
its first opcode to its last, by a regular expression of the opcodes in between: 50 MB a second.

References: DWARF 5, 6.2.4 (header), 6.2.5 (opcodes); older versions' headers lack two bytes, and one
before version 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, Index
from kdump_elftool.dwarf.abbreviation_search import leb

_LEB = rb"[\x80-\xff]*+[\x00-\x7f]"
_SET_ADDRESS = 2
_ADVANCE_FIXED = 9
"""DW_LNS_fixed_advance_pc: the only opcode whose operand is no LEB128, but two bytes."""
_SHORT = 20
"""Bytes of extended opcodes that the pattern passes over: all but those of no standard are shorter."""
_MOST_TIMES = 4
"""As often as the section is long bytes are decoded: damaged tables may end anywhere."""
_ELSEWHERE = (0x0E, 0x1A, 0x1D, 0x25, 0x26, 0x27, 0x28)
"""DW_FORM_strp, strp_sup, strx*."""
_MOST_OPERANDS, _MOST_PATTERNS = 8, 16
"""No standard has an opcode of more than one; a program's compilers agree on one or two sets of opcodes."""


@dataclass(frozen=True)
class _Header:
    """``first`` is where the opcodes begin; ``operands`` are the standard opcodes' numbers of operands."""

    first: int
    end: int
    operands: bytes


def find_addresses(section: bytes, tables: Sequence[int], order: str, word: int) -> tuple[Index, set[int]]:
    """Where the operands of DW_LNE_set_address lie in .debug_line, of the tables that begin at ``tables``.

    Also returns those tables that cannot be decoded; of them no address is among the others.
    """
    patterns: dict[bytes, re.Pattern[bytes]] = {}
    places: list[int] = []
    damaged: set[int] = set()
    reach, left = 0, _MOST_TIMES * len(section)
    for table in sorted(set(tables)):
        try:
            # tables that overlap are none, and would be read again and again
            header = _header(section, table, order) if table >= reach else None
            if header is None:
                raise ValueError("a table begins within another one")
            if header.operands not in patterns:
                if len(patterns) == _MOST_PATTERNS or max(header.operands, default=0) > _MOST_OPERANDS:
                    raise ValueError("opcodes of no assembler that is known")
                patterns[header.operands] = _pattern(header.operands)
            left -= header.end - header.first
            if left < 0:
                raise ValueError("tables that cannot be decoded lie in each other")
            places += _addresses(section, header, patterns[header.operands], word)
            reach = header.end
        except (ValueError, IndexError):
            damaged.add(table)
    return np.array(places, dtype=np.intp), damaged


def moved_addresses(section: bytes, places: Index, order: str, word: int, low: int, offset: int) -> bytes:
    """The section with the addresses at ``places``, if they are not below ``low``, ``offset`` further on."""
    out = np.frombuffer(section, dtype=np.uint8).copy()
    if len(places):
        at = places[:, None] + np.arange(word)
        mask = np.uint64(MASK64 >> (64 - 8 * word))
        value = out[at].view(f"{order}u{word}")[:, 0].astype(np.uint64)
        moved = np.where(value >= np.uint64(low), value + np.uint64(offset & MASK64), value) & mask
        out[at] = moved.astype(f"{order}u{word}").view(np.uint8).reshape(-1, word)
    return out.tobytes()


def _header(section: bytes, at: int, order: str) -> _Header:
    """Raises ValueError, IndexError."""

    def number(size: int) -> int:
        nonlocal at
        piece = section[at : at + size]
        at += size
        if len(piece) < size:
            raise ValueError("a line table's header is cut off")
        return int.from_bytes(piece, "little" if order == "<" else "big")

    length = number(4)
    end = at + length
    version = number(2)
    if length >= 0xFFFFFFF0 or end > len(section) or not 2 <= version <= 5:
        raise ValueError("no line table of a kind that is known")
    if version == 5:
        at += 2
    size = number(4)
    first = at + size
    at += 5 if version >= 4 else 4
    base = number(1)
    operands = section[at : at + max(base - 1, 0)]
    at += len(operands)
    if not at <= first <= end:
        raise ValueError("a line table's header is longer than the table")
    if version == 5:
        _check_names(section, at)
    return _Header(first, end, operands)


def _check_names(section: bytes, at: int) -> None:
    """Raises ValueError if the names of directories are in sections that are not taken over.

    No compiler has them elsewhere than in the table or in .debug_line_str; files are named the same way.
    """
    count, at = section[at], at + 1
    for _ in range(count):
        _, at = leb(section, at)
        form, at = leb(section, at)
        if form in _ELSEWHERE:
            raise ValueError(f"names of form {form:#x}")


def _pattern(operands: bytes) -> re.Pattern[bytes]:
    """Opcodes up to the next address, or to an extended one of unusual length."""
    special = len(operands) + 1
    by_count: dict[int, list[int]] = {}
    for opcode, count in enumerate(operands, 1):
        if opcode != _ADVANCE_FIXED:
            by_count.setdefault(count, []).append(opcode)
    plain = [*by_count.pop(0, []), *range(special, 256)]
    kinds = [_any_of(plain) + rb"++"] if plain else []
    kinds += [_any_of(opcodes) + _LEB * count for count, opcodes in by_count.items()]
    if special > _ADVANCE_FIXED:
        kinds.append(rb"\x09..")
    # the length counts the opcode
    kinds += [rb"\x00\x%02x[^\x02].{%d}" % (length, length - 1) for length in range(1, _SHORT)]
    return re.compile(rb"(?s:(?:" + rb"|".join(kinds) + rb")*+)")


def _any_of(opcodes: Iterable[int]) -> bytes:
    return b"[" + b"".join(rb"\x%02x" % opcode for opcode in opcodes) + b"]"


def _addresses(section: bytes, header: _Header, pattern: re.Pattern[bytes], word: int) -> list[int]:
    """Raises ValueError, IndexError."""
    found: list[int] = []
    at = header.first
    while True:
        passed = pattern.match(section, at, header.end)
        at = at if passed is None else passed.end()
        if at == header.end:
            return found
        if section[at]:
            raise ValueError(f"opcode {section[at]} is cut off")
        length, at = leb(section, at + 1)
        if not 0 < length <= header.end - at:
            raise ValueError("an extended opcode is cut off")
        if section[at] == _SET_ADDRESS:
            if length != 1 + word:
                raise ValueError(f"an address of {length - 1} bytes")
            found.append(at + 1)
        at += length
