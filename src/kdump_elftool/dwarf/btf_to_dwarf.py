"""Types, functions and variables of BTF objects as DWARF: one unit for each object.

The kernel's unit comes first; those of modules refer into it.  Names stay where BTF has them, since
.debug_str takes its string sections over.  A function gets its prototype, its parameters' names and
its address; where a parameter is at run time BTF does not say, so they have no location.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import MASK64, U64, Bools, Index, Ranges, merge_ranges, subtract_ranges
from kdump_elftool.dwarf.btf_columns import TYPES, Columns, own_rows
from kdump_elftool.dwarf.btf_entries import Room, Texts, TypeEntries
from kdump_elftool.dwarf.btf_types import REFERRING, Types, read_types
from kdump_elftool.dwarf.btf_variables import Symbols, add_globals, add_variables, find_variables
from kdump_elftool.dwarf.c_types import Spelling
from kdump_elftool.dwarf.constants import LANG_C11, PRODUCER, At, Form, Tag
from kdump_elftool.dwarf.entries import Abbreviations, Column, RangeLists, Unit
from kdump_elftool.dwarf.source_entries import NO_SOURCES, Sources
from kdump_elftool.dwarf.strings import Lookup, Names, StringSection, ends
from kdump_elftool.elf.btf_kinds import Kind

_NEAR = 1 << 16
"""Code that lies no further apart than this is one range of its unit."""
_TEXT = b"tTwW"


@dataclass(frozen=True)
class Functions:
    """Symbols (rows) that BTF has a prototype for (row), under the name (offset) that BTF has.

    ``part``: which of them the compiler split off or made of such a function: their own names go on behind
    a dot (NAME.cold, NAME.isra.0, NAME.constprop.0, NAME.part.0).
    """

    symbol: Index
    proto: Index
    name: Index
    part: Bools
    size: U64

    def take(self, rows: Index) -> Functions:
        """Some of them."""
        return Functions(
            self.symbol[rows], self.proto[rows], self.name[rows], self.part[rows], self.size[rows]
        )


@dataclass(frozen=True)
class _Code:
    """What was added of an object's code: how much, the functions of no source file, and the numbers of the
    source files' units."""

    functions: int
    variables: int
    unplaced: int
    outside: Functions
    heads: Index


@dataclass(frozen=True)
class Written:
    """What a unit holds; ``cut`` references would have closed circles, ``unplaced`` functions have no
    symbol, ``bare`` functions and prototypes have lost their parameters, of which there were too many."""

    name: str
    types: int
    functions: int
    variables: int
    cut: int
    unplaced: int
    bare: int = 0


@dataclass(frozen=True)
class DebugSections:
    """The sections, and what is in them by unit."""

    info: bytes
    abbrev: bytes
    str: bytes
    rnglists: bytes
    aranges: bytes
    units: tuple[Written, ...]


