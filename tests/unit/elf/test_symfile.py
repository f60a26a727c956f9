"""Symbol files: binutils and pyelftools read what was put in."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import ABSOLUTE, Section, SymbolColumns, symbol_file
from kdump_elftool.errors import OutputError

KINDS = [ElfKind(bits, order) for bits in (32, 64) for order in "<>"]
MACHINE = {32: c.EM_MIPS, 64: c.EM_PPC64}
TEXT = Section(".text", c.SHF_ALLOC | c.SHF_EXECINSTR, 0x81000000, 0x2000, align=16)
DATA = Section(".data", c.SHF_ALLOC | c.SHF_WRITE, 0x82000000, 0x100)
FRAME = Section(".debug_frame", data=b"frames", align=8)
ROWS = [
    ("start", 0x81000010, 0x20, c.STT_FUNC, c.STB_GLOBAL, 0),
    ("one.c", 0, 0, c.STT_FILE, c.STB_LOCAL, ABSOLUTE),
    ("helper", 0x81000030, 8, c.STT_FUNC, c.STB_LOCAL, 0),
    ("weak", 0x82000000, 4, c.STT_OBJECT, c.STB_WEAK, 1),
    ("state", 0x82000004, 4, c.STT_OBJECT, c.STB_LOCAL, 1),
]


def made(kind: ElfKind, rows=ROWS, sections=(TEXT, DATA, FRAME)) -> bytes:
    return symbol_file(kind, MACHINE[kind.bits], sections, SymbolColumns.of(rows))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sections_and_symbols(kind: ElfKind) -> None:
    elf = ELFFile(io.BytesIO(made(kind)))
    assert (elf.elfclass, elf.little_endian, elf["e_type"]) == (kind.bits, kind.order == "<", "ET_EXEC")
    text, frame = elf.get_section_by_name(".text"), elf.get_section_by_name(".debug_frame")
    assert (text["sh_type"], text["sh_addr"], text["sh_size"]) == ("SHT_NOBITS", 0x81000000, 0x2000)
    assert frame.data() == b"frames"
    table = elf.get_section_by_name(".symtab")
    assert table["sh_info"] == 4, "the null symbol and three local ones"
    symbols = list(table.iter_symbols())[1:]
    # local ones first, each group in its own order: what follows a file symbol belongs to it
    assert [symbol.name for symbol in symbols] == ["one.c", "helper", "state", "start", "weak"]
    assert [
        (s["st_value"], s["st_size"], s["st_info"]["type"], s["st_info"]["bind"], s["st_shndx"])
        for s in symbols
    ] == [
        (0, 0, "STT_FILE", "STB_LOCAL", "SHN_ABS"),
        (0x81000030, 8, "STT_FUNC", "STB_LOCAL", 1),
        (0x82000004, 4, "STT_OBJECT", "STB_LOCAL", 2),
        (0x81000010, 0x20, "STT_FUNC", "STB_GLOBAL", 1),
        (0x82000000, 4, "STT_OBJECT", "STB_WEAK", 2),
    ]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows", [ROWS, []], ids=["symbols", "none"])
def test_readelf_has_no_complaint(kind: ElfKind, rows: list, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(made(kind, rows))
    shown = subprocess.run(["readelf", "-haW", path], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "warning" not in shown.stdout.lower()


def test_names_are_printable() -> None:
    """Of a hostile module: nothing that a terminal or a gdb command would act on."""
    rows = [(b"\x1b[2J\nshell\0x y\xff", 1, 0, c.STT_FUNC, c.STB_GLOBAL, 0), ("", 2, 0, 0, 0, ABSOLUTE)]
    elf = ELFFile(io.BytesIO(made(ElfKind(64, "<"), rows)))
    symbols = list(elf.get_section_by_name(".symtab").iter_symbols())[1:]
    assert [symbol.name for symbol in symbols] == ["", "?[2J?shell?x?y?"]
    named = Section(".te\x1bxt", c.SHF_ALLOC, 0, 1)
    assert ELFFile(io.BytesIO(symbol_file(ElfKind(64, "<"), 62, [named]))).get_section(1).name == ".te?xt"


def test_names_may_share_text() -> None:
    columns = SymbolColumns.of(ROWS[:2])
    shared = replace(columns, text=b"abcdef", begin=np.array([3, 0]), end=np.array([6, 4]))
    elf = ELFFile(io.BytesIO(symbol_file(ElfKind(64, "<"), 62, [TEXT], shared)))
    names = [symbol.name for symbol in elf.get_section_by_name(".symtab").iter_symbols()]
    assert names == ["", "abcd", "def"]


@pytest.mark.parametrize(("section", "begin", "end"), [(1, 0, 1), (0, 0, 99), (0, -1, 1), (0, 3, 1)], ids=str)
def test_columns_that_contradict_are_refused(section: int, begin: int, end: int) -> None:
    columns = SymbolColumns.of([("name", 0, 0, 0, 0, section)])
    bad = replace(columns, begin=np.array([begin]), end=np.array([end]))
    with pytest.raises(ValueError, match="symbol's"):
        symbol_file(ElfKind(64, "<"), c.EM_X86_64, [TEXT], bad)


def test_more_sections_than_an_index_can_count() -> None:
    with pytest.raises(OutputError, match="65280 sections"):
        symbol_file(ElfKind(64, "<"), c.EM_X86_64, [TEXT] * 0xFF00)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_segments_hold_nothing(kind: ElfKind) -> None:
    data = symbol_file(kind, MACHINE[kind.bits], [TEXT, DATA, FRAME], loads=[(0x81000000, 0x2000)])
    elf = ELFFile(io.BytesIO(data))
    (segment,) = elf.iter_segments()
    assert (segment["p_type"], segment["p_vaddr"], segment["p_memsz"]) == ("PT_LOAD", 0x81000000, 0x2000)
    assert segment["p_filesz"] == 0
    assert elf.get_section_by_name(".debug_frame").data() == b"frames"


def test_addresses_of_a_dump_that_no_word_holds() -> None:
    """A forged KERNELOFFSET moves sections of a 32-bit kernel anywhere."""
    far = Section(".far", c.SHF_ALLOC, 2**64 - 0x1000, 2**33 + 0x20)
    elf = ELFFile(io.BytesIO(made(KINDS[0], [], (far,))))
    section = elf.get_section_by_name(".far")
    assert (section["sh_addr"], section["sh_size"]) == (2**32 - 0x1000, 0x20)
