"""The symbols of all modules as columns.

The kernel keeps a copy of each module's symbol table: ELF symbols whose values are run-time addresses.
What is in it is checked by the reader that found it (``plain.module_sections``, which runs inside gdb as
well); this reads the tables of hundreds of modules in a few steps each.

References: kernel/module/kallsyms.c (add_kallsyms()), kernel/module.c before v5.18; gABI, Symbol Table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Index
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import FaultError
from kdump_elftool.memory.virtual import VirtualMemory

U8 = npt.NDArray[np.uint8]

LONGEST_NAME = 512
"""KSYM_NAME_LEN; 128 before v6.1."""
_LARGEST_STRINGS = 32 << 20
_MOST_TEXT = 256 << 20
_MOST_SYMBOLS = 8 << 20


class Table(Protocol):
    """Where a module's symbols are (``plain.module_sections.SymbolTable``)."""

    @property
    def symtab(self) -> int:
        """Address of the ELF symbols."""

    @property
    def num_symtab(self) -> int:
        """How many."""

    @property
    def strtab(self) -> int:
        """Address of their names."""

    @property
    def strtab_size(self) -> int:
        """Bytes that may be names."""

    @property
    def typetab(self) -> int:
        """Address of a letter for each; 0 where it is in ``st_info``."""


@dataclass(frozen=True)
class SymbolColumns:
    """One row a symbol, module by module, in the order of each one's table.

    ``table`` is the index of its table among those asked for; ``letter`` its type as nm prints it,
    ``info`` the ELF one, 0 where the kernel does not keep it.  ``text`` has the names, from ``begin`` to
    ``end``.
    """

    table: Index
    address: U64
    size: U64
    letter: U8
    info: U8
    text: bytes
    begin: Index
    end: Index

    def __len__(self) -> int:
        return len(self.address)

    def name(self, row: int) -> bytes:
        """The name of one row."""
        return self.text[self.begin[row] : self.end[row]]

    def of(self, table: int) -> Index:
        """The rows of one table."""
        return np.flatnonzero(self.table == table)


def read_module_symbols(
    memory: VirtualMemory, order: str, word: int, tables: Sequence[Table | None]
) -> SymbolColumns:
    """The defined symbols with a name of all these tables; of those that cannot be read, none."""
    kind = ElfKind(8 * word, order)
    parts: list[_Part] = []
    symbols = text = 0
    for number, table in enumerate(tables):
        if table is None or symbols + table.num_symtab > _MOST_SYMBOLS or text > _MOST_TEXT:
            continue
        part = _read(memory, kind, table, number, text)
        if part is not None:
            parts.append(part)
            symbols += len(part.symbols)
            text += len(part.strings)
    none = np.zeros(0, dtype=kind.sym)
    found = np.concatenate([none, *(part.symbols for part in parts)])
    return SymbolColumns(
        table=np.concatenate([_NO_ROWS, *(np.full(len(part.symbols), part.table) for part in parts)]),
        address=found["st_value"].astype(np.uint64),
        size=found["st_size"].astype(np.uint64),
        letter=np.concatenate([_NO_BYTES, *(part.letter for part in parts)]),
        info=np.concatenate([_NO_BYTES, *(part.info for part in parts)]),
        text=b"".join(part.strings for part in parts),
        begin=np.concatenate([_NO_ROWS, *(part.begin for part in parts)]),
        end=np.concatenate([_NO_ROWS, *(part.end for part in parts)]),
    )


_NO_ROWS = np.zeros(0, dtype=np.intp)
_NO_BYTES = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class _Part:
    """The symbols of one table; ``begin`` and ``end`` count from the first name of all tables."""

    table: int
    symbols: npt.NDArray[np.void]
    letter: U8
    info: U8
    strings: bytes
    begin: Index
    end: Index


def _read(memory: VirtualMemory, kind: ElfKind, table: Table, number: int, before: int) -> _Part | None:
    try:
        symbols = np.frombuffer(
            memory.read(table.symtab, table.num_symtab * kind.sym.itemsize), dtype=kind.sym
        )
        types = memory.read(table.typetab, table.num_symtab) if table.typetab else None
        start = symbols["st_name"].astype(np.intp)
        defined = symbols["st_shndx"] != c.SHN_UNDEF
        size = min(table.strtab_size, _LARGEST_STRINGS, int(start[defined].max(initial=0)) + LONGEST_NAME)
        strings = memory.read(table.strtab, size)
    except FaultError:
        return None
    nul = np.append(np.flatnonzero(np.frombuffer(strings, dtype=np.uint8) == 0), np.iinfo(np.intp).max)
    end = nul[np.searchsorted(nul, start)]
    rows = np.flatnonzero(defined & (end > start) & (end - start < LONGEST_NAME))
    info = symbols["st_info"]
    letter = info if types is None else np.frombuffer(types, dtype=np.uint8)
    kept = info if types is not None else np.zeros(len(info), dtype=np.uint8)
    return _Part(
        number, symbols[rows], letter[rows], kept[rows], strings, before + start[rows], before + end[rows]
    )