class BtfToDwarf:
    """Collects units; the kernel's must be the first if modules follow.

    ``order`` is numpy's byte order, ``word`` the bytes of an address.
    """

    def __init__(self, order: str, word: int) -> None:
        self._order, self._word = order, word
        self._abbreviations = Abbreviations()
        self._strings = StringSection()
        self._info: list[bytes] = []
        self._ranges = RangeLists(order, word)
        self._tables: list[bytes] = []
        self._base_places: U64 = np.zeros(1, dtype=np.uint64)
        self._base_types: Types | None = None
        self._base_ends: Index = np.zeros(0, dtype=np.intp)
        self._base_strings = 0
        self._units: list[Written] = []
        self._room = Room()

    def add(
        self,
        name: str,
        btf: Columns,
        symbols: Symbols,
        wanted: tuple[tuple[str, str], ...] = (),
        sources: Sources = NO_SOURCES,
    ) -> None:
        """An object with the symbols of its code and data.

        ``wanted`` are variables with their types in C, for those that BTF has no type for.  Each of
        ``sources`` becomes a unit behind the object's own, with the functions in its ranges.
        """
        is_base = not btf.first
        types = read_types(btf, None if is_base else self._base_types)
        nul = ends(btf.strings) if is_base else self._ends(btf)
        unit = Unit(self._abbreviations, self._order, self._word, None if is_base else self._base_places)
        texts = self._take_strings(btf)
        bare = self._room.refused
        entries = TypeEntries(unit, types, texts, self._word, self._room)
        count = entries.add(self._wanted(types))
        code = self._add_code(entries, nul, symbols, wanted, sources)
        top = self._top(name, symbols.address[code.outside.symbol], code.outside.size, sources)
        body, places = unit.finish(sum(map(len, self._info)), top)
        self._info.append(body)
        # the null entry of the unit before comes first
        starts = places[code.heads].astype(np.intp) + 1
        self._tables.append(sources.address_table(starts, self._order, self._word))
        if is_base:
            # the last types may have no entry
            known = places[: len(btf.kind) + 1]
            self._base_places = np.zeros(len(btf.kind) + 1, dtype=np.uint64)
            self._base_places[: len(known)] = known
            self._base_types, self._base_ends = types, nul
        bare = self._room.refused - bare
        of_code = (code.functions, code.variables, types.cut, code.unplaced)
        self._units.append(Written(name, count, *of_code, bare))

    def finish(self) -> DebugSections:
        """All sections."""
        return DebugSections(
            b"".join(self._info),
            self._abbreviations.finish(),
            self._strings.finish(),
            self._ranges.finish(),
            b"".join(self._tables),
            tuple(self._units),
        )

    def _ends(self, btf: Columns) -> Index:
        """Where a module's strings end, the kernel's included."""
        own = ends(btf.strings[btf.first_string :]) + btf.first_string
        return np.concatenate([self._base_ends[:-1], own])

    def _take_strings(self, btf: Columns) -> Texts:
        own = self._strings.append(btf.strings[btf.first_string :])
        if not btf.first:
            self._base_strings = own
        return Texts(btf.first_string, len(btf.strings), self._base_strings, own)

    def _wanted(self, types: Types) -> Bools:
        """Types to write: the object's own, prototypes only if something refers to them.

        A module may be the first to refer to one of the kernel's: it gets a copy.
        """
        btf = types.btf
        is_used = np.zeros(len(btf.kind) + 1, dtype=np.bool_)
        is_used[types.target[own_rows(btf, REFERRING)]] = True
        is_used[types.members.type] = True
        wanted = np.zeros(len(btf.kind), dtype=np.bool_)
        wanted[own_rows(btf, TYPES)] = True
        used = np.flatnonzero(is_used[1:])
        protos = used[btf.kind[used] == Kind.FUNC_PROTO]
        wanted[own_rows(btf, (Kind.FUNC_PROTO,))] = False
        wanted[protos] = True
        placed = self._base_places[1 : btf.first + 1] > 0
        wanted[: btf.first] &= ~placed
        return wanted

    def _add_code(
        self,
        entries: TypeEntries,
        nul: Index,
        symbols: Symbols,
        wanted: tuple[tuple[str, str], ...],
        sources: Sources,
    ) -> _Code:
        """Functions and variables, and then the units of ``sources``, each before the functions in it."""
        functions, unplaced = find_functions(entries.types.btf, nul, symbols)
        unit_of, size = sources.at(symbols.address[functions.symbol], functions.size)
        functions = replace(functions, size=size)
        outside = functions.take(np.flatnonzero(unit_of < 0))
        number = len(entries.types.btf.kind) + 1
        self._add_functions(entries, outside, symbols, number + np.arange(len(outside.symbol)))
        number += len(outside.symbol)
        variables, number = self._add_variables(entries, nul, symbols, wanted, number)
        inside = np.argsort(unit_of, kind="stable")[len(outside.symbol) :]
        heads, numbers = sources.numbers(unit_of[inside], number)
        self._add_functions(entries, functions.take(inside), symbols, numbers)
        if len(heads):
            entries.unit.start_units(heads, sources.heads(self._strings, self._ranges))
        return _Code(len(functions.symbol), variables, unplaced, outside, heads)

    def _add_functions(
        self, entries: TypeEntries, functions: Functions, symbols: Symbols, numbers: Index
    ) -> None:
        """Functions with their parameters, as entries of these numbers."""
        name = entries.texts.place(functions.name)
        strings, places = symbols.names.take(functions.symbol[functions.part]).packed()
        name[functions.part] = places + self._strings.append(strings)
        target = entries.types.target[functions.proto]
        size = np.minimum(functions.size, np.uint64(0xFFFFFFFF))
        is_global = symbols.kind[functions.symbol] == ord("T")
        columns = [
            Column(At.NAME, Form.STRP, name),
            Column(At.EXTERNAL, Form.FLAG_PRESENT, None, is_global),
            Column(At.PROTOTYPED, Form.FLAG_PRESENT),
            Column(At.TYPE, Form.REF_ADDR, target, target > 0),
            Column(At.LOW_PC, Form.ADDR, symbols.address[functions.symbol]),
            Column(At.HIGH_PC, Form.DATA4, size),
        ]
        entries.add_with_parameters(Tag.SUBPROGRAM, numbers, functions.proto, columns)

    def _add_variables(
        self,
        entries: TypeEntries,
        nul: Index,
        symbols: Symbols,
        wanted: tuple[tuple[str, str], ...],
        number: int,
    ) -> tuple[int, int]:
        """Variables; returns how many, and the next free number."""
        btf = entries.types.btf
        found = find_variables(entries.types, nul, symbols)
        number = add_variables(entries.unit, number, entries.texts.place(found.name), found)
        known = Names.terminated(btf.strings, nul, found.name)
        spelling = Spelling(entries.unit, btf, self._word, number)
        more = add_globals(spelling, entries.unit, self._strings, symbols, wanted, known)
        return len(found.name) + more, spelling.number + more

    def _top(self, name: str, address: U64, size: U64, sources: Sources) -> list[Column]:
        """The unit's own entry, and its ranges: those of its functions without what is in ``sources``."""
        columns = [
            Column(At.PRODUCER, Form.STRP, np.array([self._strings.put(PRODUCER)])),
            Column(At.LANGUAGE, Form.DATA1, np.array([LANG_C11])),
            Column(At.NAME, Form.STRP, np.array([self._strings.put(name.encode())])),
        ]
        if len(address):
            nearer = 0 if sources.units else _NEAR
            extent = subtract_ranges(_extent(address, size, nearer), sources.covered)
            at = self._ranges.add(extent.start, extent.end)
            columns.append(Column(At.LOW_PC, Form.ADDR, np.zeros(1, dtype=np.uint64)))
            columns.append(Column(At.RANGES, Form.SEC_OFFSET, np.array([at])))
        return columns


