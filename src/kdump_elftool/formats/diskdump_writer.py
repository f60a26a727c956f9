"""Write a laid-out kdump-compressed dump: pages in batches, packed on all cores, in their order.

One thread reads ahead, one for each core packs, the caller's writes; a few batches are held at any
time.  Descriptors are written as they come, the second bitmap at the end: a page that turns
out unreadable is just not in it, and the descriptors behind it move up by one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kdump_elftool.addr import U64, Bools, Index, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.codecs.packing import Pack, Packed
from kdump_elftool.elf.writer import Writable, write_notes, zero_pages
from kdump_elftool.formats.diskdump_layout import KdumpLayout, bitmap, frame_batches, headers
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.paged import Bytes2D
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.progress import Advance, silent

_BATCH_BYTES = 2 << 20
_AHEAD = 2
_LEAST_PER_TASK = 32
_DESCRIPTORS = 1 << 15
"""So many are collected before they are written."""


@dataclass(frozen=True)
class WrittenKdump:
    """How long the file is, its frames of zeros, and the frames that could not be read."""

    file_size: int
    zero_pages: int
    unreadable: Ranges


class Patchwork(Protocol):
    """A regular file, or the flattened form of one: takes bytes at any offset."""

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None: ...


@dataclass(frozen=True)
class _Batch:
    """Pages as they were read; ``stored`` are the rows that are neither zeros nor unreadable."""

    frames: U64
    good: Bools
    zero: Bools
    stored: Index
    tasks: list[Future[Packed]]


def write_kdump(
    layout: KdumpLayout, memory: PhysicalMemory, out: Patchwork, pack: Pack, advance: Advance = silent
) -> WrittenKdump:
    """Write the whole dump to ``out``."""
    for offset, data in headers(layout):
        out.write_at(offset, data)
    write_notes(layout, out)
    _write_bitmap(layout.ram, layout.bitmap_offset, out)
    out.write_at(layout.zero_offset, bytes(layout.page_size))
    job = _Job(layout, memory, out, pack)
    job.run(advance)
    unreadable = job.unreadable()
    dumped = subtract_ranges(layout.dumped, unreadable)
    _write_bitmap(dumped, layout.bitmap_offset + layout.bitmap_size, out)
    return WrittenKdump(job.data_offset, job.zero_pages, unreadable)


def _write_bitmap(frames: Ranges, offset: int, out: Writable) -> None:
    for at, data in bitmap(frames):
        out.write_at(offset + at, data)


class _Job:
    """One run of :func:`write_kdump`: where the next descriptor and the next page go."""

    def __init__(self, layout: KdumpLayout, memory: PhysicalMemory, out: Patchwork, pack: Pack) -> None:
        self.layout, self.memory, self.out, self.pack = layout, memory, out, pack
        self.data_offset = layout.zero_offset + layout.page_size
        self.descriptors_offset = layout.descriptors_offset
        self.zero_pages = 0
        self._cores = len(os.sched_getaffinity(0))
        self._descriptors: list[bytes] = []
        self._held = 0
        self._bad: list[U64] = []

    def run(self, advance: Advance) -> None:
        """Read, pack, write."""
        page = self.layout.page_size
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self._cores) as packers:
            reading: deque[Future[tuple[Bytes2D, Bools, Bools]]] = deque()
            packing: deque[_Batch] = deque()
            waiting: deque[U64] = deque()
            for frames in self._batches():
                waiting.append(frames)
                reading.append(reader.submit(self._read, frames))
                if len(reading) >= _AHEAD:
                    packing.append(self._submit(packers, waiting.popleft(), *reading.popleft().result()))
                if len(packing) >= _AHEAD:
                    batch = packing.popleft()
                    self._write(batch)
                    advance(len(batch.frames) * page)
            for frames, ahead in zip(waiting, reading, strict=True):
                packing.append(self._submit(packers, frames, *ahead.result()))
            for batch in packing:
                self._write(batch)
                advance(len(batch.frames) * page)
        self._flush()

    def unreadable(self) -> Ranges:
        """Frames that could not be read."""
        frames = np.concatenate(self._bad) if self._bad else u64([])
        return merge_ranges(frames, frames + np.uint64(1))

    def _batches(self) -> Iterator[U64]:
        return frame_batches(self.layout.dumped, max(_BATCH_BYTES // self.layout.page_size, 1))

    def _read(self, frames: U64) -> tuple[Bytes2D, Bools, Bools]:
        """Pages of these frames, which of them are right, and which are zeros."""
        page = self.layout.page_size
        paddr = frames * np.uint64(page)
        pages, good = self.memory.gather(paddr, page)
        if not good.all():
            self._fill_edges(paddr, pages, good)
        zero = zero_pages(pages.view(np.uint64)) & good
        return pages, good, zero

    def _fill_edges(self, paddr: U64, pages: Bytes2D, good: Bools) -> None:
        """Pages of which only a part was RAM: zeros in the place of the rest, as makedumpfile writes them."""
        size = np.uint64(self.layout.page_size)
        declared = self.memory.declared
        rows = np.flatnonzero(~good)
        pieces = intersect(declared, paddr[rows], np.full(len(rows), size))
        covered = np.bincount(pieces.owner, weights=pieces.size.astype(np.float64), minlength=len(rows))
        for row in rows[covered < float(size)].tolist():
            begin = int(paddr[row])
            holes = self.memory.read_present(begin, pages[row].data)
            start = u64([begin + low for low, _ in holes])
            length = u64([high - low for low, high in holes])
            if len(intersect(declared, start, length).owner):
                pages[row] = 0
            else:
                good[row] = True

    def _submit(
        self, packers: ThreadPoolExecutor, frames: U64, pages: Bytes2D, good: Bools, zero: Bools
    ) -> _Batch:
        page = self.layout.page_size
        stored = np.flatnonzero(good & ~zero)
        begin = (stored * page).tolist()
        step = max(-(-len(begin) // self._cores), _LEAST_PER_TASK)
        source = pages.reshape(-1).data
        tasks = [
            packers.submit(self.pack, source, begin[first : first + step], page)
            for first in range(0, len(begin), step)
        ]
        return _Batch(frames, good, zero, stored, tasks)

    def _write(self, batch: _Batch) -> None:
        page = self.layout.page_size
        sizes: list[int] = []
        data_offset = self.data_offset
        for task in batch.tasks:
            packed = task.result()
            self.out.write_at(self.data_offset, packed.data)
            self.data_offset += len(packed.data)
            sizes += packed.sizes
        size = u64(np.array(sizes, dtype=np.uint64))
        rows = np.zeros(len(batch.frames), dtype=self.layout.descriptor)
        rows["offset"][batch.zero] = self.layout.zero_offset
        rows["size"][batch.zero] = page
        rows["offset"][batch.stored] = np.uint64(data_offset) + np.cumsum(size, dtype=np.uint64) - size
        rows["size"][batch.stored] = size
        rows["flags"][batch.stored] = np.where(size < np.uint64(page), self.layout.flag, 0)
        self.zero_pages += int(batch.zero.sum())
        if not batch.good.all():
            rows = rows[batch.good]
            self._bad.append(batch.frames[~batch.good])
        self._descriptors.append(rows.tobytes())
        self._held += len(rows)
        if self._held >= _DESCRIPTORS:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._descriptors)
        self.out.write_at(self.descriptors_offset, data)
        self.descriptors_offset += len(data)
        self._descriptors, self._held = [], 0
