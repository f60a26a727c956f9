"""A module's symbols out of the dump as a small ELF file: its memory as sections, names of functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdump_elftool.addr import u64
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, SymbolColumns, symbol_file
from kdump_elftool.jobs.modules import LoadedModule
from kdump_elftool.kernel import modules as columns
from kdump_elftool.plain.modules import Region

_NAMES_OF_CODE = frozenset(b"tT")


def symbols_as_file(
    module: LoadedModule,
    symbols: columns.SymbolColumns,
    number: int,
    kind: ElfKind,
    e_machine: int,
    e_flags: int,
) -> bytes | None:
    """An ELF file with the module's regions as sections and its symbols; None where there are none."""
    regions = _with_code_apart(module.module.regions)
    if not regions:
        return None
    rows = symbols.of(number)
    address, base = symbols.address[rows], u64([region.base for region in regions])
    order = np.argsort(base)
    at = order[np.maximum(np.searchsorted(base[order], address, side="right") - 1, 0)]
    end = base + u64([region.size for region in regions])
    # a per-CPU variable has no address of its own
    inside = (address >= base[at]) & (address < end[at])
    rows, at = rows[inside], at[inside]
    if not len(rows):
        return None
    info, letter = symbols.info[rows], symbols.letter[rows]
    code = np.isin(letter, list(_NAMES_OF_CODE))
    upper = (letter >= ord("A")) & (letter <= ord("Z"))
    found = SymbolColumns(
        address=symbols.address[rows],
        size=symbols.size[rows],
        kind=np.where(info != 0, info & 0xF, np.where(code, c.STT_FUNC, c.STT_OBJECT)).astype(np.uint8),
        binding=np.where(info != 0, info >> 4 & 3, upper.astype(np.uint8)).astype(np.uint8),
        section=at,
        text=symbols.text,
        begin=symbols.begin[rows],
        end=symbols.end[rows],
    )
    return symbol_file(kind, e_machine, _sections(regions), found, e_flags=e_flags)


def _with_code_apart(regions: Sequence[Region]) -> list[Region]:
    """Regions that are all code or all data."""
    found = []
    for region in regions:
        code = region.text
        if code:
            found.append(Region(region.kind, region.base, code, code))
        if code < region.size:
            found.append(Region(region.kind, region.base + code, region.size - code, 0))
    return found


def _sections(regions: Sequence[Region]) -> list[Section]:
    """NOBITS sections at the regions' addresses: what they hold is in the core."""
    names: dict[str, int] = {}
    found = []
    for region in regions:
        name = ".text" if region.text else ".data"
        name = f".{region.kind}{name}" if name in names else name
        names[name] = 1
        flags = c.SHF_ALLOC | (c.SHF_EXECINSTR if region.text else c.SHF_WRITE)
        found.append(Section(name, flags, region.base, region.size))
    return found
