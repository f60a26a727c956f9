"""Bitmaps of page frames as runs: which frames a kdump-compressed dump names, never a slot for each."""

from __future__ import annotations

import numpy as np

from kdump_elftool.addr import U64, Ranges
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import ByteSource

_STEP = 1 << 20
_MOST_EDGES = 1 << 26
"""32 million runs take half a gigabyte; memory is not cut up like that, only a made-up bitmap is."""


def read_runs(file: ByteSource, offset: int, nr_bits: int) -> Ranges:
    """Runs of set bits among ``nr_bits`` from ``offset`` on, the lowest bit of a byte first.

    What lies behind the end of the file counts as clear.  Raises CorruptDumpError for absurdly many.
    """
    edges: list[U64] = []
    carry = count = 0
    nr_bytes = min(-(-nr_bits // 8), max(file.size - offset, 0))
    for done in range(0, nr_bytes, _STEP):
        data = np.frombuffer(file.read_at(offset + done, min(_STEP, nr_bytes - done)), dtype=np.uint8)
        if done + len(data) == -(-nr_bits // 8) and nr_bits % 8:
            data = data.copy()
            data[-1] &= (1 << nr_bits % 8) - 1
        found, carry = _edges(data, carry)
        edges.append(found + np.uint64(8 * done))
        count += len(found)
        if count > _MOST_EDGES:
            raise CorruptDumpError(
                file.path, "the bitmap cuts memory into more pieces than can be", file_offset=offset + done
            )
        if len(data) < min(_STEP, nr_bytes - done):
            nr_bytes = done + len(data)
            break
    if carry:
        edges.append(np.array([min(8 * nr_bytes, nr_bits)], dtype=np.uint64))
    column = np.concatenate(edges) if edges else np.zeros(0, dtype=np.uint64)
    return Ranges(column[::2], column[1::2])


def _edges(data: np.ndarray[tuple[int], np.dtype[np.uint8]], carry: int) -> tuple[U64, int]:
    """Bits that differ from the one before them (``carry`` before the first), and the last bit."""
    before = np.empty_like(data)
    before[0] = carry
    before[1:] = data[:-1] >> 7
    changes = (data ^ ((data << np.uint8(1)) | before)).astype(np.uint8)
    where = np.flatnonzero(changes)
    bits = np.unpackbits(changes[where], bitorder="little").reshape(-1, 8)
    byte, bit = np.nonzero(bits)
    return where[byte].astype(np.uint64) * np.uint64(8) + bit.astype(np.uint64), int(data[-1] >> 7)
