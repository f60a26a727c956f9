"""tovelf and topelf of built kernels of 32-bit ARM: both table formats, both byte orders, RAM anywhere."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from kdump_elftool.cli.main import main
from tests.builders.arm_tables import (
    SIZE_1M,
    SIZE_2M,
    SIZE_4K,
    LongTables,
    ShortTables,
    walk_long,
    walk_short,
)
from tests.builders.check import read_core
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core
from tests.builders.kernel import Ram

EM_ARM, NT_PRSTATUS = 40, 1
MODULES = 0xBF000000
PAGES = 8


@dataclass(frozen=True)
class Built:
    """A kernel in memory and its dump."""

    ram: Ram
    root: int
    long: bool
    order: str
    image: bytes

    def mapped(self) -> dict[int, int]:
        """By page of the kernel what its tables map to RAM."""
        walk = walk_long if self.long else walk_short
        return {
            leaf.vaddr + done: leaf.paddr + done
            for leaf in walk(self.ram.read_or_none, self.root, self.order)
            for done in range(0, leaf.size, SIZE_4K)
            if self.ram.read_or_none(leaf.paddr + done, SIZE_4K) is not None
        }


def prstatus(order: str, pid: int, sp: int, pc: int) -> NoteSpec:
    desc = bytearray(148)
    struct.pack_into(order + "i", desc, 24, pid)
    struct.pack_into(order + "III", desc, 72 + 4 * 13, sp, 0, pc)
    return NoteSpec("CORE", NT_PRSTATUS, bytes(desc))


def built(
    long: bool, order: str, start: int = 0x40000000, offset: int = 0xC0000000, *, told=True, astray=False
) -> Built:
    """Image at PAGE_OFFSET + 2 MB, its first 4 MB mapped by sections or blocks, modules by small pages."""
    ram = Ram([(start, start + (4 << 20))])
    pools = iter(range(start + 0x300000, start + 0x400000, 0x1000))
    root = start + (0x203000 if long else 0x204000)
    places = iter([root])

    def allocate(_size: int) -> int:
        return next(places, 0) or next(pools)

    tables = (LongTables if long else ShortTables)(ram, allocate, order)
    size = SIZE_2M if long else SIZE_1M
    for done in range(0, 4 << 20, size):
        tables.map(offset + done, start + done, size)
    if astray:
        tables.map(offset + 0x200000, start + 0x100000, size)
    for page in range(PAGES):
        tables.map(
            offset - (16 << 20) + page * SIZE_4K, start + 0x180000 + (page * 5 % PAGES) * SIZE_4K, SIZE_4K
        )
    tables.map(0xFFFF0000, start + 0x190000, SIZE_4K)
    text = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"
    text += f"SYMBOL(swapper_pg_dir)={offset + root - start:x}\nSYMBOL(_stext)={offset + 0x208000:x}\n"
    text += "CONFIG_ARM_LPAE=y\n" if long and told else ""
    spec = CoreSpec(
        segments=[SegmentSpec(start, ram.read(start, 4 << 20))],
        notes=[
            prstatus(order, 7, offset + 0x180FF0, offset + 0x208010),
            NoteSpec("VMCOREINFO", 0, text.encode()),
        ],
        elf_class=32,
        big_endian=order == ">",
        machine=EM_ARM,
        ehdr={"e_flags": 0x05000200},
    )
    return Built(ram, root, long, order, build_core(spec))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("long", [False, True], ids=["short", "LPAE"])
@pytest.mark.parametrize(
    ("start", "offset"),
    [(0x40000000, 0xC0000000), (0, 0x80000000), (0x80200000, 0xC0000000), (0x20000000, 0x40000000)],
)
def test_every_mapped_page_and_nothing_else(tovelf, order, long, start, offset):
    made = built(long, order, start, offset)
    result = tovelf(made.image)
    assert (result.code, result.err) == (0, "")
    core = result.core
    assert (core.elf_class, core.order, core.e_machine) == (32, order, EM_ARM)
    assert core.e_flags == 0x05000200
    pages = {
        load["p_vaddr"] + done: core.read(load["p_vaddr"] + done, SIZE_4K)
        for load in core.loads
        for done in range(0, load["p_filesz"], SIZE_4K)
    }
    assert pages == {vaddr: made.ram.read(paddr, SIZE_4K) for vaddr, paddr in made.mapped().items()}
    assert len(pages) == 1024 + PAGES + 1


def test_lpae_is_found_where_the_line_is_missing(tovelf):
    made = built(True, "<", told=False)
    assert tovelf(made.image).code == 0


def test_a_root_that_does_not_map_itself_is_not_believed(tovelf):
    """Its entry for the text leads to RAM, but nothing confirms that this is the kernel's table."""
    result = tovelf(built(False, "<", astray=True).image)
    assert any("no known kernel address confirms" in line for line in result.lines("warning"))


def test_a_reduced_dump_is_a_32_bit_file(tmp_path, capfd):
    made = built(False, ">")
    dump, output = tmp_path / "dump", tmp_path / "small"
    dump.write_bytes(made.image)
    assert main(["topelf", "-l", "all", "-i", str(dump), "-o", str(output), "-q"]) == 0
    core = read_core(output)
    assert (core.elf_class, core.order, core.e_machine) == (32, ">", EM_ARM)
    stored = [core.image[load["p_offset"] :][: load["p_filesz"]] for load in core.loads]
    assert b"".join(stored) == made.ram.read(0x40000000, 4 << 20)
    capfd.readouterr()
