"""Memory in a QEMU migration file with the capability mapped-ram: each page at its own place.

Behind a block's name and size is a big-endian header: u32 version, u64 page size, u64 offset of a bitmap,
u64 offset of the pages.  The bitmap is right behind it: a bit for each page, set if the page is in the
file, in the order of a little-endian host; pages of zeros are not.  The pages begin at a multiple of 1 MB, as
if all were there, and the next block is behind them.  A block that QEMU was told to leave out has no offsets.
Bitmaps are written when all pages are: an empty one may be that of a file that QEMU did not finish.
Offsets count from where the file began that QEMU wrote into, which may be before the stream (``offset=`` of
a migration to a file, as libvirt has it behind its header): a bitmap's own place tells how far.
Source: docs/devel/migration/mapped-ram.rst and migration/ram.c (``mapped_ram_setup_ramblock``,
``ram_save_file_bmap``) of QEMU.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, merge_ranges, subtract_ranges, u64
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.migration_pages import MOST_BLOCKS, MOST_MEMORY, MOST_PIECES, Flag
from kdump_elftool.formats.migration_structs import PAGE, Cursor
from kdump_elftool.memory.extents import ZERO_FILL, intersect

CAPABILITY, WITH_ADDRESSES = "mapped-ram", "x-ignore-shared"
_HEADER = struct.Struct(">IQQQ")
_VERSION = 1
_MOST_BEFORE = 1 << 32
"""Bytes before the stream; libvirt's description of a guest has less."""
_CHUNK = 1 << 20
"""Bytes of a bitmap that are looked at together: 32 GB of memory."""
_EMPTY = u64([])


@dataclass(frozen=True)
class Block:
    """A block of memory in the file: ``bitmap`` and ``pages`` are file offsets; 0: the block was left out."""

    size: int
    bitmap: int
    pages: int


class MappedRam:
    """Blocks and pages, as :class:`migration_pages.Ram` has them.

    ``with_addresses``: an address is behind each block's size (the capability x-ignore-shared).  After
    :meth:`finish` ``complete`` says whether QEMU had written all pages.
    """

    def __init__(
        self, choose: Callable[[Mapping[str, int]], frozenset[str]], *, with_addresses: bool
    ) -> None:
        self.blocks: dict[str, int] = {}
        self._choose = choose
        self._with_addresses = with_addresses
        self._kept: dict[str, Block] = {}
        self._found: dict[str, tuple[U64, U64, U64]] = {}
        self._before: int | None = None
        self.complete = False

    def columns(self, block: str) -> tuple[U64, U64, U64]:
        """Start in the block, size and file offset (or ZERO_FILL) of what is there, ascending."""
        return self._found.get(block, (_EMPTY, _EMPTY, _EMPTY))

    def read_section(self, cursor: Cursor) -> None:
        """The list of blocks, or nothing, up to the end of the section.

        Raises StreamEnds, CorruptDumpError, UnsupportedError; the blocks before count.
        """
        while True:
            at = cursor.at
            head = cursor.number(8)
            flags = head % PAGE
            if flags == Flag.EOS:
                return
            if flags == Flag.MEM_SIZE and not self.blocks:
                self._read_blocks(cursor, head - flags)
            elif flags != Flag.MULTIFD_FLUSH:
                raise cursor.corrupt(at, f"unknown flags {flags:#x} where no pages can be (mapped-ram)")

    def finish(self, cursor: Cursor, *, ended: bool) -> None:
        """Read the bitmaps of the blocks that are wanted; ``ended``: the stream has all of memory."""
        for name in self._choose(self.blocks):
            block = self._kept[name]
            if block.pages:
                self._found[name] = _pieces(cursor, block, finished=ended)
        self.complete = ended or (bool(self._found) and all(len(found[0]) for found in self._found.values()))

    def _read_blocks(self, cursor: Cursor, total: int) -> None:
        left = total
        while left:
            at = cursor.at
            name, size = cursor.name(), cursor.number(8)
            if not name or name in self.blocks or size % PAGE or not 0 < size <= min(left, MOST_MEMORY):
                raise cursor.corrupt(at, f"an impossible memory block {name!r} of {size:#x} bytes")
            if len(self.blocks) == MOST_BLOCKS:
                raise cursor.corrupt(at, f"more than {MOST_BLOCKS} memory blocks")
            if self._with_addresses:
                cursor.skip(8)
            block = self._read_header(cursor, size)
            self.blocks[name], self._kept[name] = size, block
            left -= size
            if block.pages:
                cursor.at = min(block.pages + size, cursor.limit)

    def _read_header(self, cursor: Cursor, size: int) -> Block:
        at = cursor.at
        version, page_size, bitmap, pages = _HEADER.unpack(cursor.take(_HEADER.size))
        if version != _VERSION or page_size != PAGE:
            raise cursor.unsupported(
                at,
                f"mapped-ram of version {version} with pages of {page_size} bytes: not supported",
                f"supported: version {_VERSION}, pages of {PAGE} bytes",
            )
        if not bitmap and not pages:
            return Block(size, 0, 0)
        if self._before is None and 0 <= bitmap - cursor.at <= _MOST_BEFORE:
            self._before = bitmap - cursor.at
        if bitmap - cursor.at != self._before or pages < bitmap + _bitmap_size(size):
            raise cursor.corrupt(at, f"a block's bitmap at {bitmap:#x}, its pages at {pages:#x}")
        return Block(size, cursor.at, pages - self._before)


