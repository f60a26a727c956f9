"""Variables with types: those of BTF's DATASEC records, and others whose type is told from outside.

A record says where in its section a variable lies, not where the section is: the symbols of those
whose name is unique tell, by what most of them agree on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Bools, Index
from kdump_elftool.dwarf.btf_columns import U8, elements, own_rows
from kdump_elftool.dwarf.btf_types import Types, passable
from kdump_elftool.dwarf.c_types import Spelling
from kdump_elftool.dwarf.constants import At, Form, Tag
from kdump_elftool.dwarf.entries import Column, Unit
from kdump_elftool.dwarf.strings import Lookup, Names, StringSection
from kdump_elftool.elf.btf_kinds import Kind

_DATA = b"aAbBdDgGrRsSvV"
_MOST_SECTIONS = 1 << 10
"""A kernel has one or two."""


@dataclass(frozen=True)
class Symbols:
    """What lies where: ``kind`` is nm's letter, ``size`` 0 where it is not known."""

    names: Names
    address: U64
    size: U64
    kind: U8

    def of_kinds(self, letters: bytes) -> Index:
        """The rows of these kinds."""
        return np.flatnonzero(np.isin(self.kind, np.frombuffer(letters, dtype=np.uint8)))


@dataclass(frozen=True)
class Variables:
    """``name`` as BTF's string offset, ``type`` as the number of an entry."""

    name: Index
    type: Index
    address: U64


def find_variables(types: Types, nul: Index, symbols: Symbols) -> Variables:
    """An object's own variables whose address is known; ``nul`` is where its strings end."""
    btf = types.btf
    rows = own_rows(btf, (Kind.VAR,))
    rows = rows[(btf.name[rows] > 0) & (btf.name[rows] < len(btf.strings))]
    names = Names.terminated(btf.strings, nul, btf.name[rows].astype(np.intp))
    address, known = _by_name(names, symbols)
    for section in own_rows(btf, (Kind.DATASEC,))[:_MOST_SECTIONS]:
        found = elements(btf, np.array([section]), Kind.DATASEC).words
        at = np.searchsorted(rows, found[:, 0].astype(np.intp) - 1)
        inside = at < len(rows)
        inside[inside] = rows[at[inside]] == found[inside, 0].astype(np.intp) - 1
        _by_section(at[inside], found[inside, 1].astype(np.uint64), address, known)
    type_id = passable(btf, types.refer(btf.size[rows]))
    known &= type_id > 0
    return Variables(btf.name[rows][known].astype(np.intp), type_id[known], address[known])


def _by_name(names: Names, symbols: Symbols) -> tuple[U64, Bools]:
    """Addresses of those names that one symbol has, and a mask of them."""
    rows = symbols.of_kinds(_DATA)
    found, count = Lookup.of(symbols.names.take(rows)).first(names.hashes())
    known = count == 1
    address = np.zeros(len(names), dtype=np.uint64)
    address[known] = symbols.address[rows[found[known]]]
    return address, known


def _by_section(at: Index, offset: U64, address: U64, known: Bools) -> None:
    """Addresses of a section's variables (rows ``at``) by where most of the known ones say it begins."""
    sure = known[at]
    begins, votes = np.unique(address[at[sure]] - offset[sure], return_counts=True)
    if not len(votes) or 2 * int(votes.max()) <= int(sure.sum()):
        return
    address[at] = begins[np.argmax(votes)] + offset
    known[at] = True


def add_variables(unit: Unit, number: int, name: Index, found: Variables) -> int:
    """Write them, ``name`` being their places in .debug_str; returns the next free number."""
    columns = [
        Column(At.NAME, Form.STRP, name),
        Column(At.EXTERNAL, Form.FLAG_PRESENT),
        Column(At.TYPE, Form.REF_ADDR, found.type),
        Column(At.LOCATION, Form.EXPRLOC, found.address),
    ]
    unit.add(Tag.VARIABLE, number + np.arange(len(name)), columns)
    return number + len(name)


def add_globals(
    spelling: Spelling,
    unit: Unit,
    strings: StringSection,
    symbols: Symbols,
    wanted: tuple[tuple[str, str], ...],
    known: Names,
) -> int:
    """Variables that are ``wanted`` with a type in C, if one symbol has their name and ``known`` has not.

    Returns how many there are.
    """
    if not wanted:
        return 0
    names = Names.of([name.encode() for name, _ in wanted])
    address, single = _by_name(names, symbols)
    _, seen = Lookup.of(known).first(names.hashes())
    rows = np.flatnonzero(single & (seen == 0)).tolist()
    typed = [(row, number) for row in rows if (number := spelling.write(wanted[row][1])) is not None]
    if not typed:
        return 0
    at, types = np.array(typed, dtype=np.intp).T
    places = np.array([strings.put(names[row]) for row in at.tolist()])
    add_variables(unit, spelling.number, places, Variables(at, types, address[at]))
    return len(at)
