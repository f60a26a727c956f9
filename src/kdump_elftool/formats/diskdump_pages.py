"""Pages of a kdump-compressed dump, read through their descriptors when somebody asks for them.

Page ``n`` of the reader is the n-th that the second bitmaps name, over all parts of a set.
Descriptors are read in chunks, pages decoded in batches on all cores; what is looked at piece by
piece (lists, tables) is served from a small cache of decoded pages.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index, align_up
from kdump_elftool.codecs import pages as codecs
from kdump_elftool.codecs.pages import Batch, Codec, decoder
from kdump_elftool.errors import CorruptDumpError, ReadFailedError
from kdump_elftool.files import ByteSource, behind_gap, readable_end
from kdump_elftool.formats import diskdump_structs as d
from kdump_elftool.memory.paged import Bytes2D, PagedReader, Trouble
from kdump_elftool.memory.unreadable import Unreadable

CODECS: dict[int, Codec] = {
    d.ZLIB: codecs.ZLIB,
    d.LZO: codecs.LZO,
    d.SNAPPY: codecs.SNAPPY,
    d.ZSTD: codecs.ZSTD,
}
_KNOWN = np.uint32(d.ZLIB | d.LZO | d.SNAPPY | d.ZSTD)
GOOD, NEVER_WRITTEN, TRUNCATED, UNKNOWN_FLAGS, BAD_SIZE, BAD_OFFSET = range(6)
_CHUNK = 4096
_CHUNKS = 64
_CACHED_BYTES = 4 << 20
_SMALL_BYTES = 1 << 18
"""Requests for no more than this go through the cache."""
_MOST_BYTES = 4 << 20
_PER_THREAD = 32

Descriptors = np.ndarray[tuple[int], np.dtype[np.void]]
States = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PartPages:
    """One file's descriptors: ``count`` of them at ``offset``, in frame order."""

    file: ByteSource
    dtype: np.dtype[np.void]
    offset: int
    count: int
    page_size: int
    unreadable: Unreadable = field(default_factory=Unreadable)

    def read(self, first: int, count: int) -> Descriptors:
        """Descriptors from ``first`` on; those behind the end of the file, or missing, are zeros."""
        size = count * d.DESCRIPTOR_SIZE
        at = self.offset + first * d.DESCRIPTOR_SIZE
        try:
            raw = self.file.read_at(at, size)
        except ReadFailedError:
            raw = self._around_failures(at, size)
        if len(raw) < size and len(self.file.missing):
            raw = self._around_gaps(at, size)
        return np.frombuffer(raw.ljust(size, b"\0"), dtype=self.dtype)

    def _around_gaps(self, at: int, size: int) -> bytes:
        """Whole descriptors that a layer around the dump has not lost, zeros for the others."""
        raw, done = bytearray(size), 0
        while done < size and at + done < self.file.size:
            piece = self.file.read_at(at + done, size - done)
            whole = len(piece) - len(piece) % d.DESCRIPTOR_SIZE
            raw[done : done + whole] = piece[:whole]
            behind = behind_gap(self.file, at + done + len(piece)) - at
            done = max(align_up(behind, d.DESCRIPTOR_SIZE), done + d.DESCRIPTOR_SIZE)
        return bytes(raw)

    def _around_failures(self, at: int, size: int) -> bytes:
        """Whole descriptors that the system can read, zeros for the others."""
        raw = bytearray(max(min(size, self.file.size - at), 0))
        for low, high in self.unreadable.read(self.file, at, memoryview(raw)):
            begin = low // d.DESCRIPTOR_SIZE * d.DESCRIPTOR_SIZE
            end = min(align_up(high, d.DESCRIPTOR_SIZE), len(raw))
            raw[begin:end] = bytes(end - begin)
        return bytes(raw)

    def states(self, found: Descriptors) -> States:
        """What is wrong with each descriptor (GOOD: nothing that shows without decoding)."""
        offset, size, flags = found["offset"], found["size"], found["flags"]
        state = np.full(len(found), GOOD, dtype=np.uint8)
        page = np.uint32(self.page_size)
        raw = flags == 0
        end = np.uint64(max(self.file.size, 0))
        state[(offset > end) | (size > end - np.minimum(offset, end))] = TRUNCATED
        state[(size == 0) | (size > page) | (raw & (size != page))] = BAD_SIZE
        state[(flags & ~_KNOWN) != 0] = UNKNOWN_FLAGS
        state[(offset > 0) & (offset < np.uint64(self.offset + self.count * d.DESCRIPTOR_SIZE))] = BAD_OFFSET
        state[offset == 0] = NEVER_WRITTEN
        return state

    def trouble(self, number: int) -> Trouble:
        """Why page ``number`` of this part can't be read."""
        at = self.offset + number * d.DESCRIPTOR_SIZE
        found = self.read(number, 1)
        behind = at + d.DESCRIPTOR_SIZE > self.file.size
        failed = self.unreadable.trouble(at, d.DESCRIPTOR_SIZE)
        if failed:
            return Trouble(f"its descriptor: {failed.why}", failed.file_offset)
        state = TRUNCATED if behind else int(self.states(found)[0])
        data, size, flags = (int(found[name][0]) for name in ("offset", "size", "flags"))
        if not behind and readable_end(self.file, at) < at + d.DESCRIPTOR_SIZE:
            return Trouble(f"its descriptor is missing at file offset {at:#x}", at)
        if state == GOOD and readable_end(self.file, data) < data + size:
            return Trouble(f"missing at file offset {data:#x}", data)
        if state == GOOD:
            try:
                self.file.read_at(data, size)
            except ReadFailedError as error:
                return Trouble(f"{error.path}: {error.why} at file offset {error.file_offset:#x}", data)
        words = {
            NEVER_WRITTEN: (f"never written: the descriptor at file offset {at:#x} is empty", at),
            TRUNCATED: (f"truncated at file offset {self.file.size:#x}", self.file.size),
            UNKNOWN_FLAGS: (f"unknown page flags {flags:#x} at file offset {at:#x}", at),
            BAD_SIZE: (f"impossible page size at file offset {at:#x}", at),
            BAD_OFFSET: (f"impossible page offset at file offset {at:#x}", at),
        }
        return Trouble(*words.get(state, (f"could not be decoded at file offset {data:#x}", data)))


