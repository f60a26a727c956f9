"""C's types out of BTF, ready to be written: references that lead somewhere, nothing in circles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import I64, Bools, Index
from kdump_elftool.dwarf.btf_columns import (
    DEEPEST,
    ENUMS,
    QUALIFIERS,
    STRUCTS,
    Columns,
    Elements,
    circular,
    destinations,
    elements,
    extra,
    own_rows,
    rows_of,
)
from kdump_elftool.elf.btf_kinds import Kind

REFERRING = (*QUALIFIERS, Kind.PTR, Kind.TYPEDEF)
"""Kinds whose third word is a type."""
INT_SIGNED, INT_CHAR, INT_BOOL = 1, 2, 4


@dataclass(frozen=True)
class Members:
    """Of structs and unions: ``row`` is the owner's, offsets in bits, ``bits`` 0 for what is no bit field."""

    row: Index
    nth: Index
    name: Index
    type: Index
    offset: I64
    bits: I64

    def take(self, rows: Bools) -> Members:
        """Some of them."""
        names = self.row[rows], self.nth[rows], self.name[rows], self.type[rows]
        return Members(*names, self.offset[rows], self.bits[rows])


@dataclass(frozen=True)
class Enumerators:
    """``negative`` values are to be read as signed, all others as unsigned."""

    row: Index
    nth: Index
    name: Index
    value: I64
    negative: Bools


@dataclass(frozen=True)
class Types:
    """All that the types of an object refer to.

    ``target`` is, by row, what a typedef, qualifier, pointer or array is of, or a function returns
    (0: void).  ``leads`` turns a type number into that of an entry; ``cut`` counts references that were
    left out since they closed a circle.
    """

    btf: Columns
    leads: Index
    target: Index
    members: Members
    cut: int

    def refer(self, numbers: npt.NDArray[np.integer]) -> Index:
        """Entries for type numbers as BTF has them; 0 for void."""
        return refer(self.leads, numbers)


def refer(leads: Index, numbers: npt.NDArray[np.integer]) -> Index:
    """As :meth:`Types.refer`."""
    inside = numbers < len(leads)
    return leads[np.where(inside, numbers, 0)]


def read_types(btf: Columns, base: Types | None = None) -> Types:
    """References and members of an object's own types, circles cut; ``base`` are the kernel's."""
    leads = destinations(btf)
    target = np.zeros(len(btf.kind), dtype=np.intp)
    if base is not None:
        target[: btf.first] = base.target
    rows = own_rows(btf, REFERRING)
    target[rows] = refer(leads, btf.size[rows])
    rows = own_rows(btf, (Kind.FUNC_PROTO,))
    target[rows] = passable(btf, refer(leads, btf.size[rows]))
    arrays = own_rows(btf, (Kind.ARRAY,))
    target[arrays] = passable(btf, refer(leads, extra(btf, arrays, 3)[:, 0]))
    members = _members(btf, leads)
    cut_targets, cut_members = _circles(btf, leads, target, members)
    target[cut_targets] = 0
    cut = int(cut_targets.sum() + cut_members.sum())
    return Types(btf, leads, target, members.take(~cut_members) if cut else members, cut)


def _members(btf: Columns, leads: Index) -> Members:
    rows = own_rows(btf, STRUCTS)
    found = elements(btf, rows, Kind.STRUCT)
    row = rows[found.of]
    offset, bits = found.words[:, 2].astype(np.int64), np.zeros(len(row), dtype=np.int64)
    flagged = btf.kind_flag[row]
    type_id = refer(leads, found.words[:, 1])
    size, begin = _int_bits(btf, type_id)
    bits[flagged] = offset[flagged] >> 24
    offset[flagged] &= 0xFFFFFF
    # before kind_flag (v4.20) a bit field's width was that of an integer type made for it
    odd = ~flagged & (size > 0)
    bits[odd] = size[odd]
    offset[odd] += begin[odd]
    return Members(row, found.nth, found.words[:, 0].astype(np.intp), type_id, offset, bits)


