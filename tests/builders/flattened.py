"""Flattened files as makedumpfile -F writes them, right ones and wrong ones; struct only.

Layout: makedumpfile.h, struct makedumpfile_header and makedumpfile_data_header, all big-endian.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HEADER = 4096
END = struct.pack(">qq", -1, -1)


@dataclass(frozen=True)
class Record:
    """One record; ``size`` is what its header claims, when that is a lie."""

    offset: int
    data: bytes
    size: int | None = None

    def encode(self) -> bytes:
        """Header and data."""
        size = len(self.data) if self.size is None else self.size
        return (self.offset % 2**64).to_bytes(8, "big") + (size % 2**64).to_bytes(8, "big") + self.data


def header(kind: int = 1, version: int = 1) -> bytes:
    """The 4096 bytes in front."""
    return (b"makedumpfile".ljust(16, b"\0") + struct.pack(">QQ", kind, version)).ljust(HEADER, b"\0")


def flatten(records: Iterable[Record | bytes], head: bytes | None = None, end: bytes = END) -> bytes:
    """The whole file; bytes among the records are put there as they are."""
    parts = [record if isinstance(record, bytes) else record.encode() for record in records]
    return b"".join([header() if head is None else head, *parts, end])


def cut_up(image: bytes, places: Sequence[int]) -> list[Record]:
    """``image`` in records that are cut at these offsets."""
    borders = sorted({0, len(image), *places})
    return [Record(a, image[a:b]) for a, b in itertools.pairwise(borders)]


def even(image: bytes, size: int) -> list[Record]:
    """``image`` in records of one size, as makedumpfile writes the bulk of a dump."""
    return cut_up(image, range(size, len(image), size))


def rearranged(records: Iterable[Record]) -> bytes:
    """What the records make of an empty file: the plain reference."""
    image = bytearray()
    for record in records:
        end = record.offset + len(record.data)
        image.extend(bytes(max(end - len(image), 0)))
        image[record.offset : end] = record.data
    return bytes(image)
