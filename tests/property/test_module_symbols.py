"""Symbols of modules: the columns equal the plain reader, whatever is in the tables."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.modules import SymbolColumns, read_module_symbols
from kdump_elftool.plain.module_sections import read_build_id, read_sections, symbol_table
from kdump_elftool.plain.module_symbols import Symbol, read_symbols
from kdump_elftool.plain.modules import read_modules
from tests.builders.modules import BASE, LAYOUTS, Made, ModuleMemory, make_modules

MACHINES = [("<", 8), (">", 8), ("<", 4), (">", 4)]
names = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)
symbols = st.lists(
    st.tuples(names, st.integers(0, 0x3FFF), st.integers(0, 99), st.sampled_from("tTdDbUa")), max_size=9
)


def rows(found: SymbolColumns, table: int) -> list[Symbol]:
    return [
        Symbol(
            int(found.address[row]),
            int(found.size[row]),
            chr(found.letter[row]) if 0x20 < found.letter[row] < 0x7F else "?",
            int(found.info[row]),
            found.name(row),
        )
        for row in found.of(table).tolist()
    ]


def both(memory: ModuleMemory) -> tuple[list[list[Symbol]], list[list[Symbol]]]:
    """As the columns have them, and as the plain reader has."""
    target = memory.target()
    tables = [symbol_table(target, module) for module in read_modules(target).modules]
    columns = read_module_symbols(memory.virtual(), memory.order, memory.word, tables)
    plain = []
    for table in tables:
        try:
            plain.append([] if table is None else read_symbols(target, table))
        except FaultError:
            plain.append([])
    return [rows(columns, number) for number in range(len(tables))], plain


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(made=st.lists(symbols, max_size=3), machine=st.sampled_from(MACHINES))
def test_whole_tables(layout, made, machine):
    order, word = machine
    modules = [Made(b"m%d" % at, symbols=tuple(rows)) for at, rows in enumerate(made)]
    memory = make_modules(layout, *modules, order=order, word=word)
    columns, plain = both(memory)
    assert columns == plain
    assert [[symbol.name for symbol in found] for found in columns] == [
        [name for name, _, _, letter in rows if letter != "U"] for rows in made
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(made=st.lists(symbols, min_size=1, max_size=3), seed=st.integers(0, 10_000))
def test_damaged_tables(layout, made, seed):
    random = Random(seed)
    modules = [Made(b"m%d" % at, symbols=tuple(rows)) for at, rows in enumerate(made)]
    memory = make_modules(layout, *modules)
    for _ in range(random.randrange(1, 200)):
        at = BASE + random.randrange(memory.end - BASE - 8)
        memory.put(at, random.choice((1, 4, 8)), random.choice((0, random.getrandbits(64), BASE + 0x2000)))
    columns, plain = both(memory)
    assert columns == plain
    target = memory.target()
    for module in read_modules(target).modules:
        assert all(module.region_of(section.vaddr) for section in read_sections(target, module))
        assert len(read_build_id(target, module) or b"") <= 64
