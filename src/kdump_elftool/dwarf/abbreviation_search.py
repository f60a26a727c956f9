"""How the first entry of a unit is laid out: its declaration among hundreds, found by a pattern.

gcc writes the declaration of a unit's own entry as the last of its table, so all others have to be passed
over: at the speed of regular expressions that is 20 MB a second.  All quantifiers are possessive: whatever
the bytes are, the time is linear; and units that all name large tables come to an end.
Reference: DWARF 5, 7.5.3 (abbreviations), 7.6 (LEB128).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kdump_elftool.dwarf.constants import FORM_IMPLICIT_CONST

Attributes = tuple[tuple[int, int, int], ...]
"""Name, form, and the value where it is in the declaration (implicit_const)."""

MOST_BYTES = 1 << 29
"""Of all tables that are gone through: a kernel has 10 MB."""
_LONGEST = 1 << 13
"""Bytes of a declaration."""
_MOST_BITS = 70
_LEB = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
_PAIRS = rb"(?:(?!\x00\x00)" + _LEB + rb"(?:\x21" + _LEB + rb"|(?!\x21)" + _LEB + rb")){0,256}+"
_OTHER = rb"(?!\x00)" + _LEB + rb"(?!\x11)" + _LEB + rb"[\x00\x01]" + _PAIRS + rb"\x00\x00"
# 0x11 is DW_TAG_compile_unit
_UNIT = re.compile(
    rb"(?s:(?:" + _OTHER + rb")*+(?:(?!\x00)(" + _LEB + rb")\x11[\x00\x01](" + _PAIRS + rb")\x00\x00)?)"
)


@dataclass
class UnitDeclarations:
    """Of the entries of compilation units, in a whole .debug_abbrev."""

    section: bytes
    _known: dict[bytes, Attributes] = field(default_factory=dict)
    _found: dict[tuple[int, int], Attributes | None] = field(default_factory=dict)
    _left: int = MOST_BYTES

    def find(self, table: int, code: int) -> Attributes | None:
        """What the compile_unit entries of that code have; None when the table at ``table`` has no such.

        Raises ValueError when more has been gone through than any program has.
        """
        if (table, code) not in self._found:
            self._found[table, code] = self._search(table, code)
        return self._found[table, code]

    def _search(self, table: int, code: int) -> Attributes | None:
        at = table
        if table > len(self.section):
            self._left -= _LONGEST
            return None
        while self._left > 0:
            found = _UNIT.match(self.section, at)
            if found is None or found[1] is None:
                # the one that was not passed over is no longer than a declaration may be
                self._left -= _LONGEST + (0 if found is None else found.end() - at)
                return None
            self._left -= found.end() - at
            if leb(found[1], 0)[0] == code:
                return self._attributes(found[2])
            at = found.end()
        raise ValueError("the tables of declarations are larger than any program's")

    def _attributes(self, pairs: bytes) -> Attributes:
        """Most units' declarations are alike."""
        if pairs not in self._known:
            self._known[pairs] = tuple(_parsed(pairs))
        return self._known[pairs]


def _parsed(pairs: bytes) -> list[tuple[int, int, int]]:
    found = []
    at = 0
    while at < len(pairs):
        name, at = leb(pairs, at)
        form, at = leb(pairs, at)
        value = 0
        if form == FORM_IMPLICIT_CONST:
            value, at = leb(pairs, at, signed=True)
        found.append((name, form, value))
    return found


def leb(data: bytes, at: int, *, signed: bool = False) -> tuple[int, int]:
    """A LEB128 number and where it ends.

    Raises IndexError behind the end of ``data``, ValueError for one that no 64 bits hold.
    """
    value = shift = 0
    while shift < _MOST_BITS:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if signed and byte & 0x40 else value), at
    raise ValueError("a LEB128 number of more than 64 bits")
