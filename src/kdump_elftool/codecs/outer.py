"""A compressed file as a :class:`~kdump_elftool.files.ByteSource` over what is in it.

One pass through the file finds out how long its contents are and whether it is whole, and leaves
points from which to decode again: copies of the decoder's state (gzip), members, blocks (see
``codecs.marks``).  Reading goes from the point before, or on from the last reading; chunks that were
decoded lately are kept.  Where points lie further apart than GAP the contents in between are kept in
a temporary file (``spool``), as for most zstd, xz and bzip2 files above 32 MB.

Memory: 512 points of gzip at 48 KB, 128 chunks, one gap: below 90 MB however large the file is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock

from kdump_elftool.addr import NO_RANGES
from kdump_elftool.codecs.index import Index
from kdump_elftool.codecs.run import Point, Run
from kdump_elftool.codecs.streams import Stream
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import ByteSource

CHUNK = 1 << 18
_KEPT_CHUNKS = 128


class IndexedSource:
    """The contents of a compressed file, by offset; safe to be used by several threads."""

    missing = NO_RANGES

    def __init__(self, source: ByteSource, stream: Stream, index: Index) -> None:
        self.path = f"{source.path} (decompressed)"
        self.size = index.size
        self.warnings = (*source.warnings, *index.warnings)
        self._source, self._stream, self._index = source, stream, index
        self._starts = [point.out for point in index.points]
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._run: Run | None = None
        self._lock = Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; shorter only at the end."""
        buffer = bytearray(max(min(size, self.size - offset), 0))
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``.  Raises CorruptDumpError beyond the end, or where the file changed meanwhile."""
        if view and offset + len(view) > self.size:
            raise CorruptDumpError(self.path, "there is nothing behind this", file_offset=self.size)
        done = 0
        with self._lock:
            while done < len(view):
                done += self._piece(offset + done, view[done:])

    def _piece(self, offset: int, view: memoryview) -> int:
        """Fill as much of ``view`` as lies in one chunk or in one stretch of the spool."""
        number = bisect_right(self._starts, offset) - 1
        point = self._index.points[number]
        if point.spooled is not None and self._index.spool is not None:
            end = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
            size = min(end - offset, len(view))
            self._index.spool.read_into(point.spooled + offset - point.out, view[:size])
            return size
        skip = offset % CHUNK
        data = self._chunk(offset // CHUNK, point)[skip : skip + len(view)]
        view[: len(data)] = data
        return len(data)

    def _chunk(self, number: int, point: Point) -> bytes:
        kept = self._chunks.get(number)
        if kept is not None:
            self._chunks.move_to_end(number)
            return kept
        start = number * CHUNK
        if point.out > start:  # the chunk begins before the point
            point = self._index.points[bisect_right(self._starts, start) - 1]
        run = self._run
        if run is None or not point.out <= run.out <= start:
            run = Run(self._source, self._stream, point)
        self._run = None  # it is of no use if the next lines fail
        while run.out <= start:
            # what lies in between has been paid for: it is kept too
            begin = run.out
            data = self._decode(run, min(begin // CHUNK * CHUNK + CHUNK, self.size) - begin)
            if begin % CHUNK == 0:
                self._chunks[begin // CHUNK] = data
        self._run = run
        while len(self._chunks) > _KEPT_CHUNKS:
            self._chunks.popitem(last=False)
        return data

    def _decode(self, run: Run, size: int) -> bytes:
        parts = []
        left = size
        while left:
            try:
                data = run.read(left)
            except self._stream.errors() as error:
                raise self._changed(run, str(error)) from None
            if data is None:
                raise self._changed(run, "it ends")
            parts.append(data)
            left -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _changed(self, run: Run, what: str) -> CorruptDumpError:
        return CorruptDumpError(
            self._source.path,
            f"what could be decompressed before cannot be now: {what}",
            file_offset=run.at,
            hint="something else is writing to this file; copy it first",
        )
