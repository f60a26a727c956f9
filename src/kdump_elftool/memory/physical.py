"""Physical memory of a dump: read by physical address, whatever the file format is.

A format hands over its extents and a reader; positions in the extents are offsets into that
reader's data.  Pages of a :class:`PagedReader` may turn out unreadable: they are absent from then on,
whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import MASK64, U64, Bools, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.errors import PageAbsentError
from kdump_elftool.memory.extents import ZERO_FILL, Extents, intersect
from kdump_elftool.memory.paged import Bytes2D, Holes, PagedReader, Trouble
from kdump_elftool.memory.unreadable import BlockReader, Unreadable

_PAGE = 4096
_RUN_BYTES = 1 << 20  # one read of many blocks
_RUN_GAP = 1 << 15  # reading over a small gap is cheaper than a second system call


@dataclass(frozen=True)
class PhysicalMemory:
    """``extents``: what the dump holds.  ``declared``: what its headers say the machine had.

    ``unreadable`` collects what the system cannot read of the data of a :class:`BlockReader`.
    """

    reader: BlockReader | PagedReader
    extents: Extents
    declared: Ranges
    unreadable: Unreadable = field(default_factory=Unreadable)

    def present(self) -> Ranges:
        """Physical ranges that can be read."""
        return self.extents.ranges()

    def absent(self) -> Ranges:
        """Declared ranges that cannot be read."""
        return subtract_ranges(self.declared, self.present())

    def moved(self, by: int) -> PhysicalMemory:
        """The same memory ``by`` bytes higher, or lower; none of it may leave the address space."""
        held, declared, shift = self.extents, self.declared, np.uint64(by & MASK64)
        return replace(
            self,
            extents=Extents(held.start + shift, held.size, held.position),
            declared=Ranges(declared.start + shift, declared.end + shift),
        )

    def read(self, paddr: int, size: int) -> bytes:
        """Exactly ``size`` bytes.  Raises PageAbsentError at the first address that is missing."""
        buffer = bytearray(size)
        self.read_into(paddr, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, paddr: int, view: memoryview) -> None:
        """Fill ``view`` from ``paddr``.  Raises PageAbsentError."""
        done = 0
        while done < len(view):
            address = paddr + done
            if address > MASK64:
                raise PageAbsentError("paddr", address, "beyond the physical address space")
            index, inside = self.extents.locate(np.array([address], dtype=np.uint64))
            if not inside[0]:
                raise PageAbsentError("paddr", address, "not in the dump")
            at = int(index[0])
            skip = address - int(self.extents.start[at])
            room = min(int(self.extents.size[at]) - skip, len(view) - done)
            target = view[done : done + room]
            if int(self.extents.position[at]) == ZERO_FILL:
                target[:] = bytes(room)
            else:
                holes = self._read(int(self.extents.position[at]) + skip, target)
                if holes:
                    missing = address + holes[0][0]
                    raise PageAbsentError("paddr", missing, self.trouble(missing).why)
            done += room

    def read_present(self, paddr: int, view: memoryview) -> Holes:
        """Fill ``view`` with what is there and zeros elsewhere; returns the holes (start, end)."""
        extents = self.extents
        size = min(len(view), MASK64 - paddr)
        whole = Ranges(extents.start, extents.end)
        pieces = intersect(whole, u64([paddr]), u64([size]))
        at, _ = extents.locate(pieces.start)
        position = np.where(
            extents.position[at] == np.uint64(ZERO_FILL),
            np.uint64(ZERO_FILL),
            extents.position[at] + (pieces.start - extents.start[at]),
        )
        holes: Holes = []
        done = 0
        columns = (pieces.start - np.uint64(paddr), pieces.size, position)
        for begin, length, offset in zip(*(column.tolist() for column in columns), strict=True):
            if begin > done:
                view[done:begin] = bytes(begin - done)
                holes.append((done, begin))
            target = view[begin : begin + length]
            if offset == ZERO_FILL:
                target[:] = bytes(length)
            else:
                holes += [(begin + low, begin + high) for low, high in self._read(offset, target)]
            done = begin + length
        if done < len(view):
            view[done:] = bytes(len(view) - done)
            holes.append((done, len(view)))
        return holes

    def found_unreadable(self) -> Ranges:
        """What of the extents could not be read when somebody asked for it, in whole pages.

        Of a :class:`PagedReader` nothing is known.
        """
        places, held = self.unreadable.places, self.extents
        bad = Ranges(u64([place[0] for place in places]), u64([place[1] for place in places]))
        rows = np.flatnonzero(held.position != np.uint64(ZERO_FILL))
        pieces = intersect(bad, held.position[rows], held.size[rows])
        owner, page = rows[pieces.owner], np.uint64(_PAGE)
        start = held.start[owner] + (pieces.start - held.position[owner])
        last = start + pieces.size - np.uint64(1)
        return merge_ranges(start // page * page, (last // page + np.uint64(1)) * page)

    def trouble(self, paddr: int) -> Trouble:
        """Why ``paddr``, which the extents hold, or the rest of its page could not be read."""
        index, inside = self.extents.locate(u64([paddr]))
        if not inside[0]:
            return Trouble("not in the dump", None)
        offset = int(self.extents.position[index[0]]) + paddr - int(self.extents.start[index[0]])
        if not isinstance(self.reader, PagedReader):
            return self.unreadable.trouble(offset, _PAGE - paddr % _PAGE) or Trouble(
                "could not be read", None
            )
        return self.reader.trouble(offset // self.reader.page_size)

    def _read(self, offset: int, view: memoryview) -> Holes:
        """Fill ``view`` from the reader's data."""
        if isinstance(self.reader, PagedReader):
            return self.reader.read_present(offset, view)
        return self.unreadable.read(self.reader, offset, view)

    def gather(self, paddr: U64, size: int) -> tuple[Bytes2D, Bools]:
        """Many blocks of ``size`` bytes: an (n, size) uint8 array and a mask of those readable.

        A block counts as readable only when all its bytes are present in one piece; the others
        are zeros.
        """
        blocks = np.zeros((len(paddr), size), dtype=np.uint8)
        if not len(self.extents) or not len(paddr):
            return blocks, np.zeros(len(paddr), dtype=np.bool_)
        index, inside = self.extents.locate(paddr)
        skip = paddr - self.extents.start[index]
        readable = inside & (self.extents.size[index] - np.where(inside, skip, 0) >= np.uint64(size))
        position = self.extents.position[index]
        split = np.flatnonzero(inside & ~readable)
        from_file = np.flatnonzero(readable & (position != np.uint64(ZERO_FILL)))
        if isinstance(self.reader, PagedReader):
            found = np.zeros((len(from_file), size), dtype=np.uint8)
            readable[from_file] = self.reader.gather((position + skip)[from_file], size, found)
            blocks[from_file] = found
        else:
            offset = (position + skip)[from_file]
            readable[from_file] = self._gather_runs(self.reader, blocks, from_file, offset, size)
        for row in split.tolist():
            readable[row] = self._across_extents(int(paddr[row]), blocks[row])
        return blocks, readable

    def _gather_runs(
        self, reader: BlockReader, blocks: Bytes2D, rows: npt.NDArray[np.intp], offset: U64, size: int
    ) -> Bools:
        """Fill rows of ``blocks``; returns which of them could be read."""
        good = np.ones(len(rows), dtype=np.bool_)
        order = np.argsort(offset, kind="stable")
        rows_given, rows, offset = rows, rows[order], offset[order]
        scratch = bytearray(_RUN_BYTES + size)
        begin = 0
        while begin < len(rows):
            base = int(offset[begin])
            window = offset[begin : begin + _RUN_BYTES]
            reach = int(np.searchsorted(window, np.uint64(base + _RUN_BYTES), side="left"))
            jumps = np.flatnonzero(np.diff(window[:reach]) > np.uint64(size + _RUN_GAP))
            stop = begin + (int(jumps[0]) + 1 if len(jumps) else reach)
            length = int(offset[stop - 1]) - base + size
            holes = self.unreadable.read(reader, base, memoryview(scratch)[:length])
            data = np.frombuffer(scratch, dtype=np.uint8)
            where = (offset[begin:stop] - np.uint64(base)).astype(np.intp)
            windows = np.lib.stride_tricks.sliding_window_view(data, size)
            blocks[rows[begin:stop]] = windows[where]
            for low, high in holes:
                bad = order[begin:stop][(where < high) & (where + size > low)]
                good[bad] = False
                blocks[rows_given[bad]] = 0
            begin = stop
        return good

    def _across_extents(self, paddr: int, row: npt.NDArray[np.uint8]) -> bool:
        try:
            self.read_into(paddr, row.data)
        except PageAbsentError:
            row[:] = 0
            return False
        return True
