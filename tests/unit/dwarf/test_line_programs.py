"""The addresses in line tables are found and moved: pyelftools reads the rows before and after."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.dwarf import line_programs
from kdump_elftool.dwarf.line_programs import find_addresses, moved_addresses
from tests.builders import dwarf as d
from tests.builders import lines

SEED = 20261129
STMT_LIST, LOW, OFFSET = 0x10, 0x80000000, 0x1234000
MACHINES = [(order, word) for order in "<>" for word in (4, 8)]
machines = pytest.mark.parametrize(("order", "word"), MACHINES)


def rows(section: bytes, table: int, order: str, word: int) -> list[tuple[int, int, int, bool]]:
    """Address, file, line, end of sequence of every row, as pyelftools has them."""
    writer = d.DwarfWriter(5, order, word, aranges=False)
    writer.add(d.UnitSpec("a.c", LOW, 16, [], [(STMT_LIST, d.SEC_OFFSET, table)]))
    image = d.elf_file(writer.sections() | {".debug_line": section}, {}, order=order, bits=8 * word)
    info = ELFFile(io.BytesIO(image)).get_dwarf_info()
    (unit,) = info.iter_CUs()
    program = info.line_program_for_CU(unit)
    states = [entry.state for entry in program.get_entries() if entry.state is not None]
    return [(state.address, state.file, state.line, state.end_sequence) for state in states]


def tables_of(order: str, word: int) -> tuple[bytes, list[int]]:
    """Tables of all versions, each with code of the kernel and code that a linker has put at 0."""
    rng = random.Random(SEED)
    section, places = b"", []
    for version in (2, 3, 4, 5, 5):
        program = b"".join(
            lines.sequence(rng, address, order, word) for address in (LOW, 0, LOW + (1 << 20), LOW + 8)
        )
        places.append(len(section))
        section += lines.table(program, version, order, word)
    return section, places


@machines
def test_rows_move(order, word):
    section, tables = tables_of(order, word)
    places, damaged = find_addresses(section, tables[::-1] + tables, order, word)
    assert (len(places), damaged) == (4 * len(tables), set())
    moved = moved_addresses(section, places, order, word, LOW, OFFSET)
    back = moved_addresses(moved, places, order, word, LOW + OFFSET, -OFFSET)
    assert back == section
    for table in tables:
        before, after = rows(section, table, order, word), rows(moved, table, order, word)
        assert len(before) > 20
        # sequences at 0 stay: pyelftools tells where each begins by the row before it
        sequences = np.cumsum([0, *(row[3] for row in before)])[:-1].tolist()
        mask = (1 << 8 * word) - 1
        expected = [
            (address + (OFFSET if of != 1 else 0) & mask, *rest)
            for of, (address, *rest) in zip(sequences, before, strict=True)
        ]
        assert [(address & mask, *rest) for address, *rest in after] == expected


@pytest.mark.parametrize("lengths", [lines.LENGTHS[:9], bytes([*lines.LENGTHS, 0, 2]), b""])
def test_tables_with_other_opcodes(lengths):
    """An older assembler's has nine; a later one's may have more, whose operands are counted; or none."""
    more = b"\x0d\x0e\x81\x00\x05" if len(lengths) > 12 else bytes([max(len(lengths) + 1, 1), 0xFF])
    program = lines.set_address(LOW, "<", 8) + more + lines.extended(1)
    section = lines.table(program, 4, "<", 8, lengths=lengths)
    places, damaged = find_addresses(section, [0], "<", 8)
    assert not damaged
    assert [int.from_bytes(section[at : at + 8], "little") for at in places] == [LOW]


def test_names_that_are_elsewhere():
    """In .debug_str, which is another one in the new file."""
    section = lines.table(lines.set_address(LOW, "<", 8), 5, "<", 8)
    place = section.index(bytes([1, 1, 8, 1]) + b"/src")
    assert find_addresses(section, [0], "<", 8)[1] == set()
    strp = section[: place + 2] + b"\x0e" + section[place + 3 :]
    assert find_addresses(strp, [0], "<", 8)[1] == {0}


def test_tables_that_overlap():
    """A table within another one could be read as often as there are units."""
    program = lines.set_address(LOW, "<", 8) + lines.extended(1)
    inner = lines.table(program, 4, "<", 8)
    section = lines.table(program + lines.extended(0x80, inner), 4, "<", 8)
    inside = section.index(inner)
    places, damaged = find_addresses(section, [0, inside], "<", 8)
    assert (len(places), damaged) == (1, {inside})


@pytest.mark.parametrize(
    "program",
    [
        b"\x02\x80",
        b"\x09\x00",
        b"\x00",
        b"\x00\x00",
        b"\x00\x09\x02\x00",
        b"\x00\x05\x02\x00\x00\x00\x80",
        b"\x00" + b"\xff" * 20,
        b"\x02" + b"\x80" * (1 << 20),
    ],
    ids=lambda program: program[:8].hex(),
)
def test_damaged_programs(program):
    section = lines.table(lines.set_address(LOW, "<", 8) + program, 5, "<", 8)
    places, damaged = find_addresses(section, [0], "<", 8)
    assert (len(places), damaged) == (0, {0})


def test_damaged_headers():
    rng = random.Random(SEED)
    good = lines.table(lines.sequence(rng, LOW, "<", 8), 5, "<", 8)
    for size in range(0, len(good), 7):
        assert find_addresses(good[:size], [0], "<", 8)[1] == {0}
    assert find_addresses(good, [len(good), 1 << 62], "<", 8)[1] == {len(good), 1 << 62}
    for _ in range(500):
        data = bytearray(good)
        data[rng.randrange(30)] = rng.randrange(256)
        places, damaged = find_addresses(bytes(data), [0], "<", 8)
        assert damaged or len(places) <= 20
        moved = moved_addresses(bytes(data), places, "<", 8, LOW, OFFSET)
        assert len(moved) == len(good)


def test_forged_opcodes():
    """Patterns are made for a few sets of opcodes, not for one a table, nor for hundreds of operands."""
    program = lines.set_address(LOW, "<", 8) + lines.extended(1)
    sets = (bytes([*lines.LENGTHS, 0, number % 8, number // 8]) for number in range(40))
    many = [lines.table(program, 4, "<", 8, lengths=lengths) for lengths in sets]
    starts = np.cumsum([0, *map(len, many)])[:-1].tolist()
    places, damaged = find_addresses(b"".join(many), starts, "<", 8)
    assert (len(places), damaged) == (16, set(starts[16:]))
    section = lines.table(program, 4, "<", 8, lengths=bytes(range(254)))
    assert find_addresses(section, [0], "<", 8)[1] == {0}


def test_damaged_tables_within_each_other(monkeypatch):
    """Each goes on to the end of the section, where it is cut off."""
    table = lines.table(b"", 4, "<", 8)
    count, whole = 500, 500 * len(table) + 1000
    section = (
        b"".join(
            (whole - number * len(table) - 4).to_bytes(4, "little") + table[4:] for number in range(count)
        ).ljust(whole - 1, b"\x0d")
        + b"\2"
    )
    starts = [number * len(table) for number in range(count)]
    decoded = []
    original = line_programs._addresses

    def addresses(section, header, *rest):
        decoded.append(header.end - header.first)
        return original(section, header, *rest)

    monkeypatch.setattr(line_programs, "_addresses", addresses)
    places, damaged = find_addresses(section, starts, "<", 8)
    assert (len(places), damaged) == (0, set(starts))
    assert len(section) < sum(decoded) <= 4 * len(section)
