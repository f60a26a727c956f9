"""Page tables walked for one address, entry by entry, by the names that the project gives to their forms.

References: Intel SDM vol. 3 chapter 4 (x86), Arm ARM section D8.3 (arm64), ARMv7-A ARM sections B3.5 and B3.6
(arm).  Other forms are known to ``arch`` alone, which gdb cannot have: :func:`form_of` has None for them.
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

    ``more``: bits of an entry that are further bits of the address, and how far they move up
    (``more_in_large``: in those of large pages only).
    ``leaf_if_clear``: a page is where ``Level.leaf`` is not set.  ``is_half``: there are two tables.
    ``is_short``: Arm's short descriptors, whose sizes are told by the entries.
    """

    levels: tuple[Level, ...]
    entry: int
    address: int
    top: int
    order: str
    more: tuple[int, int] = (0, 0)
    more_in_large: bool = False
    leaf_if_clear: bool = False
    is_half: bool = False
    is_short: bool = False


class Found(NamedTuple):
    """Where an address lies, and in how large a page."""

    paddr: int
    size: int


_PRESENT = 1
_LARGE = 1 << 7
_TABLE = 1 << 1
_X86_ADDRESS = 0x000FFFFFFFFFF000
_ARM_SHORT = (Level("pgd", 20, 12, None), Level("pte", 12, 8, None))
_ARM_LPAE = (Level("pgd", 30, 2, _TABLE), Level("pmd", 21, 9, _TABLE), Level("pte", 12, 9, _TABLE))
_SUPERSECTION = 1 << 18
_ARM64 = re.compile(r"arm64 (4|16|64) KB pages, (\d\d)-bit")


def form_of(name: str, order: str, sme_mask: int = 0) -> Form | None:
    """By the name that a core carries as the fact ``paging`` (docs/notes.md)."""
    if name in ("x86_64 4-level", "x86_64 5-level"):
        bits = (9, 9, 9, 9, 9) if name.endswith("5-level") else (9, 9, 9, 9)
        return Form(_x86(bits, 12), 8, _X86_ADDRESS & ~sme_mask, 12 + sum(bits), order)
    if name == "i386 PAE":
        return Form(_x86((2, 9, 9), 12), 8, _X86_ADDRESS, 32, order)
    if name == "i386 2-level":
        # bits 32 to 39 of large pages (PSE-36)
        return Form(_x86((10, 10), 12), 4, 0xFFFFF000, 32, order, more=(0xFF << 13, 19), more_in_large=True)
    if name == "arm short":
        return Form(_ARM_SHORT, 4, 0xFFFFFC00, 32, order, is_short=True)
    if name == "arm LPAE":
        return Form(_ARM_LPAE, 8, (1 << 40) - (1 << 12), 32, order, leaf_if_clear=True)
    arm64 = _ARM64.match(name)
    if arm64 is None:
        return None
    shift, top = int(arm64[1]).bit_length() + 9, int(arm64[2])
    if not shift < top <= 52:
        return None
    # where bits 48 to 51 of an address are: with 64 KB pages, with 52 address bits and smaller ones (LPA2)
    width, more = (48, (0xF000, 36)) if shift == 16 else (50, (0x300, 42)) if top == 52 else (48, (0, 0))
    levels, mask = _arm64(shift, top), (1 << width) - (1 << shift)
    return Form(levels, 8, mask, top, order, more=more, leaf_if_clear=True, is_half=True)


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
    largest = {12: 30, 14: 25, 16: 29}[page_shift] + (each if top == 52 else 0)
    return tuple(
        Level(_name(depth, len(shifts)), shift, min(each, top - shift), _TABLE if shift <= largest else None)
        for depth, shift in enumerate(shifts)
    )


def _name(depth: int, levels: int) -> str:
    """The kernel's word for a table, of which the middle ones are left out where there are few."""
    return "pgd" if depth == 0 else ("p4d", "pud", "pmd", "pte")[4 - levels + depth]


def _kind(form: Form, level: Level, entry: int) -> str:
    """``table``, ``page`` or ``none``."""
    is_last = level is form.levels[-1]
    if not entry & _PRESENT:
        return "none"
    if not form.leaf_if_clear:
        return "page" if is_last or (level.leaf is not None and entry & level.leaf) else "table"
    if entry & _TABLE:
        return "page" if is_last else "table"
    return "none" if is_last or level.leaf is None else "page"


def _address(form: Form, level: Level | None, entry: int) -> int:
    """Of the page that an entry of ``level`` maps, or of a table."""
    mask, up = form.more
    if form.more_in_large and (level is None or level.leaf is None):
        mask = 0
    return entry & form.address | (entry & mask) << up


def _short_kind(level: Level, entry: int) -> str:
    """Bit 1 of the first level set is a section, whatever bit 0 is."""
    if not entry & 3:
        return "none"
    return "table" if level.name == "pgd" and entry & 3 == 1 else "page"


def _short_page(level: Level, entry: int, vaddr: int) -> Found:
    """A section or supersection, which has address bits 32 to 39; a large or a small page."""
    above = 0
    if level.name == "pgd" and entry & _SUPERSECTION:
        size = 1 << 24
        above = (entry >> 20 & 15) << 32 | (entry >> 5 & 15) << 36
    elif level.name == "pgd":
        size = 1 << 20
    else:
        size = 1 << 16 if entry & 3 == 1 else 1 << 12
    return Found(above | entry & (1 << 32) - size | vaddr & size - 1, size)


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
        kind = _short_kind(level, entry) if form.is_short else _kind(form, level, entry)
        if kind == "none":
            raise WalkError(f"not mapped: {level.name} entry is {entry:#x}")
        if kind == "page" and form.is_short:
            return _short_page(level, entry, vaddr)
        if kind == "page":
            inside = (1 << level.shift) - 1
            return Found(_address(form, level, entry) & ~inside | vaddr & inside, 1 << level.shift)
        table = _address(form, None, entry)
    raise AssertionError("the last level ends every walk")
