"""The debug information of a program, as far as its units' own entries need it: strings, addresses, ranges.

References: DWARF 5, 7.26 (string offsets), 7.27 (addresses), 2.17.3 and 7.28 (range lists); DWARF 4, 2.17.3
(.debug_ranges).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdump_elftool.dwarf.abbreviation_search import leb
from kdump_elftool.dwarf.constants import Rle

MOST_RANGES = 1 << 20
"""Of all units: a kernel has 10,000."""
_LONGEST_TEXT = 4096


@dataclass(frozen=True)
class DebugInput:
    """Contents of sections, b"" for what the program lacks; ``info`` reads by offset and size.

    ``order`` is numpy's byte order, ``word`` the bytes of an address.
    """

    order: str
    word: int
    info: Callable[[int, int], bytes]
    info_size: int
    abbrev: bytes
    line: bytes
    str: bytes = b""
    line_str: bytes = b""
    ranges: bytes = b""
    rnglists: bytes = b""
    str_offsets: bytes = b""
    addr: bytes = b""

    def number(self, data: bytes, at: int, size: int) -> int:
        """An unsigned number.  Raises ValueError behind the end."""
        piece = data[at : at + size]
        if len(piece) < size or at < 0:
            raise ValueError("a number lies behind the end of its section")
        return int.from_bytes(piece, "little" if self.order == "<" else "big")

    def address(self, base: int, index: int) -> int:
        """Entry ``index`` of the unit's table in .debug_addr."""
        return self.number(self.addr, base + index * self.word, self.word)


def text(section: bytes, at: int) -> bytes:
    """The string that begins there; empty behind the end, or if it is longer than a path."""
    end = section.find(b"\0", at, at + _LONGEST_TEXT)
    return section[at:end] if 0 <= at < end else b""


def old_ranges(source: DebugInput, at: int, base: int) -> Iterator[tuple[int, int]]:
    """A list of .debug_ranges, with an empty range for each entry that is none.  Raises ValueError."""
    word, top = source.word, (1 << 8 * source.word) - 1
    while True:
        start, end = source.number(source.ranges, at, word), source.number(source.ranges, at + word, word)
        at += 2 * word
        if not start and not end:
            return
        if start == top:
            base = end
            yield base, base
        else:
            yield base + start, base + end


def range_entries(source: DebugInput, at: int, base: int, addresses: int) -> Iterator[tuple[int, int]]:
    """A list of .debug_rnglists, with an empty range for each entry that is none.

    ``addresses`` is the unit's table in .debug_addr.  Raises ValueError, IndexError.
    """
    data, word = source.rnglists, source.word
    while True:
        kind = source.number(data, at, 1)
        at += 1
        if kind == Rle.END_OF_LIST:
            return
        operands = []
        for how in _OPERANDS[Rle(kind)]:
            if how == "a":
                value, at = source.number(data, at, word), at + word
            else:
                value, at = leb(data, at)
            operands.append(source.address(addresses, value) if how == "x" else value)
        if len(operands) == 1:
            base = operands[0]
            yield base, base
        elif kind == Rle.OFFSET_PAIR:
            yield base + operands[0], base + operands[1]
        elif kind in (Rle.STARTX_LENGTH, Rle.START_LENGTH):
            yield operands[0], operands[0] + operands[1]
        else:
            yield operands[0], operands[1]


_OPERANDS = {
    Rle.BASE_ADDRESSX: "x",
    Rle.STARTX_ENDX: "xx",
    Rle.STARTX_LENGTH: "xu",
    Rle.OFFSET_PAIR: "uu",
    Rle.BASE_ADDRESS: "a",
    Rle.START_END: "aa",
    Rle.START_LENGTH: "au",
}
"""a: an address, x: the number of one in .debug_addr, u: a number."""
