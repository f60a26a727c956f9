"""The section ``ram`` of a QEMU migration stream: a list of memory blocks, then a record for each page.

A record is a big-endian u64, the page's offset in its block with flags in the low 12 bits; then the
block's name, unless it is the same as before; then 4096 bytes, or one zero byte for a page of zeros.
Source: migration/ram.c of QEMU (``ram_save_setup``, ``save_page_header``, ``ram_load_precopy``).

Where a record begins is only known from the one before, but nearly all are of the block before, and
come in rows of one shape: those are found by numpy, at a constant distance.
"""

from __future__ import annotations

import enum
from array import array

import numpy as np

from kdump_elftool.addr import U64
from kdump_elftool.errors import FormatError
from kdump_elftool.formats.migration_structs import PAGE, Cursor
from kdump_elftool.memory.extents import ZERO_FILL, overlay

VERSION = 4
MOST_BLOCKS = 4096
MOST_MEMORY = 1 << 52
"""Bytes in a block; an address can't have more bits on any machine."""
MOST_PIECES = 1 << 28
"""24 bytes of memory each: 1 TB of pages."""
_RECORD = np.dtype(">u8")
_LOW = PAGE - 1
_SHORTEST_ROW = 4
_FIRST_LOOK = 32
_FULL = 1 << 20
"""So many pieces are looked through for those that were sent again."""


class Flag(enum.IntEnum):
    """``RAM_SAVE_FLAG_*``."""

    FULL = 0x01
    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20
    XBZRLE = 0x40
    HOOK = 0x80
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


_CONTINUE, _DATA, _ZERO, _EOS = (int(f) for f in (Flag.CONTINUE, Flag.PAGE, Flag.ZERO, Flag.EOS))
"""As plain integers: they are looked at for each page."""
_OTHER_WAYS = {
    Flag.XBZRLE: ("pages as differences (xbzrle)", "switch the capability xbzrle off"),
    Flag.COMPRESS_PAGE: ("compressed pages", "switch the capability compress off"),
    Flag.HOOK: ("a stream that goes with RDMA", "migrate to a file"),
    Flag.MULTIFD_FLUSH: ("a stream whose pages go other ways (multifd)", "switch the capability multifd off"),
}


