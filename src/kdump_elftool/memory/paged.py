"""Readers that hold memory in pages of which some may turn out unreadable when they are read.

A compressed page is decoded when somebody asks for it, and only then it shows whether it can be.
Such a reader's data is its pages one after the other: page ``n`` is what lies at offset
``n * page_size``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index

Bytes2D = npt.NDArray[np.uint8]
Holes = list[tuple[int, int]]
"""Half-open byte ranges of a buffer that could not be filled (they are zeros), ascending."""

_BATCH_BYTES = 1 << 22


@dataclass(frozen=True)
class Trouble:
    """Why a page could not be read, and where in the file its data is or should be."""

    why: str
    file_offset: int | None


class PagedReader(ABC):
    """Data in pages.  Subclasses read whole pages; the rest is made of that."""

    page_size: int

    @abstractmethod
    def read_pages(self, pages: U64, out: Bytes2D) -> Bools:
        """Fill row i of ``out`` (n, page_size) with page ``pages[i]``; returns which rows are right.

        ``pages`` ascend; the other rows are left as zeros.
        """

    @abstractmethod
    def trouble(self, page: int) -> Trouble:
        """Why :meth:`read_pages` could not read ``page``."""

    def read_present(self, offset: int, view: memoryview) -> Holes:
        """Fill ``view`` from ``offset``; what cannot be read is zeros and named in the result."""
        page, end = self.page_size, offset + len(view)
        holes: Holes = []
        done = offset
        while done < end:
            first = done // page
            if done % page or end - done < page:
                stop = min(end, (first + 1) * page)
                holes += self._part(done, view[done - offset : stop - offset], done - offset)
            else:
                count = min((end - done) // page, max(_BATCH_BYTES // page, 1))
                stop = done + count * page
                rows = np.frombuffer(view[done - offset : stop - offset], dtype=np.uint8)
                good = self.read_pages(_column(first, count), rows.reshape(count, page))
                holes += [
                    (done - offset + begin * page, done - offset + after * page)
                    for begin, after in _runs(~good)
                ]
            done = stop
        return _joined(holes)

    def gather(self, offset: U64, size: int, out: Bytes2D) -> Bools:
        """Fill row i of ``out`` (n, size) from ``offset[i]``; returns which rows are wholly readable."""
        readable = np.zeros(len(offset), dtype=np.bool_)
        if not size:
            return ~readable
        order = np.argsort(offset, kind="stable")
        for rows in np.split(order, self._batches(offset[order], size)):
            if len(rows):
                out[rows], readable[rows] = self._gather_sorted(offset[rows], size)
        return readable

    def _batches(self, offset: U64, size: int) -> Index:
        """Where to cut ascending blocks so that few bytes of pages are held at a time."""
        page = np.uint64(self.page_size)
        first, last = offset // page, (offset + np.uint64(size - 1)) // page
        before = np.append(np.uint64(0), last[:-1] + np.uint64(1))
        fresh = last + np.uint64(1) - np.minimum(np.maximum(first, before), last + np.uint64(1))
        held = np.cumsum(fresh) * page + np.arange(len(offset), dtype=np.uint64) * np.uint64(size)
        return np.flatnonzero(np.diff(held // np.uint64(_BATCH_BYTES))) + 1

    def _gather_sorted(self, offset: U64, size: int) -> tuple[Bytes2D, Bools]:
        page = np.uint64(self.page_size)
        first, last = offset // page, (offset + np.uint64(size - 1)) // page
        most = int((last - first).max())
        touched = [np.minimum(first + np.uint64(step), last) for step in range(most + 1)]
        pages = np.unique(np.concatenate(touched))
        data = np.zeros((len(pages), self.page_size), dtype=np.uint8)
        good = self.read_pages(pages, data)
        # the pages of one block stand next to each other, since all of them were asked for
        slot, last_slot = np.searchsorted(pages, first), np.searchsorted(pages, last)
        bad_before = np.concatenate([[0], np.cumsum(~good)])
        readable = bad_before[last_slot + 1] == bad_before[slot]
        begin = slot * self.page_size + (offset - first * page).astype(np.intp)
        windows = np.lib.stride_tricks.sliding_window_view(data.reshape(-1), size)
        blocks: Bytes2D = windows[begin]
        blocks[~readable] = 0
        return blocks, readable

    def _part(self, offset: int, view: memoryview, shift: int) -> Holes:
        """A piece of one page."""
        first, skip = divmod(offset, self.page_size)
        data = np.zeros((1, self.page_size), dtype=np.uint8)
        good = self.read_pages(_column(first, 1), data)
        view[:] = data[0, skip : skip + len(view)].tobytes()
        return [] if good[0] else [(shift, shift + len(view))]


def _column(first: int, count: int) -> U64:
    return np.arange(count, dtype=np.uint64) + np.uint64(first)


def _runs(mask: Bools) -> Holes:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _joined(holes: Holes) -> Holes:
    result: Holes = []
    for begin, end in holes:
        if result and result[-1][1] == begin:
            result[-1] = (result[-1][0], end)
        else:
            result.append((begin, end))
    return result
