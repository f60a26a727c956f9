"""makedumpfile's flattened form, written: a file that is made at many places, for a pipe.

A header of 4096 bytes; then each write as ``offset, size`` (int64, big-endian on every machine) and
its bytes; at the end both are -1.  ``makedumpfile -R`` makes the file of it, crash reads it as it
is.  Source: makedumpfile.h (``struct makedumpfile_header``), makedumpfile.c (``write_start_flat_header``).
"""

from __future__ import annotations

import struct

from kdump_elftool.files import Output

_HEADER = struct.Struct(">16sqq")
_HEADER_SIZE = 4096
_RECORD = struct.Struct(">qq")
_TYPE = _VERSION = 1


class FlattenedOutput:
    """Writes at any offset, of a file that exists only where this stream is put together again."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._position = 0
        self._put(_HEADER.pack(b"makedumpfile", _TYPE, _VERSION).ljust(_HEADER_SIZE, b"\0"))

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """One record; what is written later wins."""
        if len(data):
            self._put(_RECORD.pack(offset, len(data)))
            self._put(data)

    def end(self) -> None:
        """The mark behind the last record."""
        self._put(_RECORD.pack(-1, -1))

    def _put(self, data: bytes | memoryview) -> None:
        self._out.write_at(self._position, data)
        self._position += len(data)
