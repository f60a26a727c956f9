"""The machine of a kdump-compressed dump: by the name that uname has there, by its registers, by a line."""

from __future__ import annotations

import pytest

from kdump_elftool.elf.notes import Note
from kdump_elftool.formats.diskdump_machines import find_machine

# e_machine: Linux include/uapi/linux/elf-em.h; sizes of elf_prstatus as crash's and gdb's readers have them
NAMES = [
    ("x86_64", "<", 62, 64),
    ("i386", "<", 3, 32),
    ("i586", "<", 3, 32),
    ("i686", "<", 3, 32),
    ("aarch64", "<", 183, 64),
    ("aarch64_be", ">", 183, 64),
    ("armv7l", "<", 40, 32),
    ("armv5teb", ">", 40, 32),
    ("ppc64", ">", 21, 64),
    ("ppc64le", "<", 21, 64),
    ("ppc", ">", 20, 32),
    ("s390x", ">", 22, 64),
    ("mips", ">", 8, 32),
    ("mips64", ">", 8, 64),
    ("riscv64", "<", 243, 64),
    ("riscv32", "<", 243, 32),
    ("loongarch64", "<", 258, 64),
]
REGISTERS = [
    (336, "<", 62, 64),
    (336, ">", 22, 64),
    (392, "<", 183, 64),
    (376, "<", 243, 64),
    (504, "<", 21, 64),
    (504, ">", 21, 64),
    (480, "<", 258, 64),
    (480, ">", 8, 64),
    (144, "<", 3, 32),
    (148, "<", 40, 32),
    (256, ">", 8, 32),
    (268, ">", 20, 32),
]


@pytest.mark.parametrize(("name", "order", "machine", "bits"), NAMES)
def test_by_name(name, order, machine, bits):
    assert find_machine(name, order, bits, ()) == (machine, bits, None)


@pytest.mark.parametrize("name", ["", "Unknown"])
@pytest.mark.parametrize(("size", "order", "machine", "bits"), REGISTERS)
def test_by_registers(name, size, order, machine, bits):
    """As QEMU writes them: the header names nothing, and there is no VMCOREINFO."""
    notes = (Note(b"QEMU", 0, bytes(432)), Note(b"CORE", 1, bytes(size)))
    assert find_machine(name, order, 64, notes) == (machine, bits, None)


@pytest.mark.parametrize("name", ["x86_64", "i686", ""])
def test_x86_by_registers(name):
    """QEMU names the target, not what the guest runs on it."""
    assert find_machine(name, "<", 64, (Note(b"CORE", 1, bytes(144)),))[:2] == (3, 32)
    assert find_machine(name, "<", 32, (Note(b"CORE", 1, bytes(336)),))[:2] == (62, 64)


def test_nothing_says_it():
    assert find_machine("", "<", 64, ())[:2] == (62, 64)
    assert find_machine("Unknown", ">", 64, (Note(b"CORE", 1, bytes(12)),))[:2] == (0, 64)