def _int_bits(btf: Columns, type_id: Index) -> tuple[I64, I64]:
    """Width and first bit of those types that are integers narrower than their size; else 0."""
    row = np.maximum(type_id - 1, 0)
    width, begin = np.zeros(len(row), dtype=np.int64), np.zeros(len(row), dtype=np.int64)
    if not len(btf.kind):
        return width, begin
    ints = np.flatnonzero((type_id > 0) & (btf.kind[row] == Kind.INT))
    word = extra(btf, row[ints], 1)[:, 0].astype(np.int64)
    narrow = (word & 0xFF) < 8 * btf.size[row[ints]].astype(np.int64)
    width[ints[narrow]] = word[narrow] & 0xFF
    begin[ints[narrow]] = word[narrow] >> 16 & 0xFF
    return width, begin


def _circles(btf: Columns, leads: Index, target: Index, members: Members) -> tuple[Bools, Bools]:
    """Which targets (by row) and which members must go.

    A type may not contain itself, and its name may not be made of itself; only by a pointer in a
    struct a type leads back to itself.
    """
    count = len(btf.kind) + 1
    number = np.arange(1, count)
    by_value = own_rows(btf, (*QUALIFIERS, Kind.TYPEDEF, Kind.ARRAY))
    contained = circular(
        np.concatenate([number[by_value], members.row + 1]),
        np.concatenate([target[by_value], members.type]),
        count,
    )
    cut = np.zeros(len(btf.kind), dtype=np.bool_)
    cut[by_value] = contained[: len(by_value)]
    protos = own_rows(btf, (Kind.FUNC_PROTO,))
    params = elements(btf, protos, Kind.FUNC_PROTO)
    named = own_rows(btf, (*REFERRING, Kind.ARRAY, Kind.FUNC_PROTO))
    spelled = circular(
        np.concatenate([number[named], number[protos][params.of]]),
        np.concatenate([target[named], parameter_types(btf, leads, params)]),
        count,
    )
    # a circle through parameters goes through a target too, since none is a prototype itself
    cut[named] |= spelled[: len(named)]
    return cut, contained[len(by_value) :] | _of_declared(btf, target, members)


def _of_declared(btf: Columns, target: Index, members: Members) -> Bools:
    """Members that are a struct which is only declared: debuggers take the one of that name instead,
    which may be the one around it."""
    inside = np.arange(len(btf.kind) + 1)
    rows = rows_of(btf, (*QUALIFIERS, Kind.TYPEDEF, Kind.ARRAY))
    inside[rows + 1] = target[rows]
    # each round doubles the steps that are gone at once
    for _ in range(DEEPEST.bit_length()):
        inside = inside[inside]
    found = inside[members.type]
    declared: Bools = (found > 0) & (btf.kind[np.maximum(found - 1, 0)] == Kind.FWD)
    return declared


def parameter_types(btf: Columns, leads: Index, params: Elements) -> Index:
    """Entries of parameters' types."""
    return passable(btf, refer(leads, params.words[:, 1]))


def passable(btf: Columns, number: Index) -> Index:
    """What can be passed to a function, returned or stored: not a function, only a pointer to one."""
    if not len(btf.kind):
        return number
    return np.where(btf.kind[np.maximum(number - 1, 0)] == Kind.FUNC_PROTO, 0, number)


def read_enumerators(btf: Columns) -> Enumerators:
    """Values of an object's own enumerations.

    Before v6.0 none was marked as signed, whatever its values.
    """
    marked = bool(np.any(btf.kind_flag[rows_of(btf, ENUMS)]))
    parts = []
    for kind in ENUMS:
        rows = own_rows(btf, (kind,))
        found = elements(btf, rows, kind)
        row = rows[found.of]
        value = _values(found)
        signed = btf.kind_flag[row] if marked else np.ones(len(row), dtype=np.bool_)
        if kind == Kind.ENUM:
            value = np.where(signed, value.astype(np.int32).astype(np.int64), value)
        negative = signed & (value < 0)
        parts.append((row, found.nth, found.words[:, 0].astype(np.intp), value, negative))
    return Enumerators(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _values(found: Elements) -> I64:
    value = found.words[:, 1].astype(np.uint64)
    if found.words.shape[1] > 2:
        value |= found.words[:, 2].astype(np.uint64) << np.uint64(32)
    return value.view(np.int64)
