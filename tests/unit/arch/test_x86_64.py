"""x86_64 entries: every bit the kernel or the hardware may set, at every level."""

from __future__ import annotations

import random

import pytest

from kdump_elftool.addr import NO_RANGES, u64
from kdump_elftool.arch import ARCHITECTURES, x86_64
from tests.builders.notes import PR_PID_AT, X86_64_PRSTATUS_SIZE, X86_64_REGISTERS
from tests.builders.pagetables import KERNEL, NX, PAT_4K, PAT_LARGE, PKEY_BITS, PSE, SOFT_BITS

FOUR = {level.name: level for level in x86_64.paging_form(4).levels}
FIVE = {level.name: level for level in x86_64.paging_form(5).levels}


def test_registry():
    arch = ARCHITECTURES[0]
    assert (arch.name, arch.page_size, arch.stack_pointer) == ("x86_64", 4096, "rsp")


class Numbers:
    """What a VMCOREINFO would answer."""

    def __init__(self, **values: int) -> None:
        self.values = values

    def number(self, name: str) -> int | None:
        return self.values.get(name)

    def symbol(self, name: str) -> int | None:
        return None


def test_paging_forms_from_vmcoreinfo():
    forms = ARCHITECTURES[0].paging_forms
    assert [form.va_bits for form in forms(Numbers(pgtable_l5_enabled=1))] == [57, 48]
    assert [form.va_bits for form in forms(Numbers(pgtable_l5_enabled=0))] == [48, 57]
    assert [form.va_bits for form in forms(Numbers())] == [48, 57]
    assert {form.ignored_bits for form in forms(Numbers(sme_mask=1 << 51))} == {1 << 51}


@pytest.mark.parametrize("phys_base", [0, 0x1A000000, -0x1AC00000, (1 << 64) - 0x1AC00000])
def test_image_address_without_tables(phys_base):
    to_paddrs = ARCHITECTURES[0].image_paddrs
    vaddr, known = 0xFFFFFFFF9B000000, Numbers(phys_base=phys_base)
    assert to_paddrs(known, vaddr, NO_RANGES) == ((0x1B000000 + phys_base) % (1 << 64),)
    assert to_paddrs(known, 0xFFFF888000000000, NO_RANGES) == ()
    assert to_paddrs(Numbers(), vaddr, NO_RANGES) == ()


def test_levels():
    assert [(level.name, level.shift, level.bits) for level in x86_64.paging_form(4).levels] == [
        ("pgd", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9),
    ]  # fmt: skip
    assert [(level.name, level.shift) for level in x86_64.paging_form(5).levels] == [
        ("pgd", 48), ("p4d", 39), ("pud", 30), ("pmd", 21), ("pte", 12),
    ]  # fmt: skip
    assert FOUR["pte"].table_size == 4096
    assert FOUR["pmd"].span == 1 << 21


@pytest.mark.parametrize(
    ("levels", "level", "entry", "kind", "paddr"),
    [
        (4, "pte", 0, "none", 0),
        (4, "pte", 0x1234000 | NX | 0x102, "none", 0),  # a swap or PROT_NONE entry: not present
        (4, "pte", 0x1234000 | KERNEL | NX, "leaf", 0x1234000),
        (4, "pte", 0x1234000 | KERNEL | PAT_4K, "leaf", 0x1234000),  # bit 7 is PAT, not PSE
        (4, "pte", 0xFFFFFFFFFF000 | KERNEL | NX | SOFT_BITS | PKEY_BITS, "leaf", 0xFFFFFFFFFF000),
        (4, "pmd", 0x40200000 | KERNEL | PSE | PAT_LARGE | NX, "leaf", 0x40200000),
        (4, "pmd", 0x40201000 | KERNEL | NX, "table", 0x40201000),
        (4, "pud", 0x8040000000 | KERNEL | PSE | PAT_LARGE, "leaf", 0x8040000000),
        (4, "pud", 0x40201000 | KERNEL, "table", 0x40201000),
        (4, "pgd", 0x40201000 | KERNEL | PSE, "table", 0x40201000),  # bit 7 is reserved up here
        (5, "p4d", 0x40201000 | KERNEL, "table", 0x40201000),
        (5, "pgd", 0x40201000 | KERNEL | SOFT_BITS, "table", 0x40201000),
    ],
)
def test_entry(levels, level, entry, kind, paddr):
    at = (FOUR if levels == 4 else FIVE)[level]
    single = x86_64.decode_one(entry, at, 0)
    assert (single.kind, single.paddr if kind != "none" else 0) == (kind, paddr)
    column = x86_64.decode(u64([entry]), at, u64([0]))
    assert (bool(column.leaf[0]), bool(column.table[0])) == (kind == "leaf", kind == "table")
    if kind != "none":
        assert int(column.paddr[0]) == paddr


@pytest.mark.parametrize("name", ["pgd", "p4d", "pud", "pmd", "pte"])
def test_column_equals_single_on_random_entries(name):
    values = [random.Random(name).getrandbits(64) for _ in range(2000)]
    column = x86_64.decode(u64(values), FIVE[name], u64([0]))
    for index, value in enumerate(values):
        single = x86_64.decode_one(value, FIVE[name], 0)
        assert (single.kind == "leaf", single.kind == "table") == (column.leaf[index], column.table[index])
        if single.kind != "none":
            assert single.paddr == int(column.paddr[index])


def test_address_halves():
    four, five = x86_64.paging_form(4), x86_64.paging_form(5)
    assert (four.kernel.start, four.kernel.end) == (1 << 47, 1 << 48)
    assert (five.user.start, five.user.end) == (0, 1 << 56)
    assert four.is_canonical(0xFFFF888000000000) and not four.is_canonical(0xFF11000000000000)
    assert five.is_canonical(0xFF11000000000000) and not five.is_canonical(1 << 57)
    assert four.is_canonical(0x7FFFFFFFFFFF) and not four.is_canonical(1 << 47)
    assert four.raw(0xFFFF888000000000) == 0x888000000000


def test_prstatus_layout_is_the_kernels():
    layout = ARCHITECTURES[0].prstatus
    assert (layout.size, layout.pid_offset) == (X86_64_PRSTATUS_SIZE, PR_PID_AT)
    assert layout.registers == tuple(X86_64_REGISTERS)
    assert [layout.register_offset(name) for name in ("r15", "rip", "rsp", "gs")] == [112, 240, 264, 320]
