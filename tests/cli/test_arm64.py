"""Built arm64 kernels: every page size and width, a process' own table, notes on signed addresses."""

from __future__ import annotations

import struct

import pytest

from kdump_elftool.cli.main import main
from tests.builders.arm64tables import GEOMETRIES, Arm64Tables, walk_plain
from tests.builders.check import read_core
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core
from tests.builders.kernel import Ram

EM_AARCH64, START, HEAD, USER = 183, 0x40000000, 0x10000, 0x400000
PAGES = 8
CASES = [(shift, bits, bits) for shift, bits in GEOMETRIES] + [(16, 52, 48), (12, 48, 48)]
"""Page shift, address bits of the tables, those the processor was told."""


def prstatus(pid: int, sp: int, pc: int) -> NoteSpec:
    desc = bytearray(392)
    struct.pack_into("<i", desc, 32, pid)
    struct.pack_into("<QQ", desc, 112 + 31 * 8, sp, pc)
    return NoteSpec("CORE", 1, bytes(desc))


def built(shift: int, bits: int, told: int, *lines: str) -> tuple[Ram, Arm64Tables, Arm64Tables, bytes]:
    """An image of scattered pages, a table for it, one for a process, and the dump."""
    page, size = 1 << shift, 48 << shift
    ram = Ram([(START, START + size)])
    pool = iter(range(START + 24 * page, START + size, page)).__next__
    kernel, process = (Arm64Tables(ram, pool, shift, bits) for _ in range(2))
    vaddr = (1 << 64) - (1 << told - 1) + (1 << 28)
    for index in range(PAGES):
        kernel.map(vaddr % (1 << bits) + HEAD + index * page, START + HEAD + index * page, shift)
        process.map(USER + index * page, START + (23 - index) * page, shift)
    text = [
        "OSRELEASE=6.1.0-test",
        f"PAGESIZE={page}",
        f"SYMBOL(swapper_pg_dir)={vaddr + kernel.root - START:x}",
        f"SYMBOL(_stext)={vaddr + HEAD:x}",
        f"NUMBER(kimage_voffset)={vaddr - START:#x}",
        *lines,
    ]
    spec = CoreSpec(
        segments=[SegmentSpec(START, ram.read(START, size))],
        notes=[
            prstatus(7, vaddr + HEAD + 0x800, vaddr + HEAD),
            prstatus(8, vaddr + HEAD + 0x900, vaddr + HEAD),
            NoteSpec("VMCOREINFO", 0, "\n".join(text).encode()),
        ],
        machine=EM_AARCH64,
    )
    return ram, kernel, process, build_core(spec)


def pages_of(core, page: int) -> dict[int, bytes]:
    return {
        load["p_vaddr"] + done: core.read(load["p_vaddr"] + done, page)
        for load in core.loads
        for done in range(0, load["p_filesz"], page)
    }


@pytest.mark.parametrize("say", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize(("shift", "bits", "told"), CASES)
def test_every_mapped_page_and_nothing_else(tovelf, shift, bits, told, say):
    lines = [f"NUMBER(VA_BITS)={bits}", f"NUMBER(TCR_EL1_T1SZ)={64 - told:#x}"] if say else []
    ram, kernel, _, image = built(shift, bits, told, *lines)
    result = tovelf(image)
    assert (result.code, result.err) == (0, "")
    leaves = list(walk_plain(ram.read_or_none, kernel))
    assert len(leaves) == PAGES
    expected = {leaf.vaddr: ram.read(leaf.paddr, leaf.size) for leaf in leaves}
    assert pages_of(result.core, 1 << shift) == expected


@pytest.mark.parametrize(("shift", "bits", "told"), CASES)
def test_the_table_of_a_process(tmp_path, capfd, shift, bits, told):
    """Its addresses by its own table, the kernel's by the kernel's; nothing of it without -P."""
    ram, kernel, process, image = built(shift, bits, told, f"NUMBER(VA_BITS)={bits}")
    dump, output, page = tmp_path / "dump", tmp_path / "velf", 1 << shift
    dump.write_bytes(image)
    root = ["-P", hex(process.root), "-i", str(dump)]
    stext = next(walk_plain(ram.read_or_none, kernel)).vaddr
    assert main(["virttophys", *root, f"{USER:x}", f"{stext:x}"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said == [f"{USER:x} {START + 23 * page:x}", f"{stext:x} {START + HEAD:x}"]
    assert main(["tovelf", "-q", "-l", "all", *root, "-o", str(output)]) == 0
    found = pages_of(read_core(output), page)
    for index in range(PAGES):
        assert found[USER + index * page] == ram.read(START + (23 - index) * page, page)
    assert len(found) == 2 * PAGES
    assert main(["virttophys", "-i", str(dump), f"{USER:x}"]) == 1
    # the kernel's own table given by hand is no process'
    assert main(["virttophys", "-P", hex(kernel.root), "-i", str(dump), f"{stext:x}"]) == 0
    capfd.readouterr()


def test_notes_on_signed_addresses(tovelf):
    """Behind the registers of each thread, with the bit without which gdb reads none of them."""
    mask = 0xFFFF000000000000
    _, _, _, image = built(12, 48, 48, f"NUMBER(KERNELPACMASK)={mask:#x}")
    notes = tovelf(image).core.notes()
    kinds = [(name, kind) for name, kind, _ in notes]
    assert kinds[:4] == [("CORE", 1), ("LINUX", 0x406)] * 2
    assert [desc for _, kind, desc in notes if kind == 0x406] == [struct.pack("<QQ", mask, mask)] * 2
    (auxv,) = [desc for name, kind, desc in notes if (name, kind) == ("CORE", 6)]
    assert list(struct.iter_unpack("<QQ", auxv)) == [(16, 1 << 30), (0, 0)]


def test_no_such_notes_of_a_kernel_that_signs_nothing(tovelf):
    _, _, _, image = built(12, 48, 48, "NUMBER(KERNELPACMASK)=0x0")
    assert not {0x406, 6} & {kind for _, kind, _ in tovelf(image).core.notes()}