class Ram:
    """Blocks and pages, section after section.

    ``blocks`` maps names to sizes.  Pages of the blocks in ``wanted`` are kept.
    """

    def __init__(self, wanted: frozenset[str]) -> None:
        self.blocks: dict[str, int] = {}
        self._wanted = wanted
        self._block: str | None = None
        self._full = _FULL
        self._kept: dict[str, tuple[array[int], array[int], array[int]]] = {}

    def columns(self, block: str) -> tuple[U64, U64, U64]:
        """Start in the block, size and file offset (or ZERO_FILL) of what was sent, in file order."""
        columns = self._kept.get(block, (array("Q"), array("Q"), array("Q")))
        start, size, position = (np.frombuffer(column, dtype=np.uint64) for column in columns)
        return start, size, position

    def read_section(self, cursor: Cursor) -> None:
        """All records up to the end of the section.

        Raises StreamEnds, CorruptDumpError, UnsupportedError; what came before is kept.
        """
        before, streak, look = -1, 0, _FIRST_LOOK
        while True:
            at = cursor.at
            head = cursor.number(8)
            flags = head & _LOW
            if flags == _EOS:
                return
            kind = flags & ~_CONTINUE
            if kind not in (_DATA, _ZERO):
                if kind != Flag.MEM_SIZE:
                    raise _refusal(cursor, at, flags)
                self._read_blocks(cursor, head & ~_LOW)
                continue
            self._read_page(cursor, at, head)
            streak = streak + 1 if flags == before else 0
            before = flags
            if streak >= _SHORTEST_ROW and flags & _CONTINUE:
                whole = self._read_row(cursor, flags, look)
                look = min(look * 2, 1 << 20) if whole else _FIRST_LOOK
                streak = streak if whole else 0

    def _read_blocks(self, cursor: Cursor, total: int) -> None:
        if self.blocks:
            raise cursor.corrupt(cursor.at - 8, "a second list of memory blocks")
        blocks: dict[str, int] = {}
        left = total
        while left:
            at = cursor.at
            name, size = cursor.name(), cursor.number(8)
            if not name or name in blocks or size & _LOW or not 0 < size <= min(left, MOST_MEMORY):
                raise cursor.corrupt(at, f"an impossible memory block {name!r} of {size:#x} bytes")
            if len(blocks) == MOST_BLOCKS:
                raise cursor.corrupt(at, f"more than {MOST_BLOCKS} memory blocks")
            blocks[name] = size
            left -= size
            _skip_words(cursor)
        self.blocks = blocks

    def _read_page(self, cursor: Cursor, at: int, head: int) -> None:
        if not head & _CONTINUE:
            name = cursor.name()
            if name not in self.blocks:
                raise cursor.corrupt(at, f"a page of a memory block {name!r} that is not listed")
            self._block = name
        if self._block is None:
            raise cursor.corrupt(at, "a page of the same memory block as before, and there is none before")
        offset = head & ~_LOW
        if offset >= self.blocks[self._block]:
            raise cursor.corrupt(at, _beyond(self._block, offset))
        position = cursor.at
        if head & _DATA:
            cursor.skip(PAGE)
        else:
            _refuse_filled(cursor, position, cursor.take(1)[0])
            position = ZERO_FILL
        if self._block in self._wanted:
            self._room(cursor, at, 1)
            start, size, where = self._columns()
            start.append(offset)
            size.append(PAGE)
            where.append(position)

    def _read_row(self, cursor: Cursor, flags: int, look: int) -> bool:
        """Records of one shape that follow each other; False when they ended before ``look`` of them.

        Only those whose headers are in the cursor's window are looked at, ``look`` at most.
        """
        assert self._block is not None
        step = 8 + (PAGE if flags & _DATA else 1)
        at = cursor.at
        if at + step > cursor.limit:
            return False
        window, here = cursor.view(step)
        count = min((len(window) - here) // step, (cursor.limit - at) // step, look)
        heads = np.ndarray((count,), _RECORD, window, here, (step,)).astype(np.uint64)
        other = np.flatnonzero(heads & np.uint64(_LOW) != np.uint64(flags))
        found = int(other[0]) if len(other) else count
        offset = heads[:found] - np.uint64(flags)
        bad = np.flatnonzero(offset >= np.uint64(self.blocks[self._block]))
        if len(bad):
            raise cursor.corrupt(at + int(bad[0]) * step, _beyond(self._block, int(offset[bad[0]])))
        if not flags & _DATA:
            fill = np.ndarray((found,), np.uint8, window, here + 8, (step,))
            for index in np.flatnonzero(fill)[:1].tolist():
                _refuse_filled(cursor, at + index * step + 8, int(fill[index]))
        if self._block in self._wanted and found:
            self._keep_row(cursor, flags, offset, step)
        cursor.skip(found * step)
        return found == count

    def _keep_row(self, cursor: Cursor, flags: int, offset: U64, step: int) -> None:
        size = np.full(len(offset), PAGE, dtype=np.uint64)
        if flags & _DATA:
            position = np.arange(len(offset), dtype=np.uint64) * np.uint64(step) + np.uint64(cursor.at + 8)
        else:
            first = np.flatnonzero(np.append(True, offset[1:] != offset[:-1] + np.uint64(PAGE)))
            offset, size = offset[first], np.add.reduceat(size, first)
            position = np.full(len(offset), ZERO_FILL, dtype=np.uint64)
        self._room(cursor, cursor.at, len(offset))
        for column, values in zip(self._columns(), (offset, size, position), strict=True):
            column.frombytes(values.tobytes())

    def _columns(self) -> tuple[array[int], array[int], array[int]]:
        assert self._block is not None
        return self._kept.setdefault(self._block, (array("Q"), array("Q"), array("Q")))

    def _room(self, cursor: Cursor, at: int, count: int) -> None:
        """Make room for so many pieces: what was sent again since is thrown out from time to time."""
        if len(self._columns()[0]) + count <= self._full:
            return
        assert self._block is not None
        left = overlay(*self.columns(self._block))
        if len(left) + count > MOST_PIECES:
            raise cursor.unsupported(
                at, f"more than {MOST_PIECES} pages", "use QEMU's dump-guest-memory instead"
            )
        columns = (array("Q", column.tobytes()) for column in (left.start, left.size, left.position))
        self._kept[self._block] = (next(columns), next(columns), next(columns))
        self._full = min(max(_FULL, 2 * len(left) + count), MOST_PIECES)


def _skip_words(cursor: Cursor) -> None:
    """What some capabilities put behind a block's size: its page size, its address.

    Both are words whose low 12 bits are 0; no record has those, and no name is empty.
    """
    for _ in range(2):
        window, here = cursor.view(8)
        if window[here] or int.from_bytes(window[here : here + 8], "big") & _LOW:
            return
        cursor.skip(8)


def _beyond(block: str, offset: int) -> str:
    return f"a page at {offset:#x}, beyond the end of the memory block {block!r}"


def _refuse_filled(cursor: Cursor, at: int, fill: int) -> None:
    if fill:
        raise cursor.corrupt(at, f"a page filled with {fill:#x}, where only zeros can be")


def _refusal(cursor: Cursor, at: int, flags: int) -> FormatError:
    for flag, (what, hint) in _OTHER_WAYS.items():
        if flags & ~_CONTINUE == flag:
            return cursor.unsupported(at, f"{what}: not supported", f"save the guest again: {hint}")
    return cursor.corrupt(at, f"unknown flags {flags:#x} where a page's record should be")
