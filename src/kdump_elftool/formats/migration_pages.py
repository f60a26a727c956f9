"""The section ``ram`` of a QEMU migration stream: a list of memory blocks, then a record for each page.

A record is a big-endian u64, the page's offset in its block with flags in the low 12 bits; then the
block's name, unless it is the same as before; then 4096 bytes, or one zero byte for a page of zeros.
Source: migration/ram.c of QEMU (``ram_save_setup``, ``save_page_header``, ``ram_load_precopy``).

Where a record begins is only known from the one before, but nearly all are of the block before, and
come in rows of one shape: those are found by numpy, at a constant distance.  Where shapes alternate
the records' places are collected one by one, by their flags alone, and looked at together.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Mapping
from itertools import repeat

import numpy as np

from kdump_elftool.addr import MASK64, U64, Index
from kdump_elftool.errors import FormatError
from kdump_elftool.formats.migration_structs import PAGE, Cursor, StreamEnds
from kdump_elftool.memory.extents import ZERO_FILL, overlay

VERSION = 4
MOST_BLOCKS = 4096
MOST_MEMORY = 1 << 52
"""Bytes in a block; an address can't have more bits on any machine."""
MOST_PIECES = 1 << 28
"""24 bytes of memory each: 1 TB of pages."""
_RECORD = np.dtype(">u8")
_LOW = PAGE - 1
_FIRST_LOOK = 32
_MOST_MIXED = 1 << 16
"""Records whose places are collected before they are looked at."""
_BATCH = 1 << 13
"""Pages that wait until they are put in their columns together."""
_PATTERN_LOOK = 64
_LONGEST_PATTERN = 8
_WITHOUT_PATTERN = 16
"""Windows until a pattern is looked for again where there was none."""
_DATA_STEP = 8 + PAGE
_ZERO_STEP = 8 + 1
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
_CONTINUED_DATA, _CONTINUED_ZERO = _DATA | _CONTINUE, _ZERO | _CONTINUE
_ASTRAY = 1 << 62
_STEPS = [_ASTRAY] * 256
_STEPS[_CONTINUED_DATA], _STEPS[_CONTINUED_ZERO] = _DATA_STEP, _ZERO_STEP
_STEP_OF = np.array(_STEPS, dtype=np.intp)
"""From a record to the next, by the low 8 bits of its flags."""
_OTHER_WAYS = {
    Flag.XBZRLE: ("pages as differences (xbzrle)", "switch the capability xbzrle off"),
    Flag.COMPRESS_PAGE: ("compressed pages", "switch the capability compress off"),
    Flag.HOOK: ("a stream that goes with RDMA", "migrate to a file"),
    Flag.MULTIFD_FLUSH: ("a stream whose pages go other ways (multifd)", "switch the capability multifd off"),
}


