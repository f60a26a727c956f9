"""Debugging entries as columns: .debug_info and .debug_abbrev are laid out and filled by numpy.

Every form that is used has a fixed size, so all entries with the same attributes are rows of one
table.  Entries below a unit have numbers, by which others refer to them and in whose order they are
written; what is below those (members, parameters, ...) goes by its parent's number and its place
there.  Deeper than that nothing goes: C's types don't need it.

References: DWARF 5, 7.5 (headers, abbreviations, forms), 7.28 (range lists).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index
from kdump_elftool.dwarf.constants import (
    CHILDREN_NO,
    CHILDREN_YES,
    OP_ADDR,
    UT_COMPILE,
    At,
    Form,
    Rle,
    Tag,
)

_PLACES = 17
"""Bits for a child's place below its parent: BTF counts to 65,535."""
_END = (1 << _PLACES) - 1
HEADER_SIZE = 12
SDATA_SIZE = 10


@dataclass(frozen=True)
class Column:
    """One attribute of many entries; ``present`` says which of them have it (None: all).

    ``values`` are numbers for the form: offsets into .debug_str for ``strp``, numbers of entries for
    ``ref_addr``, the address of DW_OP_addr for ``exprloc``, nothing for ``flag_present``.
    """

    attribute: At
    form: Form
    values: npt.NDArray[np.integer] | None = None
    present: Bools | None = None


@dataclass(frozen=True)
class _Shape:
    """What an abbreviation says.  A ``head`` is a unit's own entry, with the unit's header before it."""

    tag: Tag
    children: bool
    attributes: tuple[tuple[At, Form], ...]
    head: bool = False


@dataclass(frozen=True)
class _Group:
    """Entries of one shape: sort key, and the columns of those attributes that take bytes."""

    shape: _Shape
    key: npt.NDArray[np.int64]
    columns: tuple[npt.NDArray[np.integer], ...]


class Abbreviations:
    """.debug_abbrev: shapes with their codes, shared by all units."""

    def __init__(self) -> None:
        self._codes: dict[_Shape, int] = {}

    def code(self, shape: _Shape) -> bytes:
        """The shape's code as it is written; from the 128th shape on it has two bytes."""
        return uleb(self._codes.setdefault(shape, len(self._codes) + 1))

    def finish(self) -> bytes:
        """The section."""
        out = bytearray()
        for shape, code in self._codes.items():
            out += uleb(code) + uleb(shape.tag)
            out.append(CHILDREN_YES if shape.children else CHILDREN_NO)
            for attribute, form in shape.attributes:
                out += uleb(attribute) + uleb(form)
            out += b"\0\0"
        return bytes(out + b"\0")


