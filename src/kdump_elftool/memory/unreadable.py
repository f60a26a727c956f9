"""Reading around what the system cannot read: a bad sector of a disk, memory with a hardware error.

What fails is gone over page by page, so that nothing else is lost, and no page that failed is tried again.
read_vmcore() in fs/proc/vmcore.c and read_mem() in drivers/char/mem.c of Linux give nothing at all when one
page of many cannot be read: how far a read came is no help.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from threading import Lock
from typing import Protocol

from kdump_elftool.errors import ReadFailedError
from kdump_elftool.files import given_up_at_once
from kdump_elftool.memory.paged import Holes, Trouble

log = logging.getLogger(__name__)

_PAGE = 4096
_PATIENCE = 1 << 14
_MOST_PLACES = 1 << 16

Place = tuple[int, int, str, int]
"""Start and end, which are multiples of pages; why; the file offset where it showed."""


class BlockReader(Protocol):
    """Something that fills a buffer from a position in a dump's data."""

    def read_into(self, offset: int, view: memoryview, /) -> None: ...


class Unreadable:
    """The places of one reader's data that could not be read, ascending."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._failures = 0
        self._lock = Lock()

    def read(self, reader: BlockReader, offset: int, view: memoryview) -> Holes:
        """Fill ``view`` from ``offset``; what cannot be read is zeros and named in the result."""
        if self._first(offset, offset + len(view)) is None:
            try:
                reader.read_into(offset, view)
            except ReadFailedError:
                pass
            else:
                return []
        return self._around(reader, offset, view)

    def trouble(self, offset: int, size: int = 1) -> Trouble | None:
        """Why one of these bytes could not be read; None if nothing is known against them."""
        place = self._first(offset, offset + size)
        return Trouble(f"{place[2]} at file offset {place[3]:#x}", place[3]) if place else None

    def _first(self, start: int, end: int) -> Place | None:
        """The first place that touches ``[start, end)``."""
        places = self.places
        if not places:
            return None
        with self._lock:
            index = bisect_right(places, start, key=lambda place: place[1])
            return places[index] if index < len(places) and places[index][0] < end else None

    def _around(self, reader: BlockReader, offset: int, view: memoryview) -> Holes:
        """In pieces that grow as long as all goes well, and shrink to a page where it does not."""
        holes: Holes = []
        at, end, size = offset, offset + len(view), self._unit()
        while at < end:
            stop = min(at // _PAGE * _PAGE + size, end)
            place = self._first(at, stop)
            if place is None or place[0] > at:
                stop = min(stop, place[0]) if place else stop
                try:
                    reader.read_into(at, view[at - offset : stop - offset])
                except ReadFailedError as error:
                    size = self._unit()
                    if stop - at > size:
                        continue
                    place = self._add(at, stop, error)
                else:
                    at, size = stop, 2 * size
                    continue
            stop = min(place[1], end)
            view[at - offset : stop - offset] = bytes(stop - at)
            joined = holes.pop()[0] if holes and holes[-1][1] == at - offset else at - offset
            holes.append((joined, stop - offset))
            at = stop
        return holes

    def _unit(self) -> int:
        """Bytes that are given up together."""
        return given_up_at_once(self._failures, _PATIENCE)

    def _add(self, start: int, end: int, error: ReadFailedError) -> Place:
        """Note that whole pages cannot be read, together with those before if it is for the same reason."""
        start, end = start // _PAGE * _PAGE, -(-end // _PAGE) * _PAGE
        why = f"{error.path}: {error.why}"
        with self._lock:
            if not self._failures:
                log.warning("%s; what cannot be read is left out", error.message)
            self._failures += 1
            index = bisect_right(self.places, start, key=lambda place: place[0])
            before = self.places[index - 1] if index else None
            if before is not None and before[1] > start:
                return before  # another thread was here meanwhile
            if index < len(self.places):
                end = min(end, self.places[index][0])
            if before is not None and before[1:3] == (start, why):
                self.places[index - 1] = place = (before[0], end, why, before[3])
                return place
            place = (start, end, why, start if error.file_offset is None else error.file_offset)
            if len(self.places) < _MOST_PLACES:
                self.places.insert(index, place)
        return place
