""".debug_str, and columns of names that are compared by their hashes.

String sections of others (BTF's) are taken over whole: what pointed into them then points into
.debug_str, by adding where they begin.  Names come out of a dump and end in a debugger's terminal, so
bytes that are no printable ASCII become question marks, which moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Index
from kdump_elftool.elf.symfile import packed_names

_PRINTABLE = bytes(code if 0x20 <= code < 0x7F or not code else ord("?") for code in range(256))
_FACTOR = 0x9E3779B97F4A7C15
_LONGEST = 512
"""Letters that are compared: KSYM_NAME_LEN since v6.1."""
_AT_ONCE = 4 << 20
"""Letters, times 8 bytes in several columns; any number of names can begin at the same place."""


def harmless(text: bytes) -> bytes:
    """The same number of bytes, printable but for NUL."""
    return text.translate(_PRINTABLE)


def ends(text: bytes) -> Index:
    """Where the strings of a text end: its NULs, and its end."""
    return np.append(np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == 0), len(text))


class StringSection:
    """.debug_str as it grows."""

    def __init__(self) -> None:
        self._pieces = [b"\0"]
        self._known: dict[bytes, int] = {}
        self._size = 1

    def append(self, section: bytes) -> int:
        """Take over a string section; returns where it begins.  It is closed by a NUL if it is not."""
        at = self._size
        closed = section if section.endswith(b"\0") else section + b"\0"
        self._pieces.append(harmless(closed))
        self._size += len(closed)
        return at

    def put(self, text: bytes) -> int:
        """Where this one string begins."""
        if text not in self._known:
            self._known[text] = self.append(text.replace(b"\0", b"?") + b"\0")
        return self._known[text]

    def finish(self) -> bytes:
        """The section."""
        return b"".join(self._pieces)


@dataclass(frozen=True)
class Names:
    """Names out of one text: name i lies from ``begin[i]`` to ``end[i]``."""

    text: bytes
    begin: Index
    end: Index

    @classmethod
    def terminated(cls, text: bytes, nul: Index, begin: Index) -> Names:
        """Names that end with the first NUL behind their beginning; ``nul`` is what :func:`ends` gave."""
        begin = np.minimum(begin, len(text))
        return cls(text, begin, nul[np.searchsorted(nul, begin)])

    @classmethod
    def of(cls, names: list[bytes]) -> Names:
        """Names given one by one."""
        ends = np.cumsum(np.array([len(name) for name in names], dtype=np.intp))
        lengths = np.diff(np.concatenate([np.zeros(1, dtype=np.intp), ends]))
        return cls(b"".join(names), ends - lengths, ends)

    def __len__(self) -> int:
        return len(self.begin)

    def __getitem__(self, row: int) -> bytes:
        return self.text[int(self.begin[row]) : int(self.end[row])]

    def take(self, rows: Index) -> Names:
        """Some of them."""
        return Names(self.text, self.begin[rows], self.end[rows])

    def packed(self) -> tuple[bytes, Index]:
        """A string section of just these, and where in it each begins."""
        letters = np.frombuffer(self.text, dtype=np.uint8)
        strings, places = packed_names(letters, self.begin, self.end - self.begin)
        return strings.tobytes(), places

    def stems(self) -> tuple[Index, Names]:
        """Which names have a dot behind their first letter, and what is before it."""
        dots = np.flatnonzero(np.frombuffer(self.text, dtype=np.uint8) == ord("."))
        dots = np.append(dots, len(self.text))
        dot = dots[np.searchsorted(dots, self.begin)]
        rows = np.flatnonzero((dot > self.begin) & (dot < self.end))
        return rows, Names(self.text, self.begin[rows], dot[rows])

    def hashes(self) -> U64:
        """64 bits for each name, equal for equal names; no defence against names made to collide.

        The letters as digits in a base that fits no pattern of theirs, modulo 2**64.
        """
        length = np.minimum(np.maximum(self.end - self.begin, 0), _LONGEST)
        reach = np.cumsum(length)
        total = int(reach[-1]) if len(reach) else 0
        cuts = np.searchsorted(reach, np.arange(_AT_ONCE, total, _AT_ONCE))
        hashes = np.zeros(len(length), dtype=np.uint64)
        for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(length)], strict=True):
            hashes[low:high] = self._hashes(self.begin[low:high], length[low:high])
        return hashes

    def _hashes(self, begin: Index, length: Index) -> U64:
        powers = np.cumprod(np.full(_LONGEST, _FACTOR, dtype=np.uint64))
        first = np.cumsum(length) - length
        within = np.arange(int(length.sum())) - np.repeat(first, length)
        letters = np.frombuffer(self.text, dtype=np.uint8)[np.repeat(begin, length) + within]
        digits = np.concatenate([[np.uint64(0)], np.cumsum((letters + np.uint64(1)) * powers[within])])
        hashes: U64 = digits[first + length] - digits[first] + length.astype(np.uint64)
        return hashes


@dataclass(frozen=True)
class Lookup:
    """Rows by name: ``hashes`` ascending, ``row`` the row each of them has."""

    hashes: U64
    row: Index

    @classmethod
    def of(cls, names: Names) -> Lookup:
        """Every row; of equal names the lower row comes first."""
        hashes = names.hashes()
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order)

    def first(self, hashes: U64) -> tuple[Index, Index]:
        """For each hash the first row of that name, and how many have it (0: none, the row is -1)."""
        low = np.searchsorted(self.hashes, hashes, side="left")
        count = np.searchsorted(self.hashes, hashes, side="right") - low
        if not len(self.row):
            return np.full(len(hashes), -1, dtype=np.intp), count
        row = self.row[np.minimum(low, len(self.row) - 1)]
        return np.where(count > 0, row, -1), count