def uleb(value: int) -> bytes:
    """ULEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Unit:
    """The entries of a compilation unit, and of others behind it, collected and then written in one go.

    ``order`` is numpy's byte order, ``word`` the size of an address.  ``base`` are the places of
    another unit's entries, in .debug_info, by their numbers: references may go there.
    """

    def __init__(self, abbreviations: Abbreviations, order: str, word: int, base: U64 | None = None) -> None:
        self._abbreviations = abbreviations
        self._order, self._word = order, word
        self._base = np.zeros(0, dtype=np.uint64) if base is None else base
        self._groups: list[_Group] = []

    def add(
        self, tag: Tag, number: Index, columns: Sequence[Column], *, parents: Bools | None = None
    ) -> None:
        """Entries below the unit, by their numbers; ``parents`` says which of them have children."""
        self._add(tag, number.astype(np.int64) << _PLACES, columns, parents)

    def add_children(self, tag: Tag, parent: Index, nth: Index, columns: Sequence[Column]) -> None:
        """Entries below entries: their parents' numbers, and their places there, from 0."""
        self._add(tag, (parent.astype(np.int64) << _PLACES) + nth + 1, columns, None)

    def start_units(self, number: Index, columns: Sequence[Column]) -> None:
        """Units behind this one, by the numbers of their own entries: higher ones lie in them."""
        attributes = tuple((column.attribute, column.form) for column in columns)
        shape = _Shape(Tag.COMPILE_UNIT, True, attributes, head=True)
        values = tuple(column.values for column in columns if column.values is not None)
        self._groups.append(_Group(shape, number.astype(np.int64) << _PLACES, values))

    def _add(
        self, tag: Tag, key: npt.NDArray[np.int64], columns: Sequence[Column], parents: Bools | None
    ) -> None:
        masks = [column.present for column in columns] + [parents]
        variant = np.zeros(len(key), dtype=np.int64)
        for bit, mask in enumerate(masks):
            if mask is not None:
                variant |= mask.astype(np.int64) << bit
        for code in np.flatnonzero(np.bincount(variant)).tolist() if len(key) else ():
            rows = np.flatnonzero(variant == code)
            used = [column for bit, column in enumerate(columns) if column.present is None or code >> bit & 1]
            children = bool(code >> len(columns) & 1)
            shape = _Shape(tag, children, tuple((column.attribute, column.form) for column in used))
            values = tuple(column.values[rows] for column in used if column.values is not None)
            self._groups.append(_Group(shape, key[rows], values))

    def finish(self, start: int, columns: Sequence[Column]) -> tuple[bytes, U64]:
        """The unit that begins at ``start`` of .debug_info, and its entries' places there by number.

        ``columns`` are the attributes of the unit's own entry, one value each.
        """
        top = _Shape(Tag.COMPILE_UNIT, True, tuple((column.attribute, column.form) for column in columns))
        head = self._rows(
            _Group(
                top, np.zeros(1, dtype=np.int64), tuple(c.values for c in columns if c.values is not None)
            ),
            np.zeros(0, dtype=np.uint64),
        ).tobytes()
        groups = [*self._groups, self._terminators()]
        sizes = [self._dtype(group.shape).itemsize for group in self._groups] + [1]
        places, total = _lay_out(groups, sizes, start + HEADER_SIZE + len(head))
        table = self._by_number(groups, places)
        body = np.zeros(total + 1, dtype=np.uint8)
        first = start + HEADER_SIZE + len(head)
        ends = self._ends(places, first + total + 1)
        for group, place in zip(self._groups, places, strict=False):
            length = ends[np.searchsorted(ends, place + 1) + 1] - place - 5 if group.shape.head else None
            rows = self._rows(group, table, length)
            body[(place - first)[:, None] + np.arange(rows.shape[1])] = rows
        return self._header(int(ends[0]) - start - 4) + head + body.tobytes(), table

    def _ends(self, places: list[Index], last: int) -> Index:
        """Where units end: before the next one's header, which the null entry of the one before precedes."""
        heads = [place + 1 for group, place in zip(self._groups, places, strict=False) if group.shape.head]
        starts = np.sort(np.concatenate([np.zeros(0, dtype=np.intp), *heads]))
        return np.append(starts, last)

    def _header(self, length: int) -> bytes:
        order = self._order
        kind = bytes([UT_COMPILE, self._word])
        return number(length, 4, order) + number(5, 2, order) + kind + number(0, 4, order)

    def _terminators(self) -> _Group:
        """The null entries that end the children of an entry."""
        keys = [group.key for group in self._groups if group.shape.children and not group.shape.head]
        key = np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)
        return _Group(_Shape(Tag.COMPILE_UNIT, False, ()), key + _END, ())

    def _by_number(self, groups: list[_Group], places: list[Index]) -> U64:
        """Where each entry below the unit lies, by its number; 0 for a number that none has."""
        top = [np.flatnonzero(group.key & _END == 0) for group in groups]
        numbers = [group.key[rows] >> _PLACES for group, rows in zip(groups, top, strict=True)]
        last = max((int(column.max()) for column in numbers if len(column)), default=0)
        table = np.zeros(max(last + 1, len(self._base)), dtype=np.uint64)
        table[: len(self._base)] = self._base
        for column, rows, place in zip(numbers, top, places, strict=True):
            table[column] = place[rows]
        return table

    def _dtype(self, shape: _Shape) -> np.dtype[np.void]:
        fields: list[tuple[str, object]] = []
        if shape.head:
            fields += [("null", "u1"), ("length", f"{self._order}u4"), ("version", f"{self._order}u2")]
            fields += [("kind", "u1"), ("word", "u1"), ("abbreviations", "u4")]
        fields.append(("code", ("u1", (len(self._abbreviations.code(shape)),))))
        for at, (_, form) in enumerate(shape.attributes):
            if form == Form.EXPRLOC:
                fields += [
                    (f"length{at}", "u1"),
                    (f"op{at}", "u1"),
                    (f"a{at}", f"{self._order}u{self._word}"),
                ]
            elif form == Form.SDATA:
                fields.append((f"a{at}", ("u1", (SDATA_SIZE,))))
            elif form != Form.FLAG_PRESENT:
                size = self._word if form == Form.ADDR else _SIZES[form]
                fields.append((f"a{at}", f"{self._order}u{size}"))
        return np.dtype(fields)

    def _rows(self, group: _Group, table: U64, length: Index | None = None) -> npt.NDArray[np.uint8]:
        """The group's entries, a row of bytes each; ``length`` is that of the units they are heads of."""
        dtype = self._dtype(group.shape)
        rows = np.zeros(len(group.key), dtype=dtype)
        if length is not None:
            rows["length"], rows["version"] = length, 5
            rows["kind"], rows["word"] = UT_COMPILE, self._word
        rows["code"] = np.frombuffer(self._abbreviations.code(group.shape), dtype=np.uint8)
        values = iter(group.columns)
        for at, (_, form) in enumerate(group.shape.attributes):
            if form == Form.FLAG_PRESENT:
                continue
            column = next(values)
            if form == Form.REF_ADDR:
                column = table[column]
                if not column.all():
                    raise ValueError("an entry refers to one that is neither in its unit nor in the base")
            elif form == Form.SDATA:
                column = sleb(column.astype(np.int64))
            elif form == Form.EXPRLOC:
                rows[f"length{at}"], rows[f"op{at}"] = 1 + self._word, OP_ADDR
            rows[f"a{at}"] = column
        return rows.view(np.uint8).reshape(len(rows), dtype.itemsize)


