"""Types as C spells them, for variables whose type is known from the source: ``struct list_head``,
``char *``, ``const char []``.  One name, pointers to it, and an array of those; nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import Index
from kdump_elftool.dwarf.btf_columns import Columns
from kdump_elftool.dwarf.constants import At, Form, Tag
from kdump_elftool.dwarf.entries import Column, Unit
from kdump_elftool.elf.btf_kinds import Kind

_SPELLING = re.compile(
    r"(?P<qualifier>const |volatile )?(?P<tag>struct |union |enum )?(?P<name>\w+(?: \w+)*) ?(?P<stars>\**)"
    r"(?P<array> ?\[\])?"
)
_TAGGED = {
    "struct ": (Kind.STRUCT,),
    "union ": (Kind.UNION,),
    "enum ": (Kind.ENUM, Kind.ENUM64),
    None: (Kind.TYPEDEF, Kind.INT),
}
_OTHER_NAMES = {"unsigned long": "long unsigned int", "long": "long int", "unsigned int": "unsigned"}
"""Integers have the compiler's names in BTF: gcc's where clang's is not found."""
_QUALIFIERS = {"const ": Tag.CONST_TYPE, "volatile ": Tag.VOLATILE_TYPE}


@dataclass(frozen=True)
class Spelled:
    """A type in C: name of its kind, qualifier, pointers to it, and whether it is an array of them."""

    name: str
    tag: str | None
    qualifier: str | None
    stars: int
    array: bool

    @classmethod
    def parse(cls, text: str) -> Spelled:
        """Raises ValueError."""
        found = _SPELLING.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no type that is understood here")
        parts = found.groupdict()
        return cls(parts["name"], parts["tag"], parts["qualifier"], len(parts["stars"]), bool(parts["array"]))

    def find(self, btf: Columns) -> int | None:
        """The number of the named type; 0 for void, None when the object has none of that name."""
        if self.name == "void":
            return 0
        names = [self.name, *filter(None, [_OTHER_NAMES.get(self.name)])]
        found = (find_type(btf, name, _TAGGED[self.tag]) for name in names)
        return next((number for number in found if number), None)


def find_type(btf: Columns, name: str, kinds: tuple[Kind, ...]) -> int | None:
    """The number of the first type of that name and one of these kinds."""
    at = btf.strings.find(b"\0" + name.encode() + b"\0")
    if at < 0:
        return None
    rows = np.flatnonzero(btf.name == np.uint32(at + 1))
    rows = rows[np.isin(btf.kind[rows], kinds)]
    return int(rows[0]) + 1 if len(rows) else None


class Spelling:
    """Writes spelled types into a unit, each once; their numbers are taken from ``number`` on."""

    def __init__(self, unit: Unit, btf: Columns, word: int, number: int) -> None:
        self._unit, self._btf, self._word = unit, btf, word
        self._known: dict[tuple[Tag, int], int] = {}
        self.number = number

    def write(self, text: str) -> int | None:
        """The entry of a type; None when BTF has none of its name."""
        spelled = Spelled.parse(text)
        number = spelled.find(self._btf)
        if number is None or not (number or spelled.stars):
            return None
        if spelled.qualifier is not None:
            number = self._over(_QUALIFIERS[spelled.qualifier], number)
        for _ in range(spelled.stars):
            number = self._over(Tag.POINTER_TYPE, number)
        return self._over(Tag.ARRAY_TYPE, number) if spelled.array else number

    def _over(self, tag: Tag, target: int) -> int:
        key = tag, target
        if key in self._known:
            return self._known[key]
        number, one = self.number, np.ones(1, dtype=np.bool_)
        columns = [Column(At.TYPE, Form.REF_ADDR, np.array([target]), one if target else ~one)]
        if tag == Tag.POINTER_TYPE:
            columns.append(Column(At.BYTE_SIZE, Form.DATA1, np.array([self._word])))
        at: Index = np.array([number])
        self._unit.add(tag, at, columns, parents=one if tag == Tag.ARRAY_TYPE else None)
        if tag == Tag.ARRAY_TYPE:
            self._unit.add_children(Tag.SUBRANGE_TYPE, at, np.zeros(1, dtype=np.intp), [])
        self.number += 1
        self._known[key] = number
        return number
