"""i386: entries of both forms, where the image may lie, CR3, saved registers, register notes."""

from __future__ import annotations

import random
import struct

import pytest

from kdump_elftool.addr import NO_RANGES, Ranges, u64
from kdump_elftool.arch import find_architecture, i386
from kdump_elftool.arch.base import Level, Region
from kdump_elftool.arch.i386 import ARCH, NARROW, WIDE, paging_form
from kdump_elftool.elf.constants import EM_386
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from tests.builders.pagetables import KERNEL, NX, PAT_LARGE, PSE

PGD, PTE = NARROW
PGD8, PMD8, PTE8 = WIDE


def said(text: str) -> VmcoreInfo:
    return parse(text.encode())


def nothing(vaddr: int, size: int) -> bytes:
    raise FaultError("vaddr", vaddr, "not mapped")


@pytest.mark.parametrize("bits", [32, 64])
def test_registry(bits):
    """QEMU writes 64-bit files."""
    assert find_architecture(EM_386, bits) is ARCH
    assert ARCH.bits == 32


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        (PTE, 0, "none", 0),
        (PTE, 0x1234102, "none", 0),  # PROT_NONE
        (PTE, 0xFEDCB000 | KERNEL, "leaf", 0xFEDCB000),
        (PTE, 0xFEDCB000 | KERNEL | PSE, "leaf", 0xFEDCB000),  # bit 7 is PAT
        (PGD, 0xFEDCB000 | KERNEL, "table", 0xFEDCB000),
        (PGD, 0xFEC00000 | KERNEL | PSE, "leaf", 0xFEC00000),
        (PGD, 0xFEC00000 | KERNEL | PSE | PAT_LARGE, "leaf", 0xFEC00000),
        (PGD, 0xFEC00000 | KERNEL | PSE | 1 << 13, "leaf", 0x1FEC00000),  # PSE-36
        (PGD, 0x00400000 | KERNEL | PSE | 0xFF << 13, "leaf", 0xFF00400000),
        (PGD8, 0x40201000 | 1, "table", 0x40201000),
        (PGD8, 0x40201000 | 1 | PSE, "table", 0x40201000),  # reserved, but no large page up here
        (PMD8, 0x840201000 | KERNEL, "table", 0x840201000),
        (PMD8, 0x840200000 | KERNEL | PSE | PAT_LARGE | NX, "leaf", 0x840200000),
        (PTE8, 0x840201000 | KERNEL | NX, "leaf", 0x840201000),
        (PTE8, 0x840201000 | KERNEL | 1 << 52, "none", 0),  # reserved bits fault
        (PMD8, 0x840201000 | KERNEL | PSE | 1 << 62, "none", 0),
        (PGD8, 0x40201000 | 1 | NX, "table", 0x40201000),
    ],
)
def test_entry(level: Level, entry, kind, paddr):
    many, one = (i386.decode_narrow, i386.decode_narrow_one) if level.entry == 4 else (
        i386.decode_wide, i386.decode_wide_one,
    )  # fmt: skip
    single = one(entry, level, 0)
    assert (single.kind, single.paddr) == (kind, paddr)
    column = many(u64([entry]), level, u64([0]))
    assert (bool(column.leaf[0]), bool(column.table[0])) == (kind == "leaf", kind == "table")
    if kind != "none":
        assert int(column.paddr[0]) == paddr


@pytest.mark.parametrize(
    "level", [PGD, PTE, PGD8, PMD8, PTE8], ids=lambda level: f"{level.name}{level.entry}"
)
def test_column_equals_single_on_random_entries(level):
    form = paging_form(pae=level.entry == 8)
    source = random.Random(level.name)
    values = [source.getrandbits(8 * level.entry) & source.choice([~0, ~(0x7FF << 52)]) for _ in range(2000)]
    column = form.decode(u64(values), level, u64([0]))
    for index, value in enumerate(values):
        single = form.decode_one(value, level, 0)
        assert (single.kind == "leaf", single.kind == "table") == (column.leaf[index], column.table[index])
        if single.kind != "none":
            assert single.paddr == int(column.paddr[index])


def test_shapes():
    narrow, wide = paging_form(pae=False), paging_form(pae=True)
    assert (narrow.va_bits, wide.va_bits) == (32, 32)
    assert [level.table_size for level in wide.levels] == [32, 4096, 4096]
    assert [level.table_size for level in narrow.levels] == [4096, 4096]
    assert (narrow.physmem_bits, wide.physmem_bits) == (32, 36)
    form = paging_form(pae=True, page_offset=0xC0000000)
    assert (form.kernel, form.user) == (Region(0xC0000000, 1 << 32), Region(0, 0xC0000000))
    assert form.is_canonical(0xFFFFFFFF) and not form.is_canonical(1 << 32)


