"""A unit for each source file that has code: its name, its ranges, its line table, and the functions in it.

A debugger finds the function and the line of an address through the one unit whose ranges have the
address, so functions have to be in the unit of their source file.  Their types stay in the kernel's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Index, Ranges, merge_ranges, u64
from kdump_elftool.dwarf.constants import PRODUCER, At, Form
from kdump_elftool.dwarf.entries import Column, RangeLists, number
from kdump_elftool.dwarf.source_units import SourceUnit
from kdump_elftool.dwarf.strings import StringSection

_NAMELESS = b"?"


@dataclass(frozen=True)
class Sources:
    """Units, and their ranges as columns by start: ``unit`` is the row of each in ``units``."""

    units: tuple[SourceUnit, ...]
    start: U64
    end: U64
    unit: Index

    @classmethod
    def of(cls, units: Sequence[SourceUnit], low: int, offset: int, word: int) -> Sources:
        """Without what lies below ``low``, where linkers put code that they discard; all else by ``offset``
        further on."""
        mask = MASK64 >> (64 - 8 * word)
        rows = [
            (start + offset & mask, end + offset & mask, at)
            for at, unit in enumerate(units)
            for start, end in unit.ranges
            if start >= low
        ]
        rows = sorted(row for row in rows if row[0] < row[1])
        columns = [[row[column] for row in rows] for column in range(3)]
        return cls(tuple(units), u64(columns[0]), u64(columns[1]), np.array(columns[2], dtype=np.intp))

    @property
    def covered(self) -> Ranges:
        """All their code."""
        return merge_ranges(self.start, self.end)

    def at(self, address: U64, size: U64) -> tuple[Index, U64]:
        """The unit of each function, -1 where there is none, and its size within the unit's ranges.

        A symbol ends where the next one begins, and so with the padding behind the unit's code.
        """
        if not len(self.start):
            return np.full(len(address), -1, dtype=np.intp), size
        row = np.searchsorted(self.start, address, side="right") - 1
        end = self.end[np.maximum(row, 0)]
        inside = (row >= 0) & (address < end)
        room = np.where(inside, end - np.where(inside, address, 0), size)
        return np.where(inside, self.unit[row], -1), np.minimum(size, room)

    def ranges(self) -> list[tuple[U64, U64]]:
        """Starts and ends by unit."""
        order = np.argsort(self.unit, kind="stable")
        borders = np.searchsorted(self.unit[order], np.arange(len(self.units) + 1))
        start, end = self.start[order], self.end[order]
        return [
            (start[low:high], end[low:high])
            for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
        ]

    def numbers(self, unit: Index, first: int) -> tuple[Index, Index]:
        """Numbers from ``first`` on for the units' own entries, and for entries in the units ``unit``,
        which ascend."""
        own = np.arange(len(self.units), dtype=np.intp)
        return first + own + np.searchsorted(unit, own), first + unit + 1 + np.arange(len(unit))

    def heads(self, strings: StringSection, lists: RangeLists) -> list[Column]:
        """The units' own entries."""
        lines = [unit.line for unit in self.units]
        names = [strings.put(unit.name or _NAMELESS) for unit in self.units]
        directories = [strings.put(unit.directory) for unit in self.units]
        languages = [unit.language for unit in self.units]
        ranges = [lists.add(start, end) for start, end in self.ranges()]
        count = len(self.units)
        return [
            Column(At.PRODUCER, Form.STRP, np.full(count, strings.put(PRODUCER))),
            Column(At.LANGUAGE, Form.DATA2, np.array(languages)),
            Column(At.NAME, Form.STRP, np.array(names)),
            Column(At.COMP_DIR, Form.STRP, np.array(directories)),
            Column(At.LOW_PC, Form.ADDR, np.zeros(count, dtype=np.uint64)),
            Column(At.RANGES, Form.SEC_OFFSET, np.array(ranges)),
            Column(At.STMT_LIST, Form.SEC_OFFSET, np.array(lines)),
        ]

    def address_table(self, places: Index, order: str, word: int) -> bytes:
        """.debug_aranges, by which elfutils finds units; they lie at ``places`` in .debug_info.

        DWARF 5, 6.1.2 and 7.21: each unit's table begins at a multiple of the size of an entry.
        """
        out = []
        for place, (start, end) in zip(places.tolist(), self.ranges(), strict=True):
            rows = np.zeros((len(start) + 1, 2), dtype=f"{order}u{word}")
            rows[:-1, 0], rows[:-1, 1] = start, end - start
            head = number(2, 2, order) + number(place, 4, order) + bytes([word, 0])
            head += bytes(-(4 + len(head)) % (2 * word))
            out += [number(len(head) + rows.nbytes, 4, order), head, rows.tobytes()]
        return b"".join(out)


NO_SOURCES = Sources.of((), 0, 0, 8)
