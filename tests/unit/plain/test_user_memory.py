"""A command line in pages that lie anywhere."""

from __future__ import annotations

import struct

import pytest

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.pagewalk import Form, form_of
from kdump_elftool.plain.user_memory import LONGEST, command_line, has_memory
from kdump_elftool.plain.walking import WalkError
from tests.builders.locks import LockMemory

FORM = form_of("x86_64 4-level", "<")
ROOT, PUD, PMD, PTE, FIRST, SECOND = (0x1000 * number for number in (1, 2, 3, 4, 9, 6))
VADDR = 0x7FFC00000000
MM, PGD_AT, START_AT, END_AT, MM_AT = 0x4000, 0, 8, 16, 0x30
WORDS = b"sh\0-c\0" + b"x" * 100 + b"\0"
INDEX = [VADDR >> shift & 511 for shift in (39, 30, 21, 12)]


class Physical:
    """Sixteen pages, at the same addresses in the kernel's half of the process below."""

    def __init__(self) -> None:
        self.data = bytearray(0x10000)
        for table, index, entry in zip((ROOT, PUD, PMD), INDEX, (PUD, PMD, PTE), strict=False):
            struct.pack_into("<Q", self.data, table + 8 * index, entry | 7)
        for page, paddr in enumerate((FIRST, SECOND)):
            struct.pack_into("<Q", self.data, PTE + 8 * (INDEX[3] + page), paddr | 7)

    def paddr_of(self, vaddr: int) -> int | None:
        return vaddr & 0xFFFF if vaddr >> 63 else None

    def read_physical(self, paddr: int, size: int, /) -> bytes:
        if paddr + size > len(self.data):
            raise FaultError("paddr", paddr, "not there")
        return bytes(self.data[paddr : paddr + size])


def process(start: int, end: int) -> LockMemory:
    kernel = LockMemory("list")
    members = {"pgd": PGD_AT, "arg_start": START_AT, "arg_end": END_AT}
    kernel.offsets |= {"task_struct.mm": MM_AT, **{f"mm_struct.{name}": at for name, at in members.items()}}
    mm = kernel.base + MM
    kernel.put(kernel.tasks[1].vaddr + MM_AT, mm)
    for at, value in ((PGD_AT, (1 << 63) + ROOT), (START_AT, start), (END_AT, end)):
        kernel.put(mm + at, value)
    return kernel


def read(kernel: LockMemory, memory: Physical) -> bytes:
    assert isinstance(FORM, Form)
    return command_line(kernel, memory, FORM, kernel.tasks[1].vaddr)


@pytest.mark.parametrize("inside", [0, 0xFF0, 0x1000 - 1])
def test_over_the_end_of_a_page(inside):
    memory = Physical()
    pages = bytearray(0x2000)
    pages[inside : inside + len(WORDS)] = WORDS
    memory.data[FIRST : FIRST + 0x1000], memory.data[SECOND : SECOND + 0x1000] = (
        pages[:0x1000],
        pages[0x1000:],
    )
    assert read(process(VADDR + inside, VADDR + inside + len(WORDS)), memory) == WORDS


def test_a_length_that_lies_is_cut():
    assert len(read(process(VADDR + 8, VADDR + (1 << 40)), Physical())) == LONGEST


@pytest.mark.parametrize(("start", "end"), [(0, 5), (VADDR, VADDR), (VADDR + 1, VADDR)])
def test_nothing(start, end):
    with pytest.raises(WalkError):
        read(process(start, end), Physical())


def test_a_page_that_is_not_mapped():
    with pytest.raises(WalkError):
        read(process(VADDR + 0x2000, VADDR + 0x2005), Physical())


def test_kernel_threads_have_none():
    kernel = process(VADDR, VADDR + 5)
    assert has_memory(kernel, kernel.tasks[1].vaddr)
    assert not has_memory(kernel, kernel.tasks[2].vaddr)