class Ram:
    """Blocks and pages, section after section.

    ``blocks`` maps names to sizes.  Pages of those that ``choose`` picks of them are kept.
    """

    def __init__(self, choose: Callable[[Mapping[str, int]], frozenset[str]]) -> None:
        self.blocks: dict[str, int] = {}
        self._choose = choose
        self._wanted: frozenset[str] = frozenset()
        self._block: str | None = None
        self._full = _FULL
        self._irregular = 0
        self._waiting: list[tuple[U64, U64]] = []
        self._nr_waiting = 0
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
        try:
            self._read_records(cursor)
        finally:
            self._flush(cursor)

    def _read_records(self, cursor: Cursor) -> None:
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
            self._read_continued(cursor)

    def _read_continued(self, cursor: Cursor) -> None:
        """Records of the block before, as long as there are any and the stream holds them whole."""
        look = _FIRST_LOOK
        while True:
            try:
                window, here = cursor.view(_ZERO_STEP)
            except StreamEnds:
                return
            flags = int.from_bytes(window[here + 6 : here + 8], "big") & _LOW
            if flags not in (_CONTINUED_DATA, _CONTINUED_ZERO):
                return
            if not self._irregular and self._read_row(cursor, flags, look):
                look = min(look * 2, 1 << 20)
                continue
            look = _FIRST_LOOK
            if not self._read_mixed(cursor):
                return

    def _read_mixed(self, cursor: Cursor) -> bool:
        """Records of both shapes whose headers are in the cursor's window; False if there is none."""
        try:
            window, here = cursor.view(_ZERO_STEP)
        except StreamEnds:
            return False
        base = cursor.at - here
        places = self._mixed_places(window, here, cursor.limit - base)
        if not len(places):
            return False
        raw = np.frombuffer(window, dtype=np.uint8)
        heads = np.ndarray((len(window) - 7,), _RECORD, window, strides=(1,))[places].astype(np.uint64)
        odd = np.flatnonzero(heads & np.uint64(_LOW & ~0xFF))
        if len(odd):  # no such record, so that nothing is known of those behind it
            places, heads = places[: odd[0]], heads[: odd[0]]
            if not len(places):
                return False
        offset = heads & np.uint64(~_LOW & MASK64)
        self._check_offsets(cursor, offset, places, base)
        zero = heads & np.uint64(_ZERO) != 0
        filled = np.flatnonzero(zero & (raw[places + 8] != 0))
        for index in filled[:1].tolist():
            _refuse_filled(cursor, base + int(places[index]) + 8, int(raw[places[index] + 8]))
        if self._block in self._wanted:
            position = np.where(zero, np.uint64(ZERO_FILL), places.astype(np.uint64) + np.uint64(base + 8))
            self._keep(cursor, offset, position)
        cursor.at = base + int(places[-1]) + (_ZERO_STEP if zero[-1] else _DATA_STEP)
        return True

    def _mixed_places(self, window: bytearray, here: int, limit: int) -> Index:
        """Where records of both shapes begin, from ``here`` on; they end at ``limit`` at the latest.

        Where the first ones show a short pattern the rest is taken to go on like it and only compared.
        """
        if self._irregular:
            self._irregular -= 1
            return _follow(window, here, limit, _MOST_MIXED)[0]
        first, here = _follow(window, here, limit, _PATTERN_LOOK)
        if len(first) < _PATTERN_LOOK:
            return first
        pattern = _pattern(first, here)
        if len(pattern):
            return _predicted(window, first, here, pattern, limit)
        self._irregular = _WITHOUT_PATTERN
        return np.concatenate([first, _follow(window, here, limit, _MOST_MIXED)[0]])

    def _check_offsets(self, cursor: Cursor, offset: U64, places: Index, base: int) -> None:
        assert self._block is not None
        bad = np.flatnonzero(offset >= np.uint64(self.blocks[self._block]))
        if len(bad):
            at = base + int(places[bad[0]])
            raise cursor.corrupt(at, _beyond(self._block, int(offset[bad[0]])))

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
        self._wanted = self._choose(blocks)

    def _read_page(self, cursor: Cursor, at: int, head: int) -> None:
        self._flush(cursor)
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
        step = _DATA_STEP if flags & _DATA else _ZERO_STEP
        at = cursor.at
        if at + step > cursor.limit:
            return False
        window, here = cursor.view(_ZERO_STEP)
        count = min((len(window) - here - _ZERO_STEP) // step + 1, (cursor.limit - at) // step, look)
        heads = np.ndarray((count,), _RECORD, window, here, (step,)).astype(np.uint64)
        other = np.flatnonzero(heads & np.uint64(_LOW) != np.uint64(flags))
        found = int(other[0]) if len(other) else count
        offset = heads[:found] - np.uint64(flags)
        places = np.arange(found) * step
        self._check_offsets(cursor, offset, places, at)
        if not flags & _DATA:
            fill = np.ndarray((found,), np.uint8, window, here + 8, (step,))
            for index in np.flatnonzero(fill)[:1].tolist():
                _refuse_filled(cursor, at + index * step + 8, int(fill[index]))
        if self._block in self._wanted and found:
            if flags & _DATA:
                position = places.astype(np.uint64) + np.uint64(at + 8)
            else:
                position = np.full(found, ZERO_FILL, dtype=np.uint64)
            self._keep(cursor, offset, position)
        cursor.skip(found * step)
        return found == count

    def _keep(self, cursor: Cursor, offset: U64, position: U64) -> None:
        """Add pages of this block, of several windows at once."""
        self._waiting.append((offset, position))
        self._nr_waiting += len(offset)
        if self._nr_waiting >= _BATCH:
            self._flush(cursor)

    def _flush(self, cursor: Cursor) -> None:
        """Zeros that follow each other in memory are one piece."""
        if not self._waiting:
            return
        offset, position = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._nr_waiting = [], 0
        size = np.full(len(offset), PAGE, dtype=np.uint64)
        zero = position == np.uint64(ZERO_FILL)
        joined = zero[1:] & zero[:-1] & (offset[1:] == offset[:-1] + np.uint64(PAGE))
        if joined.any():
            first = np.flatnonzero(np.append(True, ~joined))
            offset, size, position = offset[first], np.add.reduceat(size, first), position[first]
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


def _follow(window: bytearray, here: int, limit: int, most: int) -> tuple[Index, int]:
    """Where records begin, ``most`` at most, by the low 8 of their flags alone; and the end of the last.

    The only loop over pages there is, so that there is nothing in it but the way from one to the next.
    What led it astray, or beyond the end, is cut off behind it.
    """
    steps, flags = _STEPS, bytearray()
    add = flags.append
    low = here + 7
    try:
        for _ in repeat(None, most):
            flag = window[low]
            add(flag)
            low += steps[flag]
    except IndexError:
        pass
    step = _STEP_OF[np.frombuffer(flags, dtype=np.uint8)]
    end: Index = np.cumsum(step) + here
    place = end - step
    whole = np.searchsorted(place, len(window) - _ZERO_STEP, side="right")
    count = min(int(whole), int(np.searchsorted(end, limit, side="right")))
    return place[:count], int(end[count - 1]) if count else here


def _pattern(places: Index, here: int) -> Index:
    """The sizes of the records that repeat up to ``here``; none when they don't, or take too long to."""
    at = np.append(places, here)
    steps: Index = at[1:] - at[:-1]
    for period in range(1, _LONGEST_PATTERN + 1):
        if np.array_equal(steps[period:], steps[:-period]):
            phase = len(steps) % period
            return np.roll(steps[:period], -phase)
    return steps[:0]


def _predicted(window: bytearray, places: Index, here: int, pattern: Index, limit: int) -> Index:
    """``places`` and those from ``here`` on whose flags are what ``pattern`` lets expect."""
    last = min(len(window), limit) - _ZERO_STEP
    last_data = min(last, limit - _DATA_STEP)
    rounds = max(last - here, 0) // int(pattern.sum()) + 1
    steps = np.tile(pattern, rounds)
    ahead = here + np.cumsum(steps) - steps
    is_data = steps == _DATA_STEP
    fits = ahead <= np.where(is_data, last_data, last)
    ahead, is_data = ahead[fits], is_data[fits]
    flags = np.frombuffer(window, dtype=np.uint8)[ahead + 7]
    wrong = np.flatnonzero(flags != np.where(is_data, _CONTINUED_DATA, _CONTINUED_ZERO))
    return np.concatenate([places, ahead[: wrong[0]] if len(wrong) else ahead])


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
