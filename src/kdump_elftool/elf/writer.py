"""Write a laid-out core: headers, notes, memory in large reads; zero pages become holes.

Memory is read into two reused buffers, so that reading the next piece overlaps with writing the
last one (both release the interpreter lock).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, merge_ranges, u64
from kdump_elftool.elf.layout import PAGE, CoreLayout, Storage, encode_headers
from kdump_elftool.files import FileSlice, Output
from kdump_elftool.progress import Advance, silent

CHUNK = 4 << 20
_ROWS = 4096
_WORDS = PAGE // 8
_PROBES = (0, 1, _WORDS // 2, _WORDS - 1)


class PhysicalReader(Protocol):
    """What the writer asks of physical memory, from addresses known to be present."""

    def read_into(self, paddr: int, view: memoryview, /) -> None:
        """Fill a buffer, or raise where that is impossible after all."""

    def read_present(self, paddr: int, view: memoryview, /) -> list[tuple[int, int]]:
        """Fill a buffer with what can be read; returns the parts (start, end) that cannot."""


@dataclass(frozen=True)
class Written:
    """Zero bytes left as holes, and what could not be read: where it would be in the core, and whose."""

    zero_bytes: int
    file_offset: U64
    paddr: U64
    size: U64


class Writable(Protocol):
    """Something that takes bytes at an offset."""

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None: ...


def write_core(layout: CoreLayout, memory: PhysicalReader, out: Output, advance: Advance = silent) -> Written:
    """Write the core to ``out`` (not yet committed).

    Memory that turns out unreadable is a hole in a file, and named in the result: the headers must be
    written anew by :func:`write_headers` with a layout that leaves it out.  A stream cannot be mended:
    there it is PageAbsentError.
    """
    write_headers(layout, out)
    job = _Job(memory, out, advance)
    buffers = [memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK))]
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[_Piece] | None = None
        for number, (paddr, file_offset, size) in enumerate(_pieces(layout.storage)):
            view = buffers[number % 2][:size]
            following = reader.submit(job.read, paddr, file_offset, view)
            if ahead is not None:
                job.write(ahead.result())
            ahead = following
        if ahead is not None:
            job.write(ahead.result())
    out.finish(layout.file_size)
    columns = zip(*job.holes, strict=True) if job.holes else ((), (), ())
    return Written(job.zero_bytes, *map(u64, columns))


def write_headers(layout: CoreLayout, out: Output) -> None:
    """Write ELF header, program headers and notes; a stream gets them in the order of their offsets."""
    for offset, data in encode_headers(layout):
        out.write_at(offset, data)
    write_notes(layout, out)


@dataclass(frozen=True)
class _Piece:
    """A piece of memory that was read: its place in the core, and the parts that are not right."""

    paddr: int
    file_offset: int
    view: memoryview
    holes: list[tuple[int, int]]


class _Job:
    """One run of :func:`write_core`: reads in one thread, writes and counts in another."""

    def __init__(self, memory: PhysicalReader, out: Output, advance: Advance) -> None:
        self.memory, self.out, self.advance = memory, out, advance
        self.zero_bytes = 0
        self.holes: list[tuple[int, int, int]] = []

    def read(self, paddr: int, file_offset: int, view: memoryview) -> _Piece:
        if self.out.is_file:
            holes = self.memory.read_present(paddr, view)
            return _Piece(paddr, file_offset, view, _whole_pages(holes, paddr, len(view)) if holes else [])
        self.memory.read_into(paddr, view)
        return _Piece(paddr, file_offset, view, [])

    def write(self, piece: _Piece) -> None:
        done = 0
        for begin, end in [*piece.holes, (len(piece.view), len(piece.view))]:
            if begin > done:
                part = piece.view[done:begin]
                self.zero_bytes += _write_piece(piece.file_offset + done, part, self.out)
            if end > begin:
                self.holes.append((piece.file_offset + begin, piece.paddr + begin, end - begin))
            done = end
        self.advance(len(piece.view))


class Noted(Protocol):
    """Something with notes at an offset: a whole layout, or a tail."""

    @property
    def notes(self) -> tuple[bytes | FileSlice, ...]: ...

    @property
    def notes_offset(self) -> int: ...


def write_notes(noted: Noted, out: Writable) -> None:
    """Write the contents of the PT_NOTE, large descriptors in pieces."""
    offset = noted.notes_offset
    for chunk in noted.notes:
        if isinstance(chunk, FileSlice):
            buffer = memoryview(bytearray(min(CHUNK, chunk.size)))
            for done in range(0, chunk.size, CHUNK):
                part = buffer[: min(CHUNK, chunk.size - done)]
                chunk.file.read_into(chunk.offset + done, part)
                out.write_at(offset + done, part)
            offset += chunk.size
        else:
            out.write_at(offset, chunk)
            offset += len(chunk)


def _pieces(storage: Storage) -> Iterator[tuple[int, int, int]]:
    """(paddr, file offset, size) of at most CHUNK bytes, cut at page borders of the file."""
    columns = (storage.paddr, storage.size, storage.file_offset)
    for first in range(0, len(storage.paddr), _ROWS):
        # a number of Python's takes four times the room of numpy's
        rows = (column[first : first + _ROWS].tolist() for column in columns)
        for paddr, size, offset in zip(*rows, strict=True):
            done = 0
            while done < size:
                room = CHUNK - (offset + done) % PAGE
                step = min(room, size - done)
                yield paddr + done, offset + done, step
                done += step


def _write_piece(file_offset: int, view: memoryview, out: Output) -> int:
    """Write one piece without its zero pages; returns how many bytes those were."""
    size = len(view)
    head = min(-file_offset % PAGE, size)
    pages = (size - head) // PAGE
    body = view[head : head + pages * PAGE]
    if head:
        out.write_at(file_offset, view[:head])
    zeros = zero_pages(np.frombuffer(body, dtype=np.uint64).reshape(-1, _WORDS)) if pages else _NO_PAGES
    for begin, end in _runs(~zeros):
        out.write_at(file_offset + head + begin * PAGE, body[begin * PAGE : end * PAGE])
    tail = head + pages * PAGE
    if tail < size:
        out.write_at(file_offset + tail, view[tail:])
    return int(zeros.sum()) * PAGE


def _whole_pages(holes: list[tuple[int, int]], paddr: int, size: int) -> list[tuple[int, int]]:
    """The holes with the rest of their pages: memory in a file need not lie as it does in the machine."""
    skip = paddr % PAGE
    low = u64([max((begin + skip) // PAGE * PAGE - skip, 0) for begin, _ in holes])
    high = u64([min(-(-(end + skip) // PAGE) * PAGE - skip, size) for _, end in holes])
    joined = merge_ranges(low, high)
    return list(zip(joined.start.tolist(), joined.end.tolist(), strict=True))


_NO_PAGES = np.zeros(0, dtype=np.bool_)


def zero_pages(pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which rows of an (n, words) array hold zeros only; a few probes rule out most of them."""
    candidate: npt.NDArray[np.bool_] = pages[:, _PROBES[0]] == 0
    for probe in _PROBES[1:]:
        candidate &= pages[:, probe] == 0
    rows = np.flatnonzero(candidate)
    candidate[rows] = ~pages[rows].any(axis=1)
    return candidate


def _runs(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Half-open index ranges where ``mask`` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
