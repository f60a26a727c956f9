"""The records of makedumpfile's flattened format: a dump as a row of writes, each with its offset.

A header of 4096 bytes, then records of ``offset, size`` (int64, big-endian whatever the machine) and
``size`` bytes, then -1, -1.  makedumpfile.h: ``struct makedumpfile_header`` and
``makedumpfile_data_header``; makedumpfile.c: ``write_start_flat_header``, ``write_buffer``,
``rearrange_dumpdata``.  QEMU's dump/dump.c writes the same, in 16 KB records.

Where a record begins is only known from the one before it, so this is a loop over records (0.2 µs
each); what it finds is kept in columns.
"""

from __future__ import annotations

import enum
import struct
from array import array
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64
from kdump_elftool.files import ByteSource, UpToFailure
from kdump_elftool.progress import Advance, silent

SIGNATURE = b"makedumpfile\0\0\0\0"
HEADER_SIZE = 4096
HEADER = struct.Struct(">16sqq")  # signature, type, version
TYPE = 1
VERSION = 1
MAX_RECORDS = 1 << 26
"""16 bytes of memory each, three times that for a moment; 1 TB in the 16 KB records of QEMU."""

_RECORD = struct.Struct(">qq")
_UNPACK = _RECORD.unpack_from
HEAD = _RECORD.size
LIMIT = (1 << 63) - 1  # a file cannot be longer (off_t)
_WINDOW = 1 << 20
_HOPS = 1 << 14
_SMALL = 8192  # reading all of a record of this size costs less than reading its header alone


class Stop(enum.IntEnum):
    """What stands behind the last record."""

    NOTHING = 0
    """The file ends, within a record or before the next."""
    END_MARK = 1
    NO_RECORD = 2
    """16 bytes that are no record's header."""
    TOO_MANY = 3
    """More records than this program counts."""
    UNREADABLE = 4
    """The system cannot read it."""


@dataclass(frozen=True)
class Records:
    """The records in file order: uint64 columns of where each goes and its size as its header says.

    ``next_at`` is the file offset behind the last record: beyond the end when that one is cut short.
    """

    start: U64
    size: U64
    next_at: int
    stop: Stop

    def __len__(self) -> int:
        return len(self.start)

    @property
    def position(self) -> U64:
        """File offset of each record's data: right behind its header, and the next one follows."""
        reach = np.cumsum(self.size + np.uint64(HEAD), dtype=np.uint64) + np.uint64(HEADER_SIZE)
        return reach - self.size


class Scanner:
    """Finds the records of a stream, from header to header."""

    def __init__(self) -> None:
        self._start = array("Q")
        self._size = array("Q")
        self._split = b""
        self._stop: Stop | None = None
        self.next_at = HEADER_SIZE
        """File offset of the next record header."""

    @property
    def done(self) -> bool:
        """True when no further record is looked for."""
        return self._stop is not None

    def __len__(self) -> int:
        return len(self._start)

    def feed(self, at: int, data: bytes | memoryview) -> None:
        """Take the headers in ``data``, which follows what was fed before."""
        if self._split:
            self._split += data[: HEAD - len(self._split)]
            if len(self._split) < HEAD:
                return
            self.look(self.next_at, self._split)
        self.look(at, data)
        self._split = b"" if self.done else bytes(data[max(self.next_at - at, 0) :])

    def look(self, at: int, data: bytes | memoryview) -> None:
        """Take the headers that lie within ``data``, which is what stands at file offset ``at``."""
        if not self.done and at <= self.next_at < at + len(data):
            self.next_at = at + self._parse(data, self.next_at - at)
            self._limit()

    def _limit(self) -> None:
        if len(self) > MAX_RECORDS:
            self._stop = Stop.TOO_MANY

    def give_up(self) -> None:
        """The next header cannot be read."""
        self._stop = Stop.UNREADABLE

    def hop(self, source: ByteSource) -> None:
        """Go from header to header with a read for each, as long as records are large, for a while."""
        read, add_start, add_size = source.read_at, self._start.append, self._size.append
        for _ in range(_HOPS):
            head = read(self.next_at, HEAD)
            if len(head) < HEAD:
                break
            offset, size = _UNPACK(head)
            if offset < 0 or size < 0 or offset + size > LIMIT or not offset | size:
                self._stop = Stop.END_MARK if offset == -1 else Stop.NO_RECORD
                break
            add_start(offset)
            add_size(size)
            self.next_at += HEAD + size
            if size < _SMALL:
                break
        self._limit()

    def _parse(self, data: bytes | memoryview, here: int) -> int:
        """Go through the headers in ``data`` from index ``here`` on; returns where the next one is."""
        add_start, add_size = self._start.append, self._size.append
        last = len(data) - HEAD
        while here <= last:
            offset, size = _UNPACK(data, here)
            # no size at all does no harm, but all zeros is what a hole in the file looks like
            if offset < 0 or size < 0 or offset + size > LIMIT or not offset | size:
                self._stop = Stop.END_MARK if offset == -1 else Stop.NO_RECORD
                break
            add_start(offset)
            add_size(size)
            here += HEAD + size
        return here

    def finish(self) -> Records:
        """Everything that was found; nothing more will come."""
        stop = Stop.NOTHING if self._stop is None else self._stop
        start = np.frombuffer(self._start, dtype=np.uint64)
        size = np.frombuffer(self._size, dtype=np.uint64)
        return Records(start, size, self.next_at, stop)


def scan(source: ByteSource, advance: Advance = silent) -> Records:
    """Find all records of a file: header by header, or in large pieces where records are small."""
    scanner = Scanner()
    source = UpToFailure(source)
    dense = True
    while not scanner.done and scanner.next_at < source.size:
        at, count = scanner.next_at, len(scanner)
        if dense:
            scanner.look(at, source.read_at(at, _WINDOW))
        else:
            scanner.hop(source)
        if scanner.next_at == at:
            if source.failure is not None:
                scanner.give_up()
            break  # the file ends within a header, or that cannot be read
        dense = scanner.next_at - at < (len(scanner) - count) * _SMALL
        advance(min(scanner.next_at, source.size) - at)
    return scanner.finish()
