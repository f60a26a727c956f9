"""makedumpfile's flattened format as a layer: the file that ``makedumpfile -R`` would make of it.

The stream is a row of writes (``formats.flattened_records``) and may hold a dump of any format.
Later records overwrite earlier ones.  What no record wrote is zeros, as in a sparse file, if the
stream is whole; in one that ends before its end mark it is what did not arrive: ``missing``.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np

from kdump_elftool.addr import NO_RANGES, U64, Ranges, subtract_ranges, u64
from kdump_elftool.cache import Cache
from kdump_elftool.errors import CorruptDumpError, UnsupportedError
from kdump_elftool.files import ByteSource, InputFile, readable_end
from kdump_elftool.formats.base import Layer, OpenOptions
from kdump_elftool.formats.flattened_index import key_of, recall, remember
from kdump_elftool.formats.flattened_records import (
    HEADER,
    HEADER_SIZE,
    MAX_RECORDS,
    SIGNATURE,
    TYPE,
    VERSION,
    Records,
    Stop,
    scan,
)
from kdump_elftool.memory.extents import Extents, overlay
from kdump_elftool.progress import progress

log = logging.getLogger(__name__)

_USUAL = 4 << 20
"""No writer is known whose records are larger."""
_PAGE = 1 << 12
_LARGEST_PAGE = 1 << 16
_BOGUS = 64
"""So many records at the end are looked at whether they are any."""
_CUT = "the stream was cut short: send it again, or check that the disk was not full"


class ScannedFile(InputFile):
    """A file whose records were found while it was written."""

    def __init__(self, path: str, fd: int, size: int, identity: tuple[int, int], records: Records) -> None:
        super().__init__(path, fd, size, identity)
        self.records = records


class Rearranged:
    """The file that the records make, by offset; safe to be used by several threads."""

    def __init__(
        self, source: ByteSource, extents: Extents, missing: Ranges, warnings: tuple[str, ...]
    ) -> None:
        self.path = f"{source.path} (rearranged)"
        self.size = int(extents.end[-1])
        self.missing = missing
        self.warnings = warnings
        self._source = source
        self._extents = extents

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; shorter only at the end, or where something is missing."""
        end = min(offset + size, readable_end(self, offset))
        buffer = bytearray(max(end - offset, 0))
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``.  Raises CorruptDumpError beyond the end, and for what is missing."""
        end = offset + len(view)
        if view and end > self.size:
            raise CorruptDumpError(self.path, "there is nothing behind this", file_offset=self.size)
        extents = self._extents
        first = max(int(np.searchsorted(extents.start, np.uint64(offset), side="right")) - 1, 0)
        last = int(np.searchsorted(extents.start, np.uint64(end), side="left"))
        rows = (column[first:last].tolist() for column in (extents.start, extents.size, extents.position))
        done = offset
        for start, size, position in zip(*rows, strict=True):
            if start > done:
                self._gap(done, view[done - offset : start - offset])
                done = start
            stop = min(start + size, end)
            if stop > done:
                self._source.read_into(position + done - start, view[done - offset : stop - offset])
                done = stop
        if done < end:
            self._gap(done, view[done - offset :])

    def _gap(self, offset: int, view: memoryview) -> None:
        """Zeros for what no record has."""
        if len(self.missing):
            raise CorruptDumpError(self.path, "this part is missing", file_offset=offset, hint=_CUT)
        view[:] = bytes(len(view))


def probe(head: bytes) -> bool:
    """Whether a file begins like a flattened one."""
    return head.startswith(SIGNATURE)


def open_flattened(source: ByteSource, options: OpenOptions) -> ByteSource:
    """The file in a stream.  Raises CorruptDumpError, UnsupportedError."""
    _check_header(source)
    records = _records(source, options)
    start, size, position, why = _trusted(source, records)
    extents = overlay(start, size, position)
    if not len(extents):
        why = why or "it has no record with data"
        raise CorruptDumpError(source.path, f"a flattened dump without anything in it: {why}", hint=_CUT)
    gaps = subtract_ranges(Ranges(u64([0]), u64([int(extents.end[-1])])), extents.ranges())
    odd = [why] if why else _oddities(source, records, gaps)
    log.info("%s: %d records, %d bytes", source.path, len(records), extents.total)
    return Rearranged(source, extents, gaps if why else NO_RANGES, (*source.warnings, *odd))


def _records(source: ByteSource, options: OpenOptions) -> Records:
    """Found while it was written, remembered from the last time, or looked for."""
    if isinstance(source, ScannedFile):
        return source.records
    key = key_of(source) if isinstance(source, InputFile) and options.use_cache else None
    with (Cache.open() if key else None) or nullcontext() as cache:
        if cache is not None and key is not None and isinstance(source, InputFile):
            known = recall(cache, key, source)
            if known is not None:
                return known
        with progress("indexing", source.size, enabled=options.show_progress) as advance:
            records = scan(source, advance)
        if cache is not None and key is not None:
            remember(cache, key, records)
    return records


LAYER = Layer("makedumpfile", probe, open_flattened)


def _check_header(source: ByteSource) -> None:
    head = source.read_at(0, HEADER_SIZE)
    if len(head) < HEADER_SIZE:
        raise CorruptDumpError(
            source.path, "it ends within the header of a flattened dump", file_offset=len(head), hint=_CUT
        )
    _, kind, version = HEADER.unpack_from(head)
    if (kind, version) != (TYPE, VERSION):
        raise UnsupportedError(
            source.path,
            f"a flattened dump of type {kind:#x}, version {version:#x}; 1 and 1 are known",
            file_offset=len(SIGNATURE),
            hint="makedumpfile -R of the program that wrote it may make an ordinary dump of it",
        )


def _trusted(source: ByteSource, records: Records) -> tuple[U64, U64, U64, str | None]:
    """What is taken from each record: start, size, file offset; and why that is not all, if so.

    A size is confirmed by the header behind it.  If that is none, the size may have led into the middle
    of data, and the record would put others' data to its place: it is left out.  Data taken for a header
    is known by going on from no other record and being the last, or nearly.
    """
    start, size, position = records.start, records.size, records.position
    count = len(records)
    if records.stop == Stop.END_MARK:
        return start, size, position, None
    kept = count
    room = max(source.size - int(position[-1]), 0) if count else 0
    cut_short = records.stop == Stop.NOTHING and records.next_at > source.size
    if count and (cut_short or records.stop == Stop.NO_RECORD):
        while kept > max(count - _BOGUS, 1) and not _goes_on(start, size, kept - 1):
            kept -= 1
        largest = max(int(size[:-1].max(initial=0)), _USUAL)
        if kept < count or not cut_short or int(size[-1]) > largest:
            kept -= 1
    size = size.copy()
    size[kept:] = 0
    size[-1:] = np.minimum(size[-1:], np.uint64(room))
    return start, size, position, _why(source, records, kept)


def _goes_on(start: U64, size: U64, at: int) -> bool:
    """Whether the record at this index begins where an earlier one ended, or ends where one began."""
    before = slice(0, at)
    follows = start[before] + size[before] == start[at]
    precedes = start[before] == start[at] + size[at]
    return bool(follows.any() or precedes.any())


def _why(source: ByteSource, records: Records, kept: int) -> str:
    if records.stop == Stop.TOO_MANY:
        return f"it has more than {MAX_RECORDS} records: what follows is left out"
    what = f"it ends at file offset {source.size:#x} without an end mark"
    if records.stop == Stop.NO_RECORD:
        what = f"no record begins at file offset {records.next_at:#x}, where one should"
    if records.stop == Stop.UNREADABLE:
        what = f"the record at file offset {records.next_at:#x} cannot be read (see dmesg here)"
    return f"{what}: {kept} of {len(records)} records are used"


def _oddities(source: ByteSource, records: Records, gaps: Ranges) -> list[str]:
    """What is strange about a stream that has its end mark.

    Known writers leave gaps only where they pad a header or bitmap to the next page.  Any other is zeros
    all the same, as ``makedumpfile -R`` has it, but may be the place of a record with a damaged offset.
    """
    found = []
    behind = source.size - records.next_at - 16
    if behind > 0:
        found.append(f"{behind} bytes behind the end mark are ignored")
    size = gaps.end - gaps.start
    page = np.uint64(_PAGE)
    padding = (gaps.start % page != 0) & (gaps.end % page == 0) & (size < np.uint64(_LARGEST_PAGE))
    if not padding.all():
        count = int(size[~padding].sum())
        found.append(f"{count} bytes are in no record and read as zeros: is a record's offset damaged?")
    return found
