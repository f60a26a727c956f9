"""The architectures this version knows: one file and one line each."""

from __future__ import annotations

from kdump_elftool.arch import arm, arm64, i386, mips, x86_64
from kdump_elftool.arch.base import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (
    x86_64.ARCH,
    i386.ARCH,
    arm64.ARCH,
    arm.ARCH,
    mips.ARCH32,
    mips.ARCH64,
)


def find_architecture(e_machine: int, bits: int) -> Architecture | None:
    """The architecture with this ELF machine number; ``bits``, of the dump's header, where it has two.

    QEMU writes an i386 guest into a 64-bit file, so where there is one the width says nothing.
    """
    found = [arch for arch in ARCHITECTURES if arch.e_machine == e_machine]
    return next((arch for arch in found if len(found) == 1 or arch.bits == bits), None)
