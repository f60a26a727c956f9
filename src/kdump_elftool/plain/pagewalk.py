"""Page tables walked for one address, entry by entry, by the names that the project gives to their forms.

References: Intel SDM vol. 3 chapter 4 (x86), Arm ARM section D8.3 (arm64).  Other forms are known to ``arch``
alone, which cannot be had in gdb: :func:`form_of` has None for them.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from kdump_elftool.plain.walking import WalkError


class Physical(Protocol):
    """Physical memory, as far as it is there."""

    def read_physical(self, paddr: int, size: int, /) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""


class Level(NamedTuple):
    """A table's entries map ``1 << shift`` bytes each; ``leaf`` is a bit that makes one of them a page."""

    name: str
    shift: int
    bits: int
    leaf: int | None


class Form(NamedTuple):
    """``top``: how many bits an address has below those that only tell which half it is in.

    ``leaf_if_clear``: a page is where ``Level.leaf`` is not set.  ``is_half``: there are two tables.
    """

    levels: tuple[Level, ...]
    entry: int
    address: int
    top: int
    order: str
    leaf_if_clear: bool = False
    is_half: bool = False


class Found(NamedTuple):
    """Where an address lies, and in how large a page."""

    paddr: int
    size: int


_PRESENT = 1
_LARGE = 1 << 7
_X86_ADDRESS = 0x000FFFFFFFFFF000
_ARM64 = re.compile(r"arm64 (4|16|64) KB pages, (\d\d)-bit")


def form_of(name: str, order: str, sme_mask: int = 0) -> Form | None:
    """By the name that a core carries as the fact ``paging`` (docs/notes.md)."""
    if name in ("x86_64 4-level", "x86_64 5-level"):
        bits = (9, 9, 9, 9, 9) if name.endswith("5-level") else (9, 9, 9, 9)
        return Form(_x86(bits, 12), 8, _X86_ADDRESS & ~sme_mask, 12 + sum(bits), order)
    if name == "i386 PAE":
        return Form(_x86((2, 9, 9), 12), 8, _X86_ADDRESS, 32, order)
    if name == "i386 2-level":
        return Form(_x86((10, 10), 12), 4, 0xFFFFF000, 32, order)
    arm64 = _ARM64.match(name)
    if arm64 is None or int(arm64[2]) > 48:
        return None  # the bits above 48 are scattered over a descriptor
    shift, top = int(arm64[1]).bit_length() + 9, int(arm64[2])
    return Form(_arm64(shift, top), 8, (1 << 48) - (1 << shift), top, order, leaf_if_clear=True, is_half=True)


def _x86(bits: tuple[int, ...], page_shift: int) -> tuple[Level, ...]:
    levels, shift = [], page_shift + sum(bits)
    for depth, each in enumerate(bits):
        shift -= each
        name = _name(depth, len(bits))
        may_be_page = name in ("pud", "pmd") or (len(bits) == 2 and depth == 0)
        levels.append(Level(name, shift, each, _LARGE if may_be_page else None))
    return tuple(levels)


def _arm64(page_shift: int, top: int) -> tuple[Level, ...]:
    """The top table is as small as its addresses allow; blocks are where the table bit is clear."""
    each = page_shift - 3
    shifts = list(range(page_shift, top, each))[::-1]
    return tuple(
        Level(_name(depth, len(shifts)), shift, min(each, top - shift), 2 if shift > page_shift else None)
        for depth, shift in enumerate(shifts)
    )


def _name(depth: int, levels: int) -> str:
    """The kernel's word for a table, of which the middle ones are left out where there are few."""
    return "pgd" if depth == 0 else ("p4d", "pud", "pmd", "pte")[4 - levels + depth]


def walk(memory: Physical, form: Form, root: int, vaddr: int) -> Found:
    """Where ``vaddr`` lies by the table at ``root``.  Raises WalkError, FaultError for a table not there."""
    order = "little" if form.order == "<" else "big"
    if vaddr >> form.top not in (0, (1 << max(64 - form.top, 0)) - 1):
        raise WalkError("not mapped: no address has these upper bits")
    table = root
    for level in form.levels:
        index = vaddr >> level.shift & (1 << level.bits) - 1
        raw = memory.read_physical(table + index * form.entry, form.entry)
        entry = int.from_bytes(raw, order)  # type: ignore[arg-type]
        if not entry & _PRESENT:
            raise WalkError(f"not mapped: {level.name} entry is {entry:#x}")
        is_last = level is form.levels[-1]
        if is_last or (level.leaf is not None and bool(entry & level.leaf) != form.leaf_if_clear):
            inside = (1 << level.shift) - 1
            return Found((entry & form.address & ~inside) | vaddr & inside, 1 << level.shift)
        table = entry & form.address
    raise AssertionError("the last level ends every walk")