class KdumpPages(PagedReader):
    """The pages of all parts, numbered through."""

    def __init__(self, parts: tuple[PartPages, ...], page_size: int) -> None:
        self.page_size = page_size
        self.parts = parts
        self.base = np.cumsum([0, *(part.count for part in parts)]).astype(np.uint64)
        self._chunks: OrderedDict[tuple[int, int], Descriptors] = OrderedDict()
        self._decoded: OrderedDict[int, bytes | None] = OrderedDict()
        self._lock = threading.Lock()
        self._buffers = threading.local()

    def read_pages(self, pages: U64, out: Bytes2D) -> Bools:
        if out.nbytes <= max(_SMALL_BYTES, self.page_size):
            return self._cached(pages, out)
        good = np.zeros(len(pages), dtype=np.bool_)
        step = max(_MOST_BYTES // self.page_size, 1)
        for begin in range(0, len(pages), step):
            rows = slice(begin, begin + step)
            good[rows] = self._decode(pages[rows], out[rows])
        return good

    def trouble(self, page: int) -> Trouble:
        number = min(int(np.searchsorted(self.base, np.uint64(page), side="right")) - 1, len(self.parts) - 1)
        return self.parts[number].trouble(page - int(self.base[number]))

    def _cached(self, pages: U64, out: Bytes2D) -> Bools:
        good = np.ones(len(pages), dtype=np.bool_)
        missing = []
        with self._lock:
            for row, page in enumerate(pages.tolist()):
                if page not in self._decoded:
                    missing.append(row)
                    continue
                self._decoded.move_to_end(page)
                data = self._decoded[page]
                good[row] = data is not None
                out[row] = 0 if data is None else np.frombuffer(data, dtype=np.uint8)
        if missing:
            fresh = np.zeros((len(missing), self.page_size), dtype=np.uint8)
            right = self._decode(pages[missing], fresh)
            out[missing], good[missing] = fresh, right
            with self._lock:
                for row, page in enumerate(pages[missing].tolist()):
                    self._decoded[page] = fresh[row].tobytes() if right[row] else None
                while len(self._decoded) > max(_CACHED_BYTES // self.page_size, 1):
                    self._decoded.popitem(last=False)
        return good

    def _decode(self, pages: U64, out: Bytes2D) -> Bools:
        """A batch of pages, part by part."""
        good = np.zeros(len(pages), dtype=np.bool_)
        cuts = np.searchsorted(pages, self.base)
        for number, part in enumerate(self.parts):
            rows = slice(int(cuts[number]), int(cuts[number + 1]))
            if rows.stop > rows.start:
                local = pages[rows] - self.base[number]
                found = self._descriptors(number, local)
                good[rows] = self._decode_part(part, found, out[rows])
        out[~good] = 0
        return good

    def _descriptors(self, number: int, local: U64) -> Descriptors:
        part = self.parts[number]
        result = np.empty(len(local), dtype=part.dtype)
        chunk_of = local // np.uint64(_CHUNK)
        for index in np.unique(chunk_of).tolist():
            with self._lock:
                chunk = self._chunks.get((number, index))
            if chunk is None:
                first = index * _CHUNK
                chunk = part.read(first, min(_CHUNK, part.count - first))
                with self._lock:
                    self._chunks[number, index] = chunk
                    while len(self._chunks) > _CHUNKS:
                        self._chunks.popitem(last=False)
            rows = chunk_of == index
            result[rows] = chunk[(local[rows] - np.uint64(index * _CHUNK)).astype(np.intp)]
        return result

    def _decode_part(self, part: PartPages, found: Descriptors, out: Bytes2D) -> Bools:
        good: Bools = part.states(found) == GOOD
        rows = np.flatnonzero(good)
        if not len(rows):
            return good
        offset, size = found["offset"][rows].astype(np.uint64), found["size"][rows].astype(np.uint64)
        source, begin, there = self._read_pieces(part.file, offset, size)
        if not there.all():
            good[rows[~there]] = False
            rows, begin, offset, size = rows[there], begin[there], offset[there], size[there]
        # whatever its flags say: no writer keeps a compressed page that is no smaller
        raw = size == np.uint64(self.page_size)
        _copy_raw(source, begin[raw], rows[raw], out)
        flags = found["flags"][rows]
        left = ~raw
        for flag, codec in CODECS.items():
            chosen = np.flatnonzero(left & (flags & np.uint32(flag) != 0))
            if len(chosen):
                left[chosen] = False
                decode = decoder(codec)
                low, high = begin[chosen], begin[chosen] + size[chosen].astype(np.intp)
                bad = self._run(decode, source, low, high, rows[chosen], out)
                good[rows[chosen[bad]]] = False
        return good

    def _run(
        self, decode: codecs.Decode, source: memoryview, low: Index, high: Index, rows: Index, out: Bytes2D
    ) -> list[int]:
        """Decode pieces on as many threads as they are worth; returns the numbers of the bad ones."""
        view = out.reshape(-1).data
        place = rows * self.page_size
        workers = min(self._cores, len(rows) // _PER_THREAD)

        def some(part: slice) -> list[int]:
            columns = (low[part].tolist(), high[part].tolist(), place[part].tolist())
            bad = decode(Batch(source, columns[0], columns[1], view, columns[2], self.page_size))
            return [number + part.start for number in bad]

        if workers <= 1:
            return some(slice(0, len(rows)))
        edges = [len(rows) * number // workers for number in range(workers + 1)]
        parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
        return [number for bad in self._pool.map(some, parts) for number in bad]

    def _read_pieces(self, file: ByteSource, offset: U64, size: U64) -> tuple[memoryview, Index, Bools]:
        """All pieces in one buffer, where each begins there, and which could be read.

        Pieces that lie close together come with one read.  The buffer is valid until the next call.
        """
        order = np.argsort(offset, kind="stable")
        start, end = offset[order], (offset + size)[order]
        reach = np.maximum.accumulate(end)
        apart = start[1:] > reach[:-1] + np.uint64(self.page_size)
        first = np.flatnonzero(np.concatenate([[True], apart]))
        last = np.append(first[1:] - 1, len(start) - 1)
        low, length = start[first], reach[last] - start[first]
        at = np.cumsum(length) - length
        group = np.searchsorted(first, np.arange(len(start)), side="right") - 1
        begin = np.empty(len(offset), dtype=np.intp)
        begin[order] = (at[group] + (start - low[group])).astype(np.intp)
        there = np.ones(len(offset), dtype=np.bool_)
        buffer = self._buffer(int(length.sum()))
        columns = (low, at, length, first, last)
        for position, where, count, head, tail in zip(*(c.tolist() for c in columns), strict=True):
            if not _load(file, position, buffer[where : where + count]):
                for row in order[head : tail + 1].tolist():
                    view = buffer[begin[row] : begin[row] + int(size[row])]
                    there[row] = _load(file, int(offset[row]), view)
        return buffer, begin, there

    def _buffer(self, size: int) -> memoryview:
        """This thread's buffer; new ones would cost a page fault for each page."""
        held: memoryview = getattr(self._buffers, "view", memoryview(b""))
        if len(held) < size:
            held = self._buffers.view = memoryview(bytearray(size + size // 4))
        return held

    @cached_property
    def _cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._cores, thread_name_prefix="decode")


def _load(file: ByteSource, offset: int, view: memoryview) -> bool:
    try:
        file.read_into(offset, view)
    except CorruptDumpError:
        return False  # a bad sector, or a record that a layer around the dump has lost
    return True


def _copy_raw(source: memoryview, begin: Index, rows: Index, out: Bytes2D) -> None:
    """Copy raw pages, runs at once: neighbours in the file, or one page that stands for many (zeros)."""
    if not len(rows):
        return
    page = out.shape[1]
    data = np.frombuffer(source, dtype=np.uint8)
    step = np.diff(begin)
    joined = (np.diff(rows) == 1) & ((step == page) | (step == 0))
    joined[1:] &= ~(joined[:-1] & (step[1:] != step[:-1]))
    first = np.flatnonzero(np.concatenate([[True], ~joined]))
    for low, high in zip(first.tolist(), [*first[1:].tolist(), len(rows)], strict=True):
        at, count = int(begin[low]), high - low
        target = out[rows[low] : rows[low] + count]
        if count > 1 and begin[low + 1] == at:
            target[:] = data[at : at + page]
        else:
            target[:] = data[at : at + count * page].reshape(count, page)
