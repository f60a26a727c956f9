"""Exported symbols: the table is found in each of its forms, and nothing else is taken for one."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel.exports import ANCHORS, Exports, open_exports
from kdump_elftool.kernel.kallsyms import Kallsyms
from tests.unit.kernel.kernelspace import BASE, ROOM, KernelSpace

WINDOW = (BASE, BASE + ROOM)
TABLE, STRINGS = 0x300000, 0x380000
VARIABLES = {f"variable_{number}": BASE + 0x400000 + 64 * number for number in range(50)}
FUNCTIONS = {name: BASE + 0x1000 + 0x100 * number for number, name in enumerate(ANCHORS)}
FORMS = {"relative": (4, 3), "relative v4.19": (4, 2), "words": (8, 3), "words v4.18": (8, 2)}
"""Bytes of a field, and how many an entry has."""


def kallsyms(functions: dict[str, int]) -> Kallsyms:
    named = {"_stext": BASE, **functions}
    text = "".join(named).encode()
    end = np.cumsum([len(name) for name in named])
    begin = np.concatenate([[0], end[:-1]])
    kind = np.full(len(named), ord("T"), dtype=np.uint8)
    return Kallsyms(u64(named.values()), kind, text, begin.astype(np.intp), end.astype(np.intp))


def put_table(space: KernelSpace, form: str, symbols: dict[str, int], table: int = TABLE) -> None:
    """Sorted by name, as the linker does it; no name in front of the first but an empty one."""
    size, fields = FORMS[form]
    strings = STRINGS + 1
    for row, (name, vaddr) in enumerate(sorted(symbols.items())):
        space.data[strings : strings + len(name)] = name.encode()
        for field, value in enumerate((vaddr, BASE + strings, BASE + STRINGS)[:fields]):
            place = table + (row * fields + field) * size
            number = value - BASE - place if size == 4 else value
            struct.pack_into("<i" if size == 4 else "<Q", space.data, place, number)
        strings += len(name) + 1


def found_in(space: KernelSpace, functions: dict[str, int] = FUNCTIONS) -> Exports | None:
    return open_exports(space.virtual(), kallsyms(functions), WINDOW, "<", 8)


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str) -> None:
    space = KernelSpace()
    put_table(space, form, VARIABLES | FUNCTIONS)
    found = found_in(space)
    assert found is not None
    assert found.address == VARIABLES | FUNCTIONS
    fact = found.find("SYMBOL", "variable_7")
    assert fact is not None and fact.value == VARIABLES["variable_7"]
    assert found.find("SYMBOL", "variable") is None
    assert found.find("SIZE", "variable_7") is None


def test_what_is_in_no_image_is_left_out() -> None:
    """A per-CPU variable that counts from 0 does not end the table."""
    space = KernelSpace()
    put_table(space, "words", {**VARIABLES, **FUNCTIONS, "variable_30": 0x1000})
    found = found_in(space)
    assert found is not None
    assert "variable_30" not in found.address
    assert len(found.address) == len(VARIABLES | FUNCTIONS) - 1


def test_a_pointer_to_a_function_is_no_table() -> None:
    """Nor is one beside another function's name."""
    space = KernelSpace()
    for number, vaddr in enumerate(FUNCTIONS.values()):
        space.put(0x200000 + 24 * number, "QQQ", vaddr, BASE + STRINGS, 0)
    space.data[STRINGS : STRINGS + 9] = b"vmalloc\0\0"
    assert found_in(space) is None
    assert found_in(space, {}) is None


def test_a_table_ends_where_entries_make_no_sense() -> None:
    space = KernelSpace()
    symbols = VARIABLES | FUNCTIONS
    put_table(space, "relative", symbols)
    row = sorted(symbols).index("variable_9")
    struct.pack_into("<i", space.data, TABLE + 12 * row + 4, -0x7F000000)
    found = found_in(space)
    assert found is not None
    # either all before it or all behind it: where the anchors are
    assert set(found.address) in (set(sorted(symbols)[:row]), set(sorted(symbols)[row + 1 :]))
    space.data[STRINGS:] = b"\xff" * (ROOM - STRINGS)
    assert found_in(space) is None


def test_a_memory_full_of_anchors_ends_soon() -> None:
    space = KernelSpace()
    space.data[:] = struct.pack("<Q", FUNCTIONS[ANCHORS[0]]) * (ROOM // 8)
    assert found_in(space) is None
