"""What units say of themselves, as pyelftools reads them: gcc's, the assembler's, clang's, damaged ones."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.elffile import ELFFile

from kdump_elftool.addr import MASK64
from kdump_elftool.dwarf import abbreviation_search
from kdump_elftool.dwarf import source_units as source_units_module
from kdump_elftool.dwarf.debug_input import DebugInput
from kdump_elftool.dwarf.source_units import SourceUnit, SourceUnits, source_units
from tests.builders import dwarf as d

SEED = 20261129
STMT_LIST, LANGUAGE, COMP_DIR = 0x10, 0x13, 0x1B
TEXT = 0x81000000
MACHINES = [(version, order, word) for version in (4, 5) for order in "<>" for word in (4, 8)]


def read(sections: Mapping[str, bytes], order: str = "<", word: int = 8) -> tuple[list[SourceUnit], int]:
    found = read_all(sections, order, word)
    return found.units, found.unread


def read_all(sections: Mapping[str, bytes], order: str = "<", word: int = 8) -> SourceUnits:
    data = {name.removeprefix(".debug_"): section for name, section in sections.items()}
    info = data.pop("info")
    wanted = ("abbrev", "line", "str", "line_str", "ranges", "rnglists", "str_offsets", "addr")
    source = DebugInput(
        order=order, word=word, info=lambda at, size: info[at : at + size], info_size=len(info),
        **{name: data.get(name, b"") for name in wanted},
    )  # fmt: skip
    return source_units(source)


def judged(sections: Mapping[str, bytes], order: str = "<", word: int = 8) -> list[SourceUnit]:
    """The same, by pyelftools."""
    image = d.elf_file(sections, {}, order=order, bits=8 * word)
    info = ELFFile(io.BytesIO(image)).get_dwarf_info()
    found = []
    for unit in info.iter_CUs():
        top = unit.get_top_DIE()

        def has(name: str, top: Any = top) -> Any:
            return top.attributes[f"DW_AT_{name}"].value if f"DW_AT_{name}" in top.attributes else None

        if has("stmt_list") is None:
            continue
        low = has("low_pc") or 0
        if has("ranges") is None:
            ranges = [(low, low + has("high_pc"))] if has("high_pc") else []
        else:
            lists = info.range_lists()
            where = lists.get_range_list_at_offset(has("ranges"), unit)
            base, ranges = low, []
            for entry in where:
                if isinstance(entry, BaseAddressEntry):
                    base = entry.base_address
                else:
                    move = 0 if entry.is_absolute else base
                    ranges.append((move + entry.begin_offset, move + entry.end_offset))
        if ranges:
            name, directory = has("name") or b"", has("comp_dir") or b""
            found.append(SourceUnit(name, directory, has("language") or 0, has("stmt_list"), tuple(ranges)))
    return found


def written(version: int, order: str, word: int) -> dict[str, bytes]:
    """Units with code in one piece, in several, with none; without line table; entries in front of theirs."""
    pack, wide = struct.pack, "Q" if word == 8 else "I"
    writer = d.DwarfWriter(version, order, word, aranges=False)
    integer = d.base("int", 4)
    line, where = (STMT_LIST, d.SEC_OFFSET, 0x40), (COMP_DIR, d.STRP, "/build")
    low, high = (d.LOW_PC, d.ADDR, TEXT), (d.HIGH_PC, d.DATA4, 0x100)
    parts = ((d.LOW_PC, d.ADDR, TEXT), (d.RANGES, d.SEC_OFFSET, 12 if version == 5 else 8))
    writer.add(
        d.UnitSpec("kernel/fork.c", 0, 0, [integer], (line, where, (LANGUAGE, d.DATA1, 29), low, high))
    )
    writer.add(d.UnitSpec("entry.S", 0, 0, [integer], (*parts, line, (LANGUAGE, d.DATA2, 0x8001))))
    writer.add(d.UnitSpec("no_lines.c", 0, 0, [integer], (low, high)))
    writer.add(d.UnitSpec("no_code.c", 0, 0, [integer], (line, where)))
    writer.add(d.UnitSpec("again.c", 0, 0, [], (line, high, low)))
    sections = writer.sections()
    if version == 5:
        body = bytes([5]) + pack(order + wide, TEXT + 0x1000) + bytes([4, 0x10, 0xA0, 1, 7])
        body += (
            pack(order + wide, TEXT) + bytes([0x20, 6]) + pack(order + 2 * wide, TEXT + 64, TEXT + 96) + b"\0"
        )
        head = pack(f"{order}HBBI", 5, word, 0, 0)
        sections[".debug_rnglists"] = pack(f"{order}I", len(head + body)) + head + body
    else:
        top = (1 << 8 * word) - 1
        rows = [(0x10, 0x20), (top, TEXT + 0x1000), (0x30, 0x50), (0, 0)]
        sections[".debug_ranges"] = bytes(8) + b"".join(pack(order + 2 * wide, *row) for row in rows)
    return sections


@pytest.mark.parametrize(("version", "order", "word"), MACHINES)
def test_units_of_gcc(version, order, word):
    sections = written(version, order, word)
    found, unread = read(sections, order, word)
    assert unread == 0
    assert [unit.name for unit in found] == [b"kernel/fork.c", b"entry.S", b"again.c"]
    assert found == judged(sections, order, word)
    assert len(found[1].ranges) == (3 if version == 5 else 2)


def clang_unit() -> dict[str, bytes]:
    """Strings, addresses and ranges by their numbers in tables, as clang has them; the bases come last."""
    strings = b"\0clang.c\0/build\0"
    forms = [(d.NAME, 0x25), (COMP_DIR, 0x1A), (LANGUAGE, d.IMPLICIT), (STMT_LIST, d.SEC_OFFSET)]
    forms += [(d.LOW_PC, 0x29), (d.RANGES, 0x23), (0x72, 0x17), (0x73, 0x17), (0x74, 0x17)]
    abbrev = d.uleb(200) + b"\x24\0\x0b\x0b\0\0" + b"\x01\x11\0"
    for name, form in forms:
        abbrev += d.uleb(name) + d.uleb(form) + (d.sleb(29) if form == d.IMPLICIT else b"")
    abbrev += b"\0\0\0"
    entry = (
        b"\x01"
        + b"\x00"
        + b"\x01"
        + struct.pack("<I", 0x77)
        + b"\x02"
        + b"\x01"
        + struct.pack("<3I", 8, 8, 12)
    )
    head = struct.pack("<HBBI", 5, 1, 8, 0)
    lists = b"\x01\x00" + b"\x04\x10\x20" + b"\x02\x00\x01" + b"\x03\x01\x40" + b"\x00"
    offsets = struct.pack("<2I", 8, 8 + 1)
    numbers = struct.pack("<HBBI", 5, 8, 0, 2) + offsets + b"\0" + lists
    return {
        ".debug_info": struct.pack("<I", len(head + entry)) + head + entry,
        ".debug_abbrev": abbrev,
        ".debug_str": strings,
        ".debug_str_offsets": struct.pack("<IHH2I", 12, 5, 0, 1, 9),
        ".debug_addr": struct.pack("<IHBB3Q", 28, 5, 8, 0, TEXT, TEXT + 0x800, 0),
        ".debug_rnglists": struct.pack("<I", len(numbers)) + numbers,
    }


def test_units_of_clang():
    sections = clang_unit()
    ((unit,), unread) = read(sections)
    assert unread == 0
    info = ELFFile(io.BytesIO(d.elf_file(sections, {}))).get_dwarf_info()
    (cu,) = info.iter_CUs()
    attributes = cu.get_top_DIE().attributes
    names = ("name", "comp_dir", "language", "stmt_list", "low_pc")
    assert [attributes[f"DW_AT_{name}"].value for name in names] == [
        unit.name, unit.directory, unit.language, unit.line, 0
    ]  # fmt: skip
    assert unit.ranges == (
        (TEXT + 0x10, TEXT + 0x20),
        (TEXT, TEXT + 0x800),
        (TEXT + 0x800, TEXT + 0x840),
    )


def test_a_unit_that_lies_elsewhere():
    """dwz keeps names in another file: the line table has them too."""
    sections = written(5, "<", 8)
    abbrev = sections[".debug_abbrev"]
    place = abbrev.index(bytes([d.NAME, d.STRP]))
    sections[".debug_abbrev"] = abbrev[:place] + bytes([d.NAME]) + b"\x1d" + abbrev[place + 2 :]
    found, unread = read(sections)
    assert (found[0].name, found[0].ranges, unread) == (b"", ((TEXT, TEXT + 0x100),), 0)


@pytest.mark.parametrize("most", [2, 4, 5, 1 << 17])
def test_units_beyond_the_limit_are_not_dropped_in_silence(monkeypatch, most):
    """Of five units the first two and the last have code and lines."""
    monkeypatch.setattr(source_units_module, "_MOST_UNITS", most)
    found = read_all(written(5, "<", 8))
    assert len(found.units) == (2 if most < 5 else 3)
    assert found.rest == (f"units behind the first {most} are not read" if most < 5 else None)


def test_units_of_the_64_bit_form_are_not_dropped_in_silence():
    sections = written(5, "<", 8)
    sections[".debug_info"] += struct.pack("<IQ", 0xFFFFFFFF, 100) + bytes(100)
    found = read_all(sections)
    assert (len(found.units), found.unread) == (3, 0)
    assert "64-bit form" in str(found.rest)


def test_damaged_units():
    """Never more than what is there, and never without end."""
    rng = random.Random(SEED)
    for sections in (written(5, "<", 8), written(4, "<", 8), clang_unit()):
        for _ in range(400):
            damaged = dict(sections)
            for _ in range(rng.randrange(1, 4)):
                name = rng.choice([".debug_info", ".debug_abbrev", *sections])
                data = bytearray(damaged[name])
                data[rng.randrange(len(data))] = rng.choice([0, 0xFF, 0x80, rng.randrange(256)])
                damaged[name] = bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.2 else data)
            found, unread = read(damaged)
            assert len(found) + unread <= 64
            assert all(start < end for unit in found for start, end in unit.ranges)


def test_a_table_behind_the_section_is_no_gain():
    """Of work that is left: units that all name such tables come to an end too."""
    declarations = abbreviation_search.UnitDeclarations(b"\x01\x2e\x00\x03\x08\x00\x00" * 10)
    before = declarations._left
    assert declarations.find(0xFFFFFFFF, 1) is None
    assert declarations._left < before


def test_an_endless_abbreviation_table():
    """Declarations of other entries alone, and a table that never ends."""
    sections = written(5, "<", 8)
    other = b"\x01\x34\0" + b"\x03\x08" * 50 + b"\0\0"
    sections[".debug_abbrev"] = other * 20_000
    assert read(sections) == ([], 0)
    sections[".debug_abbrev"] = b"\x81" * (4 << 20)
    assert read(sections) == ([], 0)


def many_units(count: int, apart: int) -> bytes:
    """Headers of units without more, whose tables of declarations begin ``apart`` bytes from each other."""
    heads = (struct.pack("<HBBI", 5, 1, 8, number * apart) + b"\x01" for number in range(count))
    return b"".join(struct.pack("<I", len(head)) + head for head in heads)


def test_units_that_all_name_large_tables(monkeypatch):
    """Each table ends where the section does: together they would be a thousand times as large."""
    other = b"\x02\x34\0" + b"\x03\x08" * 50 + b"\0\0"
    sections = {".debug_abbrev": other * 1000, ".debug_info": many_units(1000, len(other))}
    few = (
        *abbreviation_search.UnitDeclarations.__init__.__defaults__[:-1],
        8 * len(sections[".debug_abbrev"]),
    )
    monkeypatch.setattr(abbreviation_search.UnitDeclarations.__init__, "__defaults__", few)
    assert read(sections) == ([], 1000 - 8)


def test_tables_that_are_shared_are_read_once(monkeypatch):
    searched: list[tuple[int, int]] = []
    original = abbreviation_search.UnitDeclarations._search

    def search(self, table, code):
        searched.append((table, code))
        return original(self, table, code)

    monkeypatch.setattr(abbreviation_search.UnitDeclarations, "_search", search)
    assert read({".debug_abbrev": b"\x02\x34\0\0\0", ".debug_info": many_units(1000, 0)}) == ([], 0)
    assert searched == [(0, 1)]


@pytest.mark.parametrize("version", [4, 5])
def test_ranges_that_are_none_count(monkeypatch, version):
    """Empty ones, and new bases: every unit may name the same long list of them."""
    sections = written(version, "<", 8)
    where = 12 if version == 5 else 8
    entries = {4: struct.pack("<2Q", MASK64, TEXT), 5: b"\x05" + struct.pack("<Q", TEXT)}[version]
    name = ".debug_rnglists" if version == 5 else ".debug_ranges"
    sections[name] = sections[name][:where] + entries * 100 + sections[name][where:]
    monkeypatch.setattr(source_units_module._Budget.__init__, "__defaults__", (100,))
    found, unread = read(sections)
    assert ([unit.name for unit in found], unread) == ([b"kernel/fork.c"], 2)
    monkeypatch.setattr(source_units_module._Budget.__init__, "__defaults__", (110,))
    found, unread = read(sections)
    assert ([unit.name for unit in found], unread) == ([b"kernel/fork.c", b"entry.S", b"again.c"], 0)


def test_a_name_that_is_no_path():
    sections = written(5, "<", 8)
    sections[".debug_str"] = sections[".debug_str"].replace(b"kernel/fork.c\0", b"x" * 14)
    assert len(read(sections)[0][0].name) < 4096
    sections[".debug_str"] = b"y" * (1 << 20) + b"\0"
    assert {unit.name for unit in read(sections)[0]} == {b""}
