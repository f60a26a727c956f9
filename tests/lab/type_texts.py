"""Where gdb shows a type otherwise than with the real vmlinux, and whether BTF itself is the reason.

BTF has one kind of empty array for ``[0]`` and ``[]``, and pahole, which made it, multiplied the dimensions
of an array.  Either counts as a reason only where the record of that very member says so, which is read
here without the package's own reader.

Reference: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from functools import cached_property

HEAD = struct.Struct("<HBBIIIII")
INT, PTR, ARRAY, STRUCT, UNION, ENUM = range(1, 7)
TYPEDEF, VOLATILE, CONST, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 8, 9, 10, 13, 14, 15, 17, 19
WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
WORDS_EACH = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
SAME, EMPTY, DIMENSIONS = "the same", "[0] or []", "dimensions multiplied"
DECLARED = re.compile(r"(\w+)\)?((?:\[\d*\])+)")


@dataclass(frozen=True)
class PlainBtf:
    """Types by number: name, kind and the words behind these."""

    types: list[tuple[str, int, tuple[int, ...]]]
    strings: bytes

    @classmethod
    def parse(cls, data: bytes, base: PlainBtf | None = None) -> PlainBtf:
        """A section .BTF of a little-endian kernel, or of a module beside that of its kernel, ``base``."""
        magic, _, _, head, type_off, type_len, str_off, str_len = HEAD.unpack_from(data)
        assert magic == 0xEB9F
        at, end = head + type_off, head + type_off + type_len
        strings = data[head + str_off : head + str_off + str_len]
        btf = cls([*base.types] if base else [("void", 0, ())], (base.strings if base else b"") + strings)
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind = info >> 24 & 31
            words = WORDS.get(kind, 0) + WORDS_EACH.get(kind, 0) * (info & 0xFFFF)
            behind = struct.unpack_from(f"<{words}I", data, at + 12)
            btf.types.append((btf.text(name), kind, (size, *behind)))
            at += 12 + 4 * words
        return btf

    def text(self, offset: int) -> str:
        return self.strings[offset : self.strings.index(0, offset)].decode()

    @cached_property
    def by_tag(self) -> dict[tuple[int, str], int]:
        return {(kind, name): number for number, (name, kind, _) in enumerate(self.types)}

    def arrays(self, tag: str) -> dict[str, set[tuple[int, ...]]]:
        """Dimensions by the names of members of ``struct NAME`` or ``union NAME`` and of all in it."""
        keyword, _, name = tag.partition(" ")
        found: dict[str, set[tuple[int, ...]]] = {}
        left, seen = [self.by_tag[UNION if keyword == "union" else STRUCT, name]], set[int]()
        while left:
            number = left.pop()
            seen.add(number)
            _, _, (_, *members) = self.types[number]
            for at in range(0, len(members), 3):
                _, dimensions = self.end_of(members[at + 1], (PTR, ARRAY))
                if dimensions:
                    found.setdefault(self.text(members[at]), set()).add(dimensions)
                inner, _ = self.end_of(members[at + 1], (ARRAY, TYPEDEF, VOLATILE, CONST))
                if self.types[inner][1] in (STRUCT, UNION) and inner not in seen:
                    left.append(inner)
        return found

    def end_of(self, number: int, kinds: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """What such types lead to, and how long the arrays among them are."""
        found = []
        while self.types[number][1] in kinds:
            _, kind, values = self.types[number]
            if kind == ARRAY:
                found.append(values[3])
            number = values[1] if kind == ARRAY else values[0]
        return number, tuple(found)


def reasons(tag: str, theirs: str, mine: str, btf: PlainBtf) -> set[str]:
    """Why the two texts differ; a line of theirs and the same of ours where nothing explains that."""
    if theirs == mine:
        return {SAME}
    lines, own = theirs.splitlines(), mine.splitlines()
    if len(lines) != len(own):
        return {f"{theirs}\n{mine}"}
    known = btf.arrays(tag)
    return {reason(*pair, known) for pair in zip(lines, own, strict=True) if pair[0] != pair[1]}


def reason(theirs: str, mine: str, known: dict[str, set[tuple[int, ...]]]) -> str:
    """Of one line."""
    pairs = list(zip(DECLARED.finditer(theirs), DECLARED.finditer(mine), strict=False))
    found = {of_array(*pair, known) for pair in pairs if pair[0][2] != pair[1][2]}
    if DECLARED.sub(r"\1", theirs) != DECLARED.sub(r"\1", mine) or len(found) != 1 or None in found:
        return f"{theirs}\n{mine}"
    return str(found.pop())


def of_array(
    theirs: re.Match[str], mine: re.Match[str], known: dict[str, set[tuple[int, ...]]]
) -> str | None:
    """Of one member, by what its record in BTF says."""
    real, own = (
        tuple(int(size or 0) for size in re.findall(r"\[(\d*)\]", each[2])) for each in (theirs, mine)
    )
    if own not in known.get(mine[1], ()):
        return None
    if real == own and 0 in own:
        return EMPTY
    return DIMENSIONS if len(real) > 1 and own == (math.prod(real),) else None
