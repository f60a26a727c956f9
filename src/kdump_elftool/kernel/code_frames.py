"""Where frames are in a kernel without unwind tables, as columns; what finds them is one module a machine.

Such kernels keep a frame pointer: a register that points at a record on the stack, the caller's frame pointer
and the return address, in every function that calls another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index, Ranges, u64

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]

_GAP = 32
"""Bytes."""


class Base(IntEnum):
    """What an offset counts from; REGISTERS is a struct pt_regs that begins there, by the stack pointer or
    (REGISTERS_FP) by the frame pointer."""

    UNDEFINED = 0
    SP = 1
    FP = 2
    REGISTERS = 3
    REGISTERS_FP = 4


@dataclass(frozen=True)
class CodeFrames:
    """One row for each stretch of code that has the same rules; it goes on to the next row's ``ip``.

    ``ip`` uint64, ascending, each once; ``base`` uint8 (Base); ``offset`` int32: from there to the CFA, or to
    struct pt_regs.  ``record`` int32: bytes from the saved frame pointer up to the CFA, 0 where none is saved
    and the return address is where the call left it.  Rows of UNDEFINED describe nothing.
    """

    ip: U64
    base: U8
    offset: I32
    record: I32

    def __len__(self) -> int:
        return len(self.ip)

    @classmethod
    def of(cls, ip: U64, base: Base, offset: int = 0, record: int = 0) -> CodeFrames:
        """The same rule at many places."""
        count = len(ip)
        return cls(
            ip,
            np.full(count, base, dtype=np.uint8),
            np.full(count, offset, dtype=np.int32),
            np.full(count, record, dtype=np.int32),
        )

    def take(self, rows: Index | Bools) -> CodeFrames:
        """Some of the rows."""
        return CodeFrames(self.ip[rows], self.base[rows], self.offset[rows], self.record[rows])


def merged(parts: list[CodeFrames]) -> CodeFrames:
    """All rows in order; of several at one place that of the last part counts."""
    columns = [
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ip", "base", "offset", "record")
    ]
    frames = CodeFrames(*columns)
    frames = frames.take(np.argsort(frames.ip, kind="stable"))
    last = np.append(frames.ip[1:] != frames.ip[:-1], True) if len(frames) else np.zeros(0, dtype=np.bool_)
    return frames.take(last)


def within(frames: CodeFrames, code: Ranges) -> CodeFrames:
    """The rows cut to these stretches of code: between them nothing is described."""
    return _cut(frames, code, inside=True)


def without(frames: CodeFrames, described: Ranges) -> CodeFrames:
    """The rows less the code that other call-frame information describes.

    What lies between two functions, and the room for ftrace in front of each, is not worth a description.
    """
    if not len(described):
        return frames
    apart = described.start[1:] - described.end[:-1] >= np.uint64(_GAP)
    first, last = np.append(True, apart), np.append(apart, True)
    return _cut(frames, Ranges(described.start[first], described.end[last]), inside=False)


def _cut(frames: CodeFrames, ranges: Ranges, *, inside: bool) -> CodeFrames:
    if not len(frames):
        return frames
    ip = np.unique(np.concatenate([frames.ip, ranges.start, ranges.end]))
    row = np.searchsorted(frames.ip, ip, side="right") - 1
    at = np.searchsorted(ranges.start, ip, side="right") - 1
    is_inside = np.zeros(len(ip), dtype=np.bool_)
    if len(ranges):
        is_inside = (at >= 0) & (ip < ranges.end[np.maximum(at, 0)])
    kept = (is_inside == inside) & (row >= 0)
    row = np.maximum(row, 0)
    return CodeFrames(
        ip,
        np.where(kept, frames.base[row], np.uint8(Base.UNDEFINED)),
        np.where(kept, frames.offset[row], np.int32(0)),
        np.where(kept, frames.record[row], np.int32(0)),
    )


def first_in_each(hits: Index, start: Index, end: Index) -> Index:
    """Of ascending ``hits`` the first from each ``start`` to before its ``end``; -1 where there is none."""
    if not len(hits):
        return np.full(len(start), -1, dtype=np.intp)
    at = np.searchsorted(hits, start)
    found = hits[np.minimum(at, len(hits) - 1)]
    return np.where((at < len(hits)) & (found >= start) & (found < end), found, -1)


def starts_within(functions: U64, low: int, high: int) -> U64:
    """Where functions begin from ``low`` to before ``high``, each once; the code's own start is one."""
    inside = functions[(functions >= np.uint64(low)) & (functions < np.uint64(high))]
    return np.unique(np.concatenate([u64([low]), inside]))
