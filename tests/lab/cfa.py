"""Where frames are, by the call-frame information of a file, as readelf interprets it."""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(
    r"([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ (?:(CIE)|FDE cie=([0-9a-f]+) pc=([0-9a-f]+)\.\.([0-9a-f]+))"
)
_ROW = re.compile(r"([0-9a-f]{16}) (\S+)\s")


@dataclass(frozen=True)
class Function:
    """A description: [start, end), and the CFA from an address on."""

    start: int
    end: int
    rows: list[tuple[int, str]]


class FrameTable:
    """All descriptions of a file, ``offset`` further on than the file has them."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        shown = subprocess.run(
            ["readelf", "-z", "--debug-dump=frames-interp", path], capture_output=True, text=True, timeout=600
        )
        assert shown.returncode == 0, shown.stderr
        self.functions = sorted(_functions(shown.stdout, offset), key=lambda each: each.start)
        self.starts = [each.start for each in self.functions]

    def cfa(self, pc: int) -> str | None:
        """As readelf shows it; None where nothing is known."""
        index = bisect_right(self.starts, pc) - 1
        if index < 0 or pc >= self.functions[index].end:
            return None
        rows = self.functions[index].rows
        return rows[bisect_right([start for start, _ in rows], pc) - 1][1]


def _functions(text: str, offset: int) -> list[Function]:
    found: list[Function] = []
    initial: dict[str, str] = {}
    cie: str | None = None
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            cie = entry[1] if entry[2] else None
            if cie is None:
                start, end = (int(entry[group], 16) + offset for group in (4, 5))
                found.append(Function(start, end, [(start, initial[entry[3]])]))
        elif row := _ROW.match(line):
            if cie is not None:
                initial[cie] = row[2]
            elif int(row[1], 16) + offset == found[-1].start:
                found[-1].rows[0] = (found[-1].start, row[2])
            else:
                found[-1].rows.append((int(row[1], 16) + offset, row[2]))
    return [each for each in found if each.start < each.end]
