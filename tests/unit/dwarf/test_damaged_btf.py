"""BTF that no compiler made: whatever it says, DWARF comes out that a reader gets through."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.dwarf.btf_columns import DEEPEST
from kdump_elftool.dwarf.btf_to_dwarf import DebugSections
from kdump_elftool.dwarf.btf_variables import Symbols
from kdump_elftool.dwarf.strings import Names
from kdump_elftool.elf.structs import ElfKind
from tests.builders import btf as b
from tests.builders.dwarf_text import described, text, units, value
from tests.builders.random_btf import converted, random_btf

KIND = ElfKind(64, "<")
SEED = 20261129


def read(sections: DebugSections) -> dict[str, str]:
    """All entries; a circle would be endless recursion here as in a debugger."""
    (top,) = units(sections, KIND)
    return described(top)


def cut(writer: b.BtfWriter) -> int:
    sections = converted(writer.finish())
    read(sections)
    return sections.units[0].cut


def test_a_struct_that_contains_itself():
    w = b.BtfWriter()
    w.struct("outer", 8, [("inner", 2, 0)])
    w.array(3, 1)
    w.add(b.CONST, "", 1)
    assert cut(w) > 0


def test_a_struct_that_contains_one_of_its_name():
    """A debugger takes what is only declared for the struct of that name."""
    w = b.BtfWriter()
    declared = w.add(b.FWD, "a", 0)
    inner = w.array(w.add(b.TYPEDEF, "a_t", declared), 1)
    w.struct("a", 8, [("inner", inner, 0), ("pointer", w.pointer(declared), 0)])
    sections = converted(w.finish())
    assert sections.units[0].cut == 1
    structs = [die for die in units(sections, KIND)[0].iter_children() if value(die, "byte_size") == 8]
    assert [text(die) for die in structs if die.tag == "DW_TAG_structure_type"] == [
        "struct 8 {*8 struct a pointer @0}"
    ]


def test_what_leads_to_a_circle_stays():
    w = b.BtfWriter()
    integer = w.integer("int", 4)
    w.struct("self", 8, [("", 2, 0), ("good", integer, 4)])
    w.struct("user", 16, [("self", 2, 0), ("more", integer, 8)])
    sections = converted(w.finish())
    assert sections.units[0].cut == 1
    types = read(sections)
    assert types["struct user"] == "struct 16 {struct self self @0; int more @8}"
    assert types["struct self"] == "struct 8 {int good @4}"


@pytest.mark.parametrize("kind", [b.TYPEDEF, b.CONST, b.PTR, b.TYPE_TAG])
def test_a_name_made_of_itself(kind):
    w = b.BtfWriter()
    w.add(kind, "a", 2)
    w.add(b.TYPEDEF, "b", 1)
    w.add(b.TYPEDEF, "user", 2)
    assert cut(w) > 0


def test_prototypes_in_circles():
    w = b.BtfWriter()
    w.proto(2, [("", 2), ("", 1)])
    w.pointer(1)
    w.add(b.TYPEDEF, "callback", 2)
    assert cut(w) > 0


def test_a_prototype_that_takes_itself():
    w = b.BtfWriter()
    w.proto(1, [("", 1)])
    w.add(b.TYPEDEF, "callback", 1)
    sections = converted(w.finish())
    assert read(sections)["callback"] == "typedef void (void)"


def test_pointers_of_a_struct_lead_back():
    """The circle that is none."""
    w = b.BtfWriter()
    w.struct("list_head", 16, [("next", 2, 0)])
    w.pointer(1)
    assert cut(w) == 0


def test_deeper_than_any_type():
    w = b.BtfWriter()
    w.integer("int", 4)
    for _ in range(4 * DEEPEST):
        w.pointer(len(w.records))
    w.add(b.TYPEDEF, "deep", len(w.records))
    assert cut(w) > 0


def test_references_and_names_beyond_the_end():
    w = b.BtfWriter()
    w.add(b.TYPEDEF, "a", 999)
    w.struct("b", 4, [("x", 0x7FFFFFFF, 0)])
    w.array(0xFFFFFFFF, 0xFFFFFFFF)
    w.proto(5000, [("p", 6000)])
    w.pointer(4)
    w.add(b.FUNC, "f", 70000)
    w.add(b.VAR, "v", 80000, [0])
    w.section(".data", [(7, 0, 4), (0, 0, 0), (90000, 0, 4)])
    data = bytearray(w.finish())
    # the typedef's name, then
    data[24:28] = b"\xff\xff\xff\x7f"
    sections = converted(bytes(data))
    assert read(sections)["struct b"] == "struct 4 {void x @0}"


def test_a_function_at_the_last_address():
    w = b.BtfWriter()
    w.add(b.FUNC, "f", w.proto(0, []))
    have = Symbols(Names.of([b"f"]), u64([2**64 - 1]), u64([16]), np.frombuffer(b"T", dtype=np.uint8))
    assert read(converted(w.finish(), have))["f"]


def test_an_object_of_nothing():
    sections = converted(b.BtfWriter().finish())
    assert read(sections) == {}


def test_random_objects():
    random = Random(SEED)
    print(f"seed {SEED}")
    have = Symbols(Names.of([b"a", b"b", b"c"]), u64([0x1000, 0x2000, 0x3000]), u64([16, 0, 16]),
                   np.frombuffer(b"TDd", dtype=np.uint8))  # fmt: skip
    done = 0
    for _ in range(400):
        sections = converted(random_btf(random), have)
        read(sections)
        done += sections.units[0].types
    assert done > 1000
