"""Debugging entries of more shapes than a byte can count, as pyelftools reads them."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.dwarf.btf_to_dwarf import DebugSections
from kdump_elftool.dwarf.constants import At, Form, Tag
from kdump_elftool.dwarf.entries import Abbreviations, Column, Unit
from kdump_elftool.elf.structs import ElfKind
from tests.builders.dwarf_text import units, value

ATTRIBUTES = {
    At.BYTE_SIZE: "byte_size",
    At.BIT_SIZE: "bit_size",
    At.COUNT: "count",
    At.CONST_VALUE: "const_value",
    At.DATA_MEMBER_LOCATION: "data_member_location",
    At.ENCODING: "encoding",
    At.LANGUAGE: "language",
    At.DATA_BIT_OFFSET: "data_bit_offset",
}


@pytest.mark.parametrize("kind", [ElfKind(64, "<"), ElfKind(32, ">")], ids=str)
@pytest.mark.parametrize("shapes", [100, 127, 128, 256])
def test_every_set_of_attributes_is_a_shape(kind: ElfKind, shapes: int) -> None:
    """Entry n has attribute k if bit k of n is set, and its value is n + k; every other one has a child."""
    number = np.arange(shapes)
    parents = number % 2 == 1
    columns = [
        Column(name, Form.DATA2, number + bit, number >> bit & 1 == 1) for bit, name in enumerate(ATTRIBUTES)
    ]
    abbreviations = Abbreviations()
    unit = Unit(abbreviations, kind.order, kind.bits // 8)
    unit.add(Tag.BASE_TYPE, number + 1, columns, parents=parents)
    refers = Column(At.TYPE, Form.REF_ADDR, number[parents] + 1)
    unit.add_children(Tag.MEMBER, number[parents] + 1, np.zeros(parents.sum(), dtype=np.intp), [refers])
    info, _ = unit.finish(0, [Column(At.LANGUAGE, Form.DATA2, np.array([12]))])
    (top,) = units(DebugSections(info, abbreviations.finish(), b"\0", b"", b"", ()), kind)
    found = list(top.iter_children())
    assert [die.offset for die in found] == sorted({die.offset for die in found})
    for n, die in enumerate(found):
        has = {bit: value(die, name) for bit, name in enumerate(ATTRIBUTES.values())}
        assert has == {bit: n + bit if n >> bit & 1 else None for bit in has}
        below = list(die.iter_children())
        assert [child.get_DIE_from_attribute("DW_AT_type") for child in below] == [die] * (n % 2)
    assert len(found) == shapes