def _extent(address: U64, size: U64, nearer: int) -> Ranges:
    """Sorted ranges, those that lie no further apart than ``nearer`` as one."""
    near = np.uint64(nearer)
    # behind the last address there is no room for a range
    address = np.minimum(address, np.uint64(MASK64 - 1))
    room = np.minimum(size, np.uint64(MASK64) - address)
    end = address + room
    wide = np.where(end < np.uint64(MASK64) - near, end + near, end)
    merged = merge_ranges(address, wide)
    last = np.searchsorted(merged.start, address, side="right") - 1
    reach = np.zeros(len(merged), dtype=np.uint64)
    np.maximum.at(reach, last, end)
    return Ranges(merged.start, reach)


def find_functions(btf: Columns, nul: Index, symbols: Symbols) -> tuple[Functions, int]:
    """Symbols of code that have a prototype, one at each address; and how many functions have no symbol.

    ``nul`` is where BTF's strings end.
    """
    funcs = own_rows(btf, (Kind.FUNC,))
    proto = btf.size[funcs].astype(np.intp) - 1
    inside = (proto >= 0) & (proto < len(btf.kind))
    good = inside & (btf.kind[np.where(inside, proto, 0)] == Kind.FUNC_PROTO)
    good &= (btf.name[funcs] > 0) & (btf.name[funcs] < len(btf.strings))
    funcs, proto = funcs[good], proto[good]
    names = Names.terminated(btf.strings, nul, btf.name[funcs].astype(np.intp))
    rows = symbols.of_kinds(_TEXT)
    rows = rows[symbols.size[rows] > 0]
    own = symbols.names.take(rows)
    parts, stems = own.stems()
    found, _ = Lookup.of(names).first(np.concatenate([own.hashes(), stems.hashes()]))
    part = np.arange(len(found)) >= len(rows)
    rows = np.concatenate([rows, rows[parts]])[found >= 0]
    part, found = part[found >= 0], found[found >= 0]
    # of several at one address that which has BTF's name
    _, first = np.unique(symbols.address[rows], return_index=True)
    rows, found, part = rows[first], found[first], part[first]
    unplaced = len(funcs) - len(np.unique(found))
    name = btf.name[funcs[found]].astype(np.intp)
    return Functions(rows, proto[found], name, part, symbols.size[rows]), unplaced