def test_forms_by_the_line_and_by_where_the_image_can_be():
    sure = ARCH.paging_forms(said("CONFIG_X86_PAE=y\nSYMBOL(_stext)=c1000000\n"))
    assert [(form.name, form.kernel.start) for form in sure] == [
        ("i386 PAE", 0xC0000000), ("i386 PAE", 0xB0000000),
        ("i386 2-level", 0xC0000000), ("i386 2-level", 0xB0000000),
    ]  # fmt: skip
    unsure = ARCH.paging_forms(said("SYMBOL(swapper_pg_dir)=41e98000\n"))
    assert [(form.name, form.image_distance) for form in unsure] == [
        ("i386 2-level", 0x40000000), ("i386 PAE", 0x40000000),
    ]  # fmt: skip
    assert [form.image_distance for form in ARCH.paging_forms(said(""))] == [None, None]
    assert len(ARCH.paging_forms(said("SYMBOL(_stext)=ffffffff81000000\n"))) == 2


def test_image_without_tables():
    info = said("SYMBOL(_stext)=c1000000\n")
    assert ARCH.image_paddrs(info, 0xC1E98000, NO_RANGES) == (0x1E98000, 0x11E98000)
    low = Ranges(u64([0]), u64([0x8000000]))
    assert ARCH.image_paddrs(info, 0xC1E98000, low) == (0x1E98000,)
    assert ARCH.image_paddrs(info, 0xFFFFFFFFC1E98000, low) == ()
    assert ARCH.image_paddrs(said(""), 0xC1E98000, low) == ()
    assert ARCH.image_window(info) == (0xC0000000, 0xC5000000)
    assert ARCH.image_window(said("")) == (0x40000000, 0xFFFFF000)


@pytest.mark.parametrize(
    ("cr4", "cr3", "roots"),
    [
        (0x20, 0x24EF060, (0x24EE060, 0x24EF060)),  # 32 bytes each; behind the kernel's is the user's
        (0x20, 0x24EE07F, (0x24EE060,)),
        (0x00, 0x24EE018, (0x24EE000,)),
    ],
)
def test_running_tables(cr4, cr3, roots):
    found = ARCH.running_tables(said("SYMBOL(_stext)=c1000000\n"), {"cr0": 1 << 31, "cr3": cr3, "cr4": cr4})
    assert tuple(root for root, _ in found) == roots
    assert {len(form.levels) for _, form in found} == {3 if cr4 else 2}
    assert ARCH.running_tables(said(""), {"cr0": 1, "cr3": cr3, "cr4": cr4}) == ()
    assert ARCH.running_tables(said(""), {"cr3": cr3}) == ()


THREAD = "OFFSET(task_struct.thread)=2048\nOFFSET(thread_struct.sp)=24\n"
MEMBERS = ("flags", "si", "di", "bx", "bp", "ret_addr")


def context(text: str):
    return ARCH.saved_context(Knowledge((said(text),)), nothing)


@pytest.mark.parametrize("first", [0, 1])
def test_inactive_task_frame(first):
    """With and without the flags in front."""
    frame = "".join(
        f"OFFSET(inactive_task_frame.{member})={4 * at}\n" for at, member in enumerate(MEMBERS[first:])
    )
    found = context(THREAD + frame)
    assert found is not None
    assert found.pointer == 2072
    behind = 4 * len(MEMBERS[first:])
    assert dict(found.registers)["eip"] == behind - 4
    assert set(dict(found.registers)) == {"ebx", "esi", "edi", "ebp", "eip"}
    assert found.derived == (("esp", behind),)


def test_before_the_frame():
    """switch_to() pushed the flags and ebp, and thread.ip is where a task goes on (until v4.9)."""
    found = context(THREAD + "OFFSET(thread_struct.ip)=32\n")
    assert found is not None
    assert (found.registers, found.derived, found.in_task) == ((("ebp", 0),), (("esp", 8),), (("eip", 2080),))
    assert context(THREAD) is None
    assert context("") is None


def test_prstatus_layout_is_the_kernels():
    """struct elf_prstatus: 3 ints, 2 shorts, 2 longs, 4 pids, 4 timevals, 17 registers, an int."""
    assert ARCH.prstatus.size == struct.calcsize("<3i2h2I4i8i17Ii") == 144
    assert [ARCH.prstatus.register_offset(name) for name in ("ebx", "eip", "esp", "ss")] == [
        72,
        120,
        132,
        136,
    ]
