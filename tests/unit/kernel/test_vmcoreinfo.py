"""VMCOREINFO text: typed keys, overrides, and lines nobody expects."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.vmcoreinfo import override, parse
from tests.builders.kernel import make_kernel

TEXT = b"""OSRELEASE=6.1.0-13-amd64
BUILD-ID=00112233445566778899aabbccddeeff00112233
PAGESIZE=4096

SYMBOL(_stext)=ffffffff9b000000
SYMBOL(zero)=0
ADDRESS(phys_pgd_ptr)=0x610000
SIZE(list_head)=16
OFFSET(page.lru)=8
LENGTH(mem_section)=2048
NUMBER(phys_base)=-448790528
NUMBER(PG_slab)=512
KERNELOFFSET=1a000000
CONFIG_X86_PAE=y
a line without a value
FUTURE(key.of.tomorrow)=anything = at all
"""


def test_typed_keys():
    info = parse(TEXT)
    assert info.text("OSRELEASE") == "6.1.0-13-amd64"
    assert info.build_id == bytes.fromhex("00112233445566778899aabbccddeeff00112233")
    assert info.symbol("_stext") == 0xFFFFFFFF9B000000
    assert info.symbol("zero") == 0
    assert info.address("phys_pgd_ptr") == 0x610000
    assert info.size("list_head") == 16
    assert info.offset("page.lru") == 8
    assert info.length("mem_section") == 2048
    assert info.number("phys_base") == -448790528
    assert info.number("PG_slab") == 512
    assert info.kaslr_offset == 0x1A000000
    assert info.text("CONFIG_X86_PAE") == "y"


def test_absent_keys_are_none():
    info = parse(TEXT)
    assert info.symbol("_text") is None
    assert info.number("_stext") is None
    assert info.offset("list_head") is None
    assert info.text("BUILD") is None
    assert parse(b"").build_id is None
    assert parse(b"").values == {}


def test_unknown_keys_are_kept_with_everything_behind_the_first_equal_sign():
    assert parse(TEXT).text("FUTURE(key.of.tomorrow)") == "anything = at all"


def test_text_ends_at_nul():
    info = parse(b"A=1\nB=2\0C=3\n")
    assert (info.text("A"), info.text("B"), info.text("C")) == ("1", "2", None)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_line_ends(end):
    assert parse(b"SIZE(list_head)=16" + end).size("list_head") == 16


@pytest.mark.parametrize("value", ["", "xyz", "12zz", "--5", "1" * 400, "0x", "\u00b2", "1_0"])
def test_values_that_are_no_number_are_not_found(value):
    info = parse(f"NUMBER(a)={value}\nSYMBOL(a)={value.replace('1', 'f')}\nBUILD-ID={value}z\n".encode())
    assert info.number("a") is None
    assert info.symbol("a") is None
    assert info.build_id is None


@pytest.mark.parametrize("text", ["NUMBER(a)=18446744073709551616", "NUMBER(a)=-9223372036854775809"])
def test_numbers_beyond_64_bits_are_not_found(text):
    assert parse(text.encode()).number("a") is None


def test_arm64_prints_some_numbers_in_hexadecimal():
    assert (
        parse(b"NUMBER(kimage_voffset)=0xffff800008000000\n").number("kimage_voffset") == 0xFFFF800008000000
    )
    assert parse(b"NUMBER(PHYS_OFFSET)=40000000\n").number("PHYS_OFFSET") == 0x40000000


def test_first_line_of_a_key_wins():
    assert parse(b"A=1\nA=2\n").text("A") == "1"


def test_override_lays_the_extra_file_over_the_dump():
    base, extra = parse(TEXT), parse(b"SYMBOL(_stext)=ffffffff81000000\nNEW=1\n", "-e file")
    both = override(base, extra)
    assert both.symbol("_stext") == 0xFFFFFFFF81000000
    assert both.text("NEW") == "1"
    assert both.size("list_head") == 16
    assert (both.source("SYMBOL(_stext)"), both.source("SIZE(list_head)")) == ("-e file", "VMCOREINFO")
    assert base.symbol("_stext") == 0xFFFFFFFF9B000000


def test_builders_text_is_read_as_it_was_meant():
    kernel = make_kernel()
    info = parse(kernel.vmcoreinfo_text().encode())
    assert info.symbol("_stext") == kernel.text_vaddr
    assert info.number("phys_base") == kernel.phys_base
    assert info.number("pgtable_l5_enabled") == 0
