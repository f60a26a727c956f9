"""Write call-frame information (.debug_frame) for many functions at once.

A description (FDE) is one stretch of code with a program: operations that say where registers are, and
steps to the address where the next ones hold.  Programs are made of pieces out of a pool, since few
operations are different; the bytes of all programs are put together in a few numpy steps.
Reference: DWARF 5, 6.4 "Call Frame Information" and 7.24; 32-bit DWARF, addresses of 8 or 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Index, align_up
from kdump_elftool.dwarf.entries import number, uleb

U8 = npt.NDArray[np.uint8]

EMPTY = 0
"""The piece of a pool that has no bytes."""
_WORD = 8
_CIE_ID = 0xFFFFFFFF
_LARGEST = 0xFFFFFFF0


def sleb(value: int) -> bytes:
    """A signed LEB128."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        done = value == (-1 if byte & 0x40 else 0)
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)


@dataclass(frozen=True)
class Cie:
    """What descriptions have in common: the rules at their start, and whether the frame is of a ``signal``:
    the next one then was interrupted at its address instead of calling from before it.
    """

    return_register: int
    initial: bytes
    signal: bool = False
    data_alignment: int = -8
    code_alignment: int = 1

    @property
    def augmentation(self) -> int:
        """Bytes for the length of augmentation data (there are none), here and in each description."""
        return 1 if self.signal else 0

    def encoded(self, order: str, word: int = _WORD) -> bytes:
        """The whole entry, padded with DW_CFA_nop to addresses of ``word`` bytes."""
        body = number(_CIE_ID, 4, order) + bytes([3]) + (b"zS\0" if self.signal else b"\0")
        body += uleb(self.code_alignment) + sleb(self.data_alignment) + uleb(self.return_register)
        body += bytes(self.augmentation) + self.initial
        body += bytes(align_up(4 + len(body), word) - 4 - len(body))
        return number(len(body), 4, order) + body


@dataclass
class Pool:
    """Pieces of programs by number; piece 0 has no bytes."""

    pieces: list[bytes] = field(default_factory=lambda: [b""])
    numbers: dict[bytes, int] = field(default_factory=lambda: {b"": EMPTY})

    def add(self, piece: bytes) -> int:
        """The number of these bytes."""
        if piece not in self.numbers:
            self.numbers[piece] = len(self.pieces)
            self.pieces.append(piece)
        return self.numbers[piece]

    def add_all(self, pieces: Iterable[bytes]) -> Index:
        """The numbers of many."""
        return np.array([self.add(piece) for piece in pieces], dtype=np.intp)


@dataclass(frozen=True)
class Descriptions:
    """Columns, one row an FDE: ``start`` and ``size`` uint64; ``cie`` which of the CIEs; its program is the
    pieces from ``first`` to that of the next row (all intp), numbers within the pool.
    """

    start: U64
    size: U64
    cie: Index
    first: Index
    piece: Index

    def __len__(self) -> int:
        return len(self.start)


def debug_frame(
    cies: Sequence[Cie], found: Descriptions, pool: Pool, order: str = "<", word: int = _WORD
) -> bytes:
    """The section, with addresses of ``word`` bytes.  Raises ValueError if it would need 64-bit DWARF."""
    heads = [cie.encoded(order, word) for cie in cies]
    places = np.cumsum([0, *(len(head) for head in heads)])
    begin = int(places[-1])
    lengths = np.array([len(piece) for piece in pool.pieces], dtype=np.intp)[found.piece]
    before = np.concatenate([[0], np.cumsum(lengths)])
    edges = np.append(found.first, len(found.piece))
    program = before[edges[1:]] - before[edges[:-1]]
    header = 8 + 2 * word + np.array([cie.augmentation for cie in cies], dtype=np.intp)[found.cie]
    whole = -(-(header + program) // word) * word
    offset = begin + np.concatenate([[0], np.cumsum(whole)])
    if int(offset[-1]) > _LARGEST:
        raise ValueError(f"{int(offset[-1])} bytes of call-frame information")
    out = np.zeros(int(offset[-1]), dtype=np.uint8)
    out[:begin] = np.frombuffer(b"".join(heads), dtype=np.uint8)
    words, addresses = out.view(f"{order}u4"), out.view(f"{order}u{word}")
    at = offset[:-1]
    words[at // 4], words[at // 4 + 1] = whole - 4, places[found.cie]
    first = (at + 8) // word
    addresses[first], addresses[first + 1] = found.start, found.size
    shift = np.repeat(at + header - before[edges[:-1]], edges[1:] - edges[:-1])
    _scatter(out, before[:-1] + shift, found.piece, lengths, pool)
    return out.tobytes()


def _scatter(out: U8, where: Index, piece: Index, lengths: Index, pool: Pool) -> None:
    """Copy each piece to its place: all first bytes, then all second ones, since pieces are short."""
    source = np.frombuffer(b"".join(pool.pieces), dtype=np.uint8)
    starts = np.concatenate([[0], np.cumsum([len(one) for one in pool.pieces])])[piece]
    rows = np.flatnonzero(lengths)
    step = 0
    while len(rows):
        out[where[rows] + step] = source[starts[rows] + step]
        step += 1
        rows = rows[lengths[rows] > step]
