"""The symbols of one module, from the copy of its symbol table that the kernel keeps (CONFIG_KALLSYMS).

Symbols are ELF symbols whose values are run-time addresses by now.  This is the reference of
``kernel.modules``, which reads those of all modules at once.

References: kernel/module/kallsyms.c (add_kallsyms(), layout_symtab(), is_core_symbol()); gABI, Symbol Table.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.module_sections import SymbolTable, symbol_size
from kdump_elftool.plain.target import Target

LONGEST_NAME = 512
"""KSYM_NAME_LEN; 128 before v6.1."""
LARGEST_STRINGS = 32 << 20


class Symbol(NamedTuple):
    """A symbol; ``letter`` is its type as nm prints it, ``info`` the ELF one (0 before v5.2)."""

    vaddr: int
    size: int
    letter: str
    info: int
    name: bytes


def read_symbols(target: Target, table: SymbolTable) -> list[Symbol]:
    """The defined symbols that have a name, in the order of the table.  Raises FaultError."""
    each = symbol_size(target.word)
    data = target.read(table.symtab, table.num_symtab * each)
    letters = target.read(table.typetab, table.num_symtab) if table.typetab else None
    rows = list(struct.Struct(target.order + ("IBBHQQ" if target.word == 8 else "IIIBBH")).iter_unpack(data))
    if target.word != 8:
        rows = [(name, info, other, index, value, size) for name, value, size, info, other, index in rows]
    strings = _strings(target, table, max((row[0] for row in rows if row[3]), default=0))
    found = []
    for at, (start, info, _, index, value, size) in enumerate(rows):
        end = strings.find(b"\0", start, start + LONGEST_NAME)
        if index and start < end:
            letter = info if letters is None else letters[at]
            found.append(
                Symbol(value, size, _letter(letter), 0 if letters is None else info, strings[start:end])
            )
    return found


def _strings(target: Target, table: SymbolTable, last: int) -> bytes:
    """The names, up to the one at ``last``, and what follows it."""
    most = min(table.strtab_size, LARGEST_STRINGS)
    if last >= most:
        last = most - 1
    try:
        return target.read(table.strtab, min(last + LONGEST_NAME, most))
    except FaultError:
        return b""


def _letter(code: int) -> str:
    return chr(code) if 0x20 < code < 0x7F else "?"
