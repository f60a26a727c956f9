"""arm64: descriptors, forms by what VMCOREINFO says, registers."""

from __future__ import annotations

import random
import struct

import pytest

from kdump_elftool.addr import NO_RANGES, u64
from kdump_elftool.arch import arm64
from kdump_elftool.arch.arm64 import ARCH, paging_form
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.vmcoreinfo import parse
from tests.builders.arm64tables import GEOMETRIES, KERNEL, SHARED


def info(*lines: str):
    return parse("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("geometry", "levels"),
    [
        ((12, 39), [("pgd", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        ((12, 48), [("pgd", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        ((12, 52), [("pgd", 48, 4), ("p4d", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        ((14, 36), [("pgd", 25, 11), ("pte", 14, 11)]),
        ((14, 47), [("pgd", 36, 11), ("pmd", 25, 11), ("pte", 14, 11)]),
        ((14, 48), [("pgd", 47, 1), ("pud", 36, 11), ("pmd", 25, 11), ("pte", 14, 11)]),
        ((14, 52), [("pgd", 47, 5), ("pud", 36, 11), ("pmd", 25, 11), ("pte", 14, 11)]),
        ((16, 42), [("pgd", 29, 13), ("pte", 16, 13)]),
        ((16, 48), [("pgd", 42, 6), ("pmd", 29, 13), ("pte", 16, 13)]),
        ((16, 52), [("pgd", 42, 10), ("pmd", 29, 13), ("pte", 16, 13)]),
    ],
)
def test_levels(geometry, levels):
    """As arch/arm64/include/asm/pgtable-hwdef.h has PGDIR_SHIFT and PTRS_PER_PGD."""
    form = paging_form(*geometry)
    assert [(level.name, level.shift, level.bits) for level in form.levels] == levels
    assert form.va_bits == geometry[1]
    assert (1 << 64) - 1 in form.kernel
    assert (1 << 64) - (1 << form.va_bits) in form.kernel
    assert not form.is_canonical((1 << 64) - (1 << form.va_bits) - 1)
    assert not form.is_canonical(0x400000)
    assert form.user_form is not None
    assert form.user_form.is_canonical(0x400000)
    assert not form.user_form.is_canonical((1 << 64) - 1)
    assert form.user_form.full(u64([0x400000])).tolist() == [0x400000]


@pytest.mark.parametrize(
    ("geometry", "level", "entry", "kind", "paddr"),
    [
        ((12, 48), "pte", 0, "none", 0),
        ((12, 48), "pte", 0x1234000 | KERNEL | 2, "none", 0),  # not valid: swapped or PROT_NONE
        ((12, 48), "pte", 0x1234000 | KERNEL | 1, "none", 0),  # reserved
        ((12, 48), "pte", 0xFFFFFFFFF000 | KERNEL | SHARED | 3, "leaf", 0xFFFFFFFFF000),
        ((12, 48), "pmd", 0x40200000 | KERNEL | SHARED | 1, "leaf", 0x40200000),
        ((12, 48), "pmd", 0x40210000 | KERNEL | 1, "leaf", 0x40200000),  # bit 16: nT
        ((12, 48), "pmd", 0x40201000 | 1 << 60 | 3, "table", 0x40201000),  # PXNTable
        ((12, 48), "pud", 0x8040000000 | KERNEL | 1, "leaf", 0x8040000000),
        ((12, 48), "pgd", 0x8000000000 | KERNEL | 1, "none", 0),  # no blocks of 512 GB
        ((12, 52), "p4d", 0x8000000000 | KERNEL | 1, "leaf", 0x8000000000),
        ((12, 52), "pgd", 0x40201000 | 1, "none", 0),
        ((12, 52), "pte", 0x40201000 | KERNEL | SHARED | 3, "leaf", 3 << 50 | 0x40201000),
        ((12, 52), "pte", 3 << 48 | 0x40201000 | 3, "leaf", 3 << 48 | 0x40201000),
        ((12, 52), "pmd", 0x40201000 | 0x100 | 3, "table", 1 << 50 | 0x40201000),
        ((14, 48), "pmd", 0x42000000 | KERNEL | 1, "leaf", 0x42000000),
        ((14, 48), "pud", 0x1000000000 | KERNEL | 1, "none", 0),
        ((14, 52), "pud", 0x1000000000 | KERNEL | 0x201, "leaf", 1 << 51 | 0x1000000000),
        ((14, 48), "pte", 0x4000C000 | KERNEL | SHARED | 3, "leaf", 0x4000C000),
        ((16, 48), "pte", 0x40010000 | 0xA000 | KERNEL | SHARED | 3, "leaf", 0xA << 48 | 0x40010000),
        ((16, 48), "pmd", 0x60000000 | 0x1000 | KERNEL | 1, "leaf", 1 << 48 | 0x60000000),
        ((16, 48), "pgd", 0x40010000 | 1, "none", 0),
        ((16, 52), "pgd", 0x40000000000 | 1, "leaf", 0x40000000000),
    ],
)
def test_entry(geometry, level, entry, kind, paddr):
    form = paging_form(*geometry)
    at = next(each for each in form.levels if each.name == level)
    single, column = form.decode_one(entry, at, 0), form.decode(u64([entry]), at, u64([0]))
    assert (single.kind, single.paddr) == (kind, paddr)
    assert (bool(column.leaf[0]), bool(column.table[0])) == (kind == "leaf", kind == "table")
    assert kind == "none" or int(column.paddr[0]) == paddr


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_column_equals_single_on_random_entries(geometry):
    form = paging_form(*geometry)
    values = [random.Random(str(geometry)).getrandbits(64) for _ in range(500)]
    for level in form.levels:
        column = form.decode(u64(values), level, u64([0]))
        for index, value in enumerate(values):
            single = form.decode_one(value, level, 0)
            assert (single.kind == "leaf", single.kind == "table") == (
                column.leaf[index],
                column.table[index],
            )
            assert single.kind == "none" or single.paddr == int(column.paddr[index])


@pytest.mark.parametrize(
    ("lines", "first", "others"),
    [
        (["PAGESIZE=4096", "NUMBER(VA_BITS)=48"], (12, 48), []),
        (["PAGESIZE=4096", "NUMBER(VA_BITS)=39", "NUMBER(TCR_EL1_T1SZ)=0x19"], (12, 39), []),
        (["PAGESIZE=4096", "NUMBER(VA_BITS)=52", "NUMBER(TCR_EL1_T1SZ)=0xc"], (12, 52), [(12, 48)]),
        (["PAGESIZE=4096", "NUMBER(VA_BITS)=52", "NUMBER(TCR_EL1_T1SZ)=0x10"], (12, 48), [(12, 52)]),
        (["PAGESIZE=16384", "NUMBER(VA_BITS)=52", "NUMBER(TCR_EL1_T1SZ)=0x11"], (14, 47), [(14, 52)]),
        (["PAGESIZE=16384", "NUMBER(VA_BITS)=36"], (14, 36), []),
        # TTBR1 points into the middle of the table, which stays that of 52 bits
        (["PAGESIZE=65536", "NUMBER(VA_BITS)=52", "NUMBER(TCR_EL1_T1SZ)=0x10"], (16, 52), [(16, 48)]),
        (["PAGESIZE=65536", "NUMBER(VA_BITS)=52"], (16, 52), [(16, 48)]),
        (["PAGESIZE=65536", "NUMBER(VA_BITS)=42"], (16, 42), []),
        (["PAGESIZE=65536"], (16, 48), [(16, 42), (16, 52)]),
        (["NUMBER(VA_BITS)=48"], (12, 48), [(14, 48), (16, 48)]),
        ([], (12, 48), GEOMETRIES),
        (["PAGESIZE=many", "NUMBER(TCR_EL1_T1SZ)=-9999999", "NUMBER(VA_BITS)=0"], (12, 48), GEOMETRIES),
    ],
)
def test_forms_by_vmcoreinfo(lines, first, others):
    forms = ARCH.paging_forms(info(*lines))
    assert forms[0] is paging_form(*first)
    assert {paging_form(*geometry) for geometry in others} <= set(forms)
    assert len(set(forms)) == len(forms)


def test_a_kernel_of_52_bits_on_48_bit_hardware():
    """64 KB pages: the 52-bit form finds the entries that TTBR1 points at, 7680 bytes into the table."""
    form = paging_form(16, 52)
    vaddr = 0xFFFF800010000000
    index = form.raw(vaddr) >> form.levels[0].shift
    short = paging_form(16, 48)
    assert 8 * index == 7680 + 8 * (short.raw(vaddr) >> short.levels[0].shift)


def test_image():
    known = info("NUMBER(kimage_voffset)=0xffffcf0374200000", "SYMBOL(_stext)=ffffcf03b4410000")
    assert ARCH.image_paddrs(known, 0xFFFFCF03B577B000, NO_RANGES) == (0x4157B000,)
    assert ARCH.image_paddrs(info(), 0xFFFFCF03B577B000, NO_RANGES) == ()
    low, high = ARCH.image_window(known)
    assert (low, high) == (0xFFFFCF03B4400000, 0xFFFFCF03C4400000)
    assert ARCH.image_window(info("SYMBOL(_stext)=ffff000008081000"))[0] == 0xFFFF000008080000
    for stext in (0, (1 << 64) - 1):
        low, high = ARCH.image_window(info(f"SYMBOL(_stext)={stext:x}"))
        assert 0 < low < high < 1 << 64
    said = ARCH.image_numbers(paging_form(12, 48), 0xFFFFCF03B577B000, 0x4157B000)
    assert said == {"VA_BITS": 48, "TCR_EL1_T1SZ": 16, "kimage_voffset": 0xFFFFCF0374200000}


def test_prstatus_layout_is_the_kernels():
    """struct elf_prstatus with 34 registers (arch/arm64/include/asm/elf.h): 392 bytes."""
    layout = ARCH.prstatus
    assert layout.size == 112 + 34 * 8 + 8
    assert layout.register_offset("x0") == 112
    assert (layout.register_offset("sp"), layout.register_offset("pc")) == (112 + 31 * 8, 112 + 32 * 8)


def nothing(vaddr: int, size: int) -> bytes:
    raise FaultError("vaddr", vaddr, "not mapped")


def test_saved_context():
    members = [*(f"x{number}" for number in range(19, 29)), "fp", "sp", "pc"]
    lines = [f"OFFSET(cpu_context.{name})={8 * index}" for index, name in enumerate(members)]
    lines += ["OFFSET(task_struct.thread)=3776", "OFFSET(thread_struct.cpu_context)=16"]
    found = ARCH.saved_context(Knowledge((info(*lines),)), nothing)
    assert found is not None
    assert (found.pointer, found.inside, found.stack_pointer) == (3792, True, "sp")
    registers = dict(found.registers)
    assert (registers["x19"], registers["x29"], registers["sp"]) == (0, 80, 88)
    assert registers["pc"] == registers["x30"] == 96
    assert ARCH.saved_context(Knowledge((info(*lines[:-1]),)), nothing) is None
    assert ARCH.saved_context(Knowledge((info(*lines[1:]),)), nothing) is None


def test_signed_addresses():
    """Only where the kernel says that it signs; both halves of struct user_pac_mask."""
    known = info("NUMBER(KERNELPACMASK)=0xfff0000000000000")
    (note,) = ARCH.thread_notes(known)
    assert (note.name, note.type) == (b"LINUX", 0x406)
    assert struct.unpack("<QQ", note.desc) == (0xFFF0000000000000,) * 2
    assert ARCH.hwcap(known) == 1 << 30
    for unsigned in (info(), info("NUMBER(KERNELPACMASK)=0x0")):
        assert ARCH.thread_notes(unsigned) == ()
        assert ARCH.hwcap(unsigned) == 0


def test_registered():
    assert arm64.ARCH.byte_orders == {"<": "arm64"}