_SIZES = {
    Form.DATA1: 1,
    Form.DATA2: 2,
    Form.DATA4: 4,
    Form.DATA8: 8,
    Form.STRP: 4,
    Form.REF_ADDR: 4,
    Form.SEC_OFFSET: 4,
}


def _lay_out(groups: list[_Group], sizes: list[int], first: int) -> tuple[list[Index], int]:
    """Where each group's entries lie, in the order of their keys from ``first``, and the bytes of all."""
    key = np.concatenate([group.key for group in groups])
    size = np.repeat(np.array(sizes, dtype=np.intp), [len(group.key) for group in groups])
    order = np.argsort(key, kind="stable")
    ends = np.cumsum(size[order])
    place = np.empty(len(key), dtype=np.intp)
    place[order] = first + ends - size[order]
    borders = np.cumsum([len(group.key) for group in groups])[:-1]
    return np.split(place, borders), int(ends[-1]) if len(ends) else 0


def sleb(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """SLEB128, each padded to ten bytes."""
    shifts = np.minimum(7 * np.arange(SDATA_SIZE), 63)
    digits = (values[:, None] >> shifts & 0x7F).astype(np.uint8)
    digits[:, :-1] |= 0x80
    return digits


def range_list(start: U64, end: U64, order: str, word: int) -> tuple[bytes, int]:
    """A contribution to .debug_rnglists with one list of half-open ranges, and where in it that begins."""
    body = bytearray()
    for low, high in zip(start.tolist(), end.tolist(), strict=True):
        body.append(Rle.START_LENGTH)
        body += number(low, word, order) + uleb(high - low)
    body.append(Rle.END_OF_LIST)
    head = number(5, 2, order) + bytes([word, 0]) + number(0, 4, order)
    return number(len(head) + len(body), 4, order) + head + bytes(body), 4 + len(head)


class RangeLists:
    """.debug_rnglists as it grows: a contribution for each list."""

    def __init__(self, order: str, word: int) -> None:
        self._order, self._word = order, word
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, start: U64, end: U64) -> int:
        """Where a list of these half-open ranges begins."""
        body, at = range_list(start, end, self._order, self._word)
        at += self._size
        self._pieces.append(body)
        self._size += len(body)
        return at

    def finish(self) -> bytes:
        """The section."""
        return b"".join(self._pieces)


def number(value: int, size: int, order: str) -> bytes:
    """An unsigned number of that many bytes in numpy's byte order."""
    return value.to_bytes(size, "little" if order == "<" else "big")
