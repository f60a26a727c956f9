"""What BTF columns say beyond their rows: elements of records, what references lead to, what goes in circles.

A type's number is that of BTF: row i is type i + 1, 0 is void.  Nothing in the columns is trusted:
a reference to what is no type, or beyond the table, leads to void; circles that C cannot have (and
that would send a debugger into endless recursion) are found here, to be cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import Bools, Index
from kdump_elftool.elf.btf_kinds import HEAD, WORDS_EACH, Kind

U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]

QUALIFIERS = (Kind.VOLATILE, Kind.CONST, Kind.RESTRICT)
STRUCTS = (Kind.STRUCT, Kind.UNION)
ENUMS = (Kind.ENUM, Kind.ENUM64)
TYPES = (
    *STRUCTS,
    *ENUMS,
    *QUALIFIERS,
    *(Kind.INT, Kind.FLOAT, Kind.PTR, Kind.ARRAY, Kind.FWD, Kind.TYPEDEF, Kind.FUNC_PROTO),
)
"""Kinds that are types of C, and become an entry each."""
DEEPEST = 128
"""Steps from a type to what it is made of, circles apart."""


class Columns(Protocol):
    """A BTF object, or a module's behind that of its kernel, as columns (:class:`kernel.btf.Btf`).

    ``words`` is the type section, in which record i begins at ``start[i]``; ``size`` is the third word
    of each record.  Rows from ``first`` on, and strings from ``first_string`` on, are the module's own.
    """

    @property
    def words(self) -> U32: ...
    @property
    def strings(self) -> bytes: ...
    @property
    def start(self) -> Index: ...
    @property
    def name(self) -> U32: ...
    @property
    def kind(self) -> U8: ...
    @property
    def vlen(self) -> Index: ...
    @property
    def kind_flag(self) -> Bools: ...
    @property
    def size(self) -> U32: ...
    @property
    def first(self) -> int: ...
    @property
    def first_string(self) -> int: ...


@dataclass(frozen=True)
class Elements:
    """Members, enumerators or parameters: ``of[i]`` is the position of the owner in the rows that were
    given, ``nth[i]`` the place there, ``words[i]`` the element itself."""

    of: Index
    nth: Index
    words: U32


def rows_of(btf: Columns, kinds: tuple[Kind, ...], first: int = 0) -> Index:
    """All rows of these kinds, from ``first`` on."""
    wanted = np.zeros(256, dtype=np.bool_)
    wanted[list(kinds)] = True
    return np.flatnonzero(wanted[btf.kind[first:]]) + first


def own_rows(btf: Columns, kinds: tuple[Kind, ...]) -> Index:
    """The object's own rows of these kinds, without those of the kernel below it."""
    return rows_of(btf, kinds, btf.first)


def elements(btf: Columns, rows: Index, kind: Kind) -> Elements:
    """The elements of these rows, which are of that kind or one whose elements are as long."""
    each = WORDS_EACH[kind]
    count = btf.vlen[rows]
    of = np.repeat(np.arange(len(rows)), count)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    at = btf.start[rows][of] + HEAD + each * nth
    return Elements(of, nth, btf.words[at[:, None] + np.arange(each)])


def extra(btf: Columns, rows: Index, count: int) -> U32:
    """The words behind the first three of these rows: an array of (rows, count)."""
    words: U32 = btf.words[btf.start[rows][:, None] + HEAD + np.arange(count)]
    return words


def destinations(btf: Columns) -> Index:
    """Where a reference to each type number leads: to itself, through type tags, or to void."""
    count = len(btf.kind)
    leads = np.arange(count + 1)
    tags = rows_of(btf, (Kind.TYPE_TAG,)) + 1
    leads[tags] = np.where(btf.size[tags - 1] <= count, btf.size[tags - 1], 0)
    # each round doubles the steps that are gone at once
    for _ in range(DEEPEST.bit_length()):
        leads[tags] = leads[leads[tags]]
    is_type = np.zeros(256, dtype=np.bool_)
    is_type[list(TYPES)] = True
    known = np.concatenate([[False], is_type[btf.kind]])
    return np.where(known[leads], leads, 0)


def circular(source: Index, target: Index, count: int) -> Bools:
    """Which edges of a graph of ``count`` nodes lie on a circle or further than DEEPEST from an end."""
    alive = np.arange(len(source))
    for leaving, reached in ((source, target), (target, source)):
        for _ in range(DEEPEST):
            has_edges = np.zeros(count, dtype=np.bool_)
            has_edges[leaving[alive]] = True
            kept = alive[has_edges[reached[alive]]]
            if len(kept) == len(alive):
                break
            alive = kept
        else:
            break
    result = np.zeros(len(source), dtype=np.bool_)
    result[alive] = True
    return result
