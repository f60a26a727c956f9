"""The entries of C's types, as columns made of BTF's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import Bools, Index
from kdump_elftool.dwarf.btf_columns import ENUMS, STRUCTS, TYPES, Elements, elements, extra, rows_of
from kdump_elftool.dwarf.btf_types import (
    INT_BOOL,
    INT_SIGNED,
    Types,
    parameter_types,
    read_enumerators,
)
from kdump_elftool.dwarf.constants import At, Encoding, Form, Tag
from kdump_elftool.dwarf.entries import Column, Unit
from kdump_elftool.elf.btf_kinds import Kind

_TAGS = {
    Kind.PTR: Tag.POINTER_TYPE,
    Kind.CONST: Tag.CONST_TYPE,
    Kind.VOLATILE: Tag.VOLATILE_TYPE,
    Kind.RESTRICT: Tag.RESTRICT_TYPE,
    Kind.TYPEDEF: Tag.TYPEDEF,
    Kind.ARRAY: Tag.ARRAY_TYPE,
    Kind.STRUCT: Tag.STRUCTURE_TYPE,
    Kind.UNION: Tag.UNION_TYPE,
}
_MAX_VALUE = {Form.DATA1: 0x7F, Form.DATA2: 0x7FFF, Form.DATA4: 0x7FFFFFFF}
"""Up to here a reader that takes such a form for signed reads the same."""


@dataclass(frozen=True)
class Texts:
    """From BTF's string offsets to those in .debug_str: strings before ``border`` are the kernel's,
    which begin at ``base`` there; the rest, up to ``end``, at ``own``."""

    border: int
    end: int
    base: int
    own: int

    def place(self, offset: npt.NDArray[np.integer]) -> Index:
        """Offsets in .debug_str; 0 for no name, and for what lies beyond the strings."""
        where = offset.astype(np.intp)
        place = np.where(where < self.border, where + self.base, where - self.border + self.own)
        return np.where((where > 0) & (where < self.end), place, 0)


@dataclass
class Room:
    """How many parameters there may still be: any number of functions can share a prototype with 65,535.

    ``refused``: how many functions and prototypes had to do without.
    """

    left: int = 4 << 20
    refused: int = 0

    def take(self, counts: Index) -> Bools:
        """Which of the owners of so many parameters can have them."""
        fits: Bools = np.cumsum(counts) <= self.left
        self.left -= int(counts[fits].sum())
        self.refused += int((~fits & (counts > 0)).sum())
        return fits


@dataclass(frozen=True)
class TypeEntries:
    """Adds the types of an object to its unit; an entry's number is its type's."""

    unit: Unit
    types: Types
    texts: Texts
    word: int
    room: Room

    def add(self, wanted: Bools) -> int:
        """The types that are ``wanted`` (by row); returns how many they are."""
        rows = np.flatnonzero(wanted)
        kinds = self.types.btf.kind[rows]
        of = {kind: rows[kinds == kind] for kind in TYPES}
        self._base_types(of[Kind.INT], of[Kind.FLOAT])
        for kind in (Kind.CONST, Kind.VOLATILE, Kind.RESTRICT, Kind.TYPEDEF):
            self._add(_TAGS[kind], of[kind], [self._name(of[kind]), self._type(of[kind])])
        width = np.full(len(of[Kind.PTR]), self.word)
        size = Column(At.BYTE_SIZE, Form.DATA1, width)
        self._add(Tag.POINTER_TYPE, of[Kind.PTR], [size, self._type(of[Kind.PTR])])
        self._arrays(of[Kind.ARRAY])
        for kind in STRUCTS:
            self._structs(_TAGS[kind], of[kind])
        self._members(wanted)
        self._declarations(of[Kind.FWD])
        self._enums(np.concatenate([of[kind] for kind in ENUMS]), wanted)
        self._prototypes(of[Kind.FUNC_PROTO])
        return len(rows)

    def add_with_parameters(self, tag: Tag, number: Index, protos: Index, columns: list[Column]) -> None:
        """Entries with the numbers ``number``, and below each the parameters of its prototype (row)."""
        count = self.types.btf.vlen[protos]
        parents = self.room.take(count) & (count > 0)
        self.unit.add(tag, number, columns, parents=parents)
        self._parameters(number[parents], protos[parents])

    def _parameters(self, owner: Index, protos: Index) -> None:
        found = elements(self.types.btf, protos, Kind.FUNC_PROTO)
        type_id = parameter_types(self.types.btf, self.types.leads, found)
        name = self.texts.place(found.words[:, 0])
        dots = self._dots(protos, found)
        columns = [
            Column(At.NAME, Form.STRP, name[~dots], name[~dots] > 0),
            Column(At.TYPE, Form.REF_ADDR, type_id[~dots], type_id[~dots] > 0),
        ]
        self.unit.add_children(Tag.FORMAL_PARAMETER, owner[found.of[~dots]], found.nth[~dots], columns)
        self.unit.add_children(Tag.UNSPECIFIED_PARAMETERS, owner[found.of[dots]], found.nth[dots], [])

    def _dots(self, protos: Index, found: Elements) -> Bools:
        """Which parameters are an ellipsis: the last, without name and type."""
        last: Bools = found.nth + 1 == self.types.btf.vlen[protos][found.of]
        dots: Bools = last & (found.words[:, 0] == 0) & (found.words[:, 1] == 0)
        return dots

    def _add(self, tag: Tag, rows: Index, columns: list[Column], parents: Bools | None = None) -> None:
        self.unit.add(tag, rows + 1, columns, parents=parents)

    def _name(self, rows: Index) -> Column:
        place = self.texts.place(self.types.btf.name[rows])
        return Column(At.NAME, Form.STRP, place, place > 0)

    def _type(self, rows: Index) -> Column:
        target = self.types.target[rows]
        return Column(At.TYPE, Form.REF_ADDR, target, target > 0)

    def _size(self, rows: Index) -> Column:
        return Column(At.BYTE_SIZE, Form.DATA4, self.types.btf.size[rows])

    def _base_types(self, ints: Index, floats: Index) -> None:
        word = extra(self.types.btf, ints, 1)[:, 0]
        encoding = word >> np.uint32(24)
        signed, boolean = encoding & INT_SIGNED > 0, encoding & INT_BOOL > 0
        # C has no other integer of one byte than a char
        char = self.types.btf.size[ints] == 1
        kind = np.where(signed, Encoding.SIGNED, Encoding.UNSIGNED)
        kind = np.where(char, np.where(signed, Encoding.SIGNED_CHAR, Encoding.UNSIGNED_CHAR), kind)
        kind = np.where(boolean, Encoding.BOOLEAN, kind)
        for rows, values in ((ints, kind), (floats, np.full(len(floats), Encoding.FLOAT))):
            columns = [self._name(rows), self._size(rows), Column(At.ENCODING, Form.DATA1, values)]
            self._add(Tag.BASE_TYPE, rows, columns)

    def _arrays(self, rows: Index) -> None:
        """BTF cannot tell [0] from []: both are [] here."""
        parents = np.ones(len(rows), dtype=np.bool_)
        self._add(Tag.ARRAY_TYPE, rows, [self._type(rows)], parents)
        words = extra(self.types.btf, rows, 3)
        index, count = self.types.refer(words[:, 1]), words[:, 2]
        is_int = (index > 0) & (self.types.btf.kind[np.maximum(index - 1, 0)] == Kind.INT)
        columns = [
            Column(At.TYPE, Form.REF_ADDR, index, is_int),
            Column(At.COUNT, Form.DATA4, count, count > 0),
        ]
        self.unit.add_children(Tag.SUBRANGE_TYPE, rows + 1, np.zeros(len(rows), dtype=np.intp), columns)

    def _structs(self, tag: Tag, rows: Index) -> None:
        self._add(tag, rows, [self._name(rows), self._size(rows)], self.types.btf.vlen[rows] > 0)

    def _members(self, wanted: Bools) -> None:
        members = self.types.members
        rows = np.flatnonzero(wanted[members.row])
        row, bits, offset = members.row[rows], members.bits[rows], members.offset[rows]
        name = self.texts.place(members.name[rows])
        type_id = members.type[rows]
        field = bits > 0
        columns = [
            Column(At.NAME, Form.STRP, name, name > 0),
            Column(At.TYPE, Form.REF_ADDR, type_id, type_id > 0),
            Column(At.BIT_SIZE, Form.DATA1, bits, field),
            Column(At.DATA_BIT_OFFSET, Form.DATA4, offset, field),
            Column(At.DATA_MEMBER_LOCATION, Form.DATA4, offset // 8, ~field),
        ]
        self.unit.add_children(Tag.MEMBER, row + 1, members.nth[rows], columns)

    def _declarations(self, rows: Index) -> None:
        of_union = self.types.btf.kind_flag[rows]
        for tag, some in ((Tag.STRUCTURE_TYPE, rows[~of_union]), (Tag.UNION_TYPE, rows[of_union])):
            self._add(tag, some, [self._name(some), Column(At.DECLARATION, Form.FLAG_PRESENT)])

    def _enums(self, rows: Index, wanted: Bools) -> None:
        found = read_enumerators(self.types.btf)
        signed = np.zeros(len(self.types.btf.kind), dtype=np.bool_)
        signed[found.row[found.negative]] = True
        empty = self.types.btf.vlen[rows] == 0
        integer = self._integers(rows, signed[rows])
        columns = [
            self._name(rows),
            self._size(rows),
            Column(At.TYPE, Form.REF_ADDR, integer, integer > 0),
            Column(At.DECLARATION, Form.FLAG_PRESENT, None, empty),
        ]
        self._add(Tag.ENUMERATION_TYPE, rows, columns, ~empty)
        some = np.flatnonzero(wanted[found.row])
        value, negative = found.value[some], found.negative[some]
        name = self.texts.place(found.name[some])
        columns = [Column(At.NAME, Form.STRP, name, name > 0), *_constant(value, negative)]
        self.unit.add_children(Tag.ENUMERATOR, found.row[some] + 1, found.nth[some], columns)

    def _integers(self, rows: Index, signed: Bools) -> Index:
        """The integer types that enumerations of that size and sign are made of; 0 where there is none."""
        btf = self.types.btf
        ints = rows_of(btf, (Kind.INT,))
        word = extra(btf, ints, 1)[:, 0]
        plain = word >> np.uint32(24) & ~np.uint32(INT_SIGNED) == 0
        whole = word & np.uint32(0xFFFF) == 8 * btf.size[ints]
        ints, word = ints[plain & whole], word[plain & whole]
        if not len(ints):
            return np.zeros(len(rows), dtype=np.intp)
        keys, first = np.unique(_form(btf.size[ints], word >> np.uint32(24) > 0), return_index=True)
        wanted = _form(btf.size[rows], signed)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, ints[first[at]] + 1, 0)

    def _prototypes(self, rows: Index) -> None:
        columns = [Column(At.PROTOTYPED, Form.FLAG_PRESENT), self._type(rows)]
        self.add_with_parameters(Tag.SUBROUTINE_TYPE, rows + 1, rows, columns)


def _form(size: npt.NDArray[np.uint32], signed: Bools) -> Index:
    """Size and sign of an integer as one number."""
    return size.astype(np.intp) << 1 | signed


def _constant(value: npt.NDArray[np.int64], negative: Bools) -> list[Column]:
    """DW_AT_const_value in the smallest form that all readers understand alike."""
    rest = ~negative
    columns = [Column(At.CONST_VALUE, Form.SDATA, value, negative)]
    for form, most in _MAX_VALUE.items():
        fits = rest & (value >= 0) & (value <= most)
        columns.append(Column(At.CONST_VALUE, form, value, fits))
        rest &= ~fits
    columns.append(Column(At.CONST_VALUE, Form.DATA8, value.view(np.uint64), rest))
    return columns
