"""Numbers as values of gdb, with the kernel's types where gdb knows them."""

from __future__ import annotations

from typing import Any

import gdb

from kdump_elftool.gdbside.target import lookup_type

MASK64 = (1 << 64) - 1


def word(address: int) -> Any:
    """An unsigned long."""
    return gdb.Value(address & MASK64).cast(gdb.parse_and_eval("(unsigned long)0").type)


def pointer(address: int, name: str) -> Any:
    """A pointer to ``struct name``; an unsigned long where gdb knows no such type."""
    kind = lookup_type(name)
    return word(address) if kind is None else word(address).cast(kind.pointer())


def address_of(value: Any) -> int:
    """What a pointer or a number says; the address of anything else.  Raises gdb.GdbError."""
    kind = value.type.strip_typedefs()
    if kind.code in (gdb.TYPE_CODE_PTR, gdb.TYPE_CODE_INT, gdb.TYPE_CODE_ENUM):
        return int(value) & MASK64
    if value.address is None:
        raise gdb.GdbError("neither a pointer nor a number nor anything in memory")
    return int(value.address) & MASK64
