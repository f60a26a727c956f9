"""Per-CPU variables by the names that gdb knows.

gdb moves all symbols of a vmlinux by the offset that it was loaded with.  Those of per-CPU variables that
count from 0 (x86_64 until v6.14) are distances, which no relocation changes: that is taken off again.
Reference: Linux commit 9d7de2aa8b41 ("x86/percpu/64: Use relative percpu offsets"), v6.15.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import gdb

from kdump_elftool.errors import IdentityError
from kdump_elftool.gdbside.target import GdbTarget, within
from kdump_elftool.gdbside.values import word
from kdump_elftool.plain.percpu import find_percpu

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]", re.ASCII)
_EXPRESSION = re.compile(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*|\[\d{1,9}\])*)", re.ASCII)


class PerCpuVariable(NamedTuple):
    """A variable, or a member of one: what gdb calls a pointer to it, and where each CPU has it."""

    type: Any
    places: dict[int, int]

    def pointer(self, cpu: int) -> Any:
        """To the copy of one CPU; an unsigned long where no type is known.  Raises gdb.GdbError."""
        if cpu not in self.places:
            raise gdb.GdbError(f"there is no CPU {cpu}")
        value = word(self.places[cpu])
        return value if self.type is None else value.cast(self.type)


def percpu_variable(kernel: GdbTarget, expression: str) -> PerCpuVariable:
    """``symbol`` or ``symbol.member[3]``.  Raises IdentityError, gdb.GdbError."""
    found = _EXPRESSION.fullmatch(expression)
    if found is None:
        raise gdb.GdbError("that is no name of a variable, with or without members")
    symbol = kernel.symbol(found[1])
    if symbol is None:
        raise gdb.GdbError(f"no symbol {found[1]}: has gdb the symbols of the kernel, or of the module?")
    cpus = find_percpu(kernel)
    if cpus is None:
        raise IdentityError(
            "SYMBOL(__per_cpu_offset)", "where the CPUs have their per-CPU variables is not known"
        )
    kind, distance = _typed(found[1], found[2])
    return PerCpuVariable(kind, dict(cpus.addresses(symbol + distance)))


def _typed(name: str, members: str) -> tuple[Any, int]:
    """The type of a pointer, None without debugging information, and how far behind the symbol it points.

    In an expression gdb would look for a symbol of each member's name, through the whole vmlinux.
    """
    try:
        kind = gdb.parse_and_eval(f"&{name}").type.target()
    except gdb.error:
        kind = None
    if kind is None or kind.code in (gdb.TYPE_CODE_ERROR, gdb.TYPE_CODE_FUNC):
        if members:
            raise gdb.GdbError(f"the type of {name} is not known to gdb")
        return None, 0
    distance = 0
    for member, index in _STEP.findall(members):
        step = _element(kind, int(index)) if index else _member(kind, member)
        if step is None:
            raise gdb.GdbError(f"{name} has no {member or f'[{index}]'}")
        kind, further = step
        distance += further
    return kind.pointer(), distance


def _member(kind: Any, name: str) -> tuple[Any, int] | None:
    found = within(kind.strip_typedefs(), name)
    if found is None or found[1].bitsize:  # nothing points at a bit
        return None
    return found[1].type, found[0] // 8


def _element(kind: Any, index: int) -> tuple[Any, int] | None:
    """Of an array, whatever it says of its length: that may be none."""
    whole = kind.strip_typedefs()
    if whole.code != gdb.TYPE_CODE_ARRAY:
        return None
    return whole.target(), index * int(whole.target().sizeof)
