"""Addresses and half-open ranges as numpy columns.

All address arrays are ``uint64``: numpy turns ``uint64`` mixed with signed integers into float64,
which rots addresses above 2**53, so signed values are converted at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]

MASK64 = (1 << 64) - 1


def u64(values: object) -> U64:
    """``values`` as a uint64 array (Python ints of any sign wrap modulo 2**64)."""
    if isinstance(values, np.ndarray):
        return values.astype(np.uint64, copy=False)
    return np.array([int(value) & MASK64 for value in values], dtype=np.uint64)  # type: ignore[attr-defined]


def align_down(value: int, alignment: int) -> int:
    """Largest multiple of ``alignment`` that is not above ``value``."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment


def sign_extend(value: int, bits: int) -> int:
    """``value``'s low ``bits`` bits as a canonical 64-bit address."""
    value &= (1 << bits) - 1
    if value >> (bits - 1):
        value |= MASK64 & ~((1 << bits) - 1)
    return value


def sign_extend_column(values: U64, bits: int) -> U64:
    """:func:`sign_extend` for a whole column."""
    sign = np.uint64(1 << (bits - 1))
    low = values & np.uint64((1 << bits) - 1)
    return (low ^ sign) - sign


def parse_number(text: str) -> int:
    """An option's number: ``0x`` hexadecimal, else decimal (contract).  Raises ValueError."""
    text = text.strip()
    if "_" in text:
        raise ValueError("no digit separators")
    value = int(text, 16) if text.lower().startswith("0x") else int(text, 10)
    if not 0 <= value <= MASK64:
        raise ValueError(f"{text} does not fit 64 bits")
    return value


@dataclass(frozen=True)
class Ranges:
    """Sorted, disjoint, non-empty half-open ranges: ``start[i] <= x < end[i]``, both uint64.

    A range may not reach 2**64 itself; ``end`` of a range up to the top is capped at 2**64 - 1.
    """

    start: U64
    end: U64

    def __len__(self) -> int:
        return len(self.start)

    @property
    def total(self) -> int:
        """Sum of the sizes in bytes (a Python int: cannot overflow)."""
        return int(self.end.astype(object).sum() - self.start.astype(object).sum()) if len(self) else 0

    def contains(self, points: U64) -> Bools:
        """Mask of the points that lie in a range."""
        if not len(self):
            return np.zeros(len(points), dtype=np.bool_)
        index = np.searchsorted(self.start, points, side="right") - 1
        inside: Bools = (index >= 0) & (points < self.end[np.maximum(index, 0)])
        return inside


NO_RANGES = Ranges(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64))


def merge_ranges(start: U64, end: U64) -> Ranges:
    """Sort and merge overlapping or touching ranges; empty ones vanish."""
    keep = end > start
    if not keep.all():
        start, end = start[keep], end[keep]
    if not len(start):
        return Ranges(start, end)
    if np.any(start[1:] < start[:-1]):
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    first = np.ones(len(start), dtype=np.bool_)
    first[1:] = start[1:] > reach[:-1]
    last = np.append(np.flatnonzero(first)[1:] - 1, len(start) - 1)
    return Ranges(start[first], reach[last])


def subtract_ranges(whole: Ranges, holes: Ranges) -> Ranges:
    """The parts of ``whole`` that no range of ``holes`` covers."""
    if not len(whole) or not len(holes):
        return whole
    gap_start = np.concatenate([[np.uint64(0)], holes.end])
    gap_end = np.concatenate([holes.start, [np.uint64(MASK64)]])
    # which gaps each range meets: neighbours, since both are sorted and disjoint
    low = np.searchsorted(gap_end, whole.start, side="right")
    high = np.maximum(np.searchsorted(gap_start, whole.end, side="left"), low)
    count = high - low
    owner = np.repeat(np.arange(len(whole)), count)
    gap = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count - low, count)
    start = np.maximum(gap_start[gap], whole.start[owner])
    end = np.minimum(gap_end[gap], whole.end[owner])
    # adjacent ranges of ``whole`` come out as one, as they always did
    return merge_ranges(start, end)