def _bits(file: ByteSource, block: Block) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The bitmap in parts: number of the first page, a byte of 0 or 1 for each; up to what is missing."""
    size, count = _bitmap_size(block.size), block.size // PAGE
    for at in range(0, size, _CHUNK):
        room = min(_CHUNK, size - at)
        data = file.read_at(block.bitmap + at, room)
        yield 8 * at, np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count - 8 * at]
        if len(data) < room:
            return


def _bitmap_size(size: int) -> int:
    """Bytes that hold a bit for each page."""
    return -(-size // (8 * PAGE))


def _pieces(cursor: Cursor, block: Block, *, finished: bool) -> tuple[U64, U64, U64]:
    """The columns of one block; what the file has lost of the pages or of the bitmap is left out.

    Where a file is not ``finished``, an empty bitmap means nothing.
    """
    first: list[U64] = []
    last: list[U64] = []
    known = pieces = 0
    for at, bits in _bits(cursor.file, block):
        edges = np.flatnonzero(np.diff(bits.view(np.int8), prepend=0, append=0))
        first.append(edges[::2].astype(np.uint64) + np.uint64(at))
        last.append(edges[1::2].astype(np.uint64) + np.uint64(at))
        known = at + len(bits)
        pieces += len(edges)
        if pieces > MOST_PIECES:
            advice = "use QEMU's dump-guest-memory instead"
            raise cursor.unsupported(block.bitmap, f"more than {MOST_PIECES} pieces of memory", advice)
    held = merge_ranges(*(np.concatenate([_EMPTY, *parts]) * np.uint64(PAGE) for parts in (first, last)))
    if not len(held) and not finished:
        return _EMPTY, _EMPTY, _EMPTY
    whole = merge_ranges(u64([0]), u64([known * PAGE]))
    zeros = subtract_ranges(whole, held)
    there = subtract_ranges(merge_ranges(u64([0]), u64([cursor.file.size])), cursor.file.missing)
    begin = np.uint64(block.pages)
    kept = intersect(there, held.start + begin, held.end - held.start)
    start = np.concatenate([kept.start - begin, zeros.start])
    size = np.concatenate([kept.size, zeros.end - zeros.start])
    position = np.concatenate([kept.start, np.full(len(zeros), ZERO_FILL, dtype=np.uint64)])
    order = np.argsort(start)
    return start[order], size[order], position[order]
