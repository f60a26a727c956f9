"""The shape of a kdump-compressed dump that is going to be written: pure, no file is touched.

In file order: header; sub-header and notes; bitmap of RAM; bitmap of the frames that are dumped; a
descriptor for each of those; one page of zeros, which all zero pages share; the other pages.  All
of it but the pages' sizes is known before the first page is read.  Source: makedumpfile.c,
``write_kdump_header`` and ``write_kdump_pages_cyclic``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdump_elftool.addr import U64, Ranges, align_up
from kdump_elftool.elf.notes import chunk_size
from kdump_elftool.errors import OutputError
from kdump_elftool.files import FileSlice
from kdump_elftool.formats import diskdump_structs as d

FLAGS = {"none": 0, "zlib": d.ZLIB, "lzo": d.LZO, "snappy": d.SNAPPY, "zstd": d.ZSTD}
"""A codec's bit in the header's status and in the descriptors of its pages."""
_MOST_BITMAP = 8 << 30
"""Two of 4 GB reach up to 2^47; crash and makedumpfile read them whole."""
_MOST_WORD = (1 << 32) - 1
_STEP = 1 << 20


@dataclass(frozen=True)
class KdumpLayout:
    """What is written, and where.  ``ram`` and ``dumped`` are page frames.

    ``notes`` are encoded chunks; ``vmcoreinfo`` is where its text lies in them and how long it is.
    ``flag`` is the codec's bit (0: no compression).  ``align`` is that of 64-bit members on 32-bit machines.
    """

    order: str
    bits: int
    align: int
    page_size: int
    utsname: tuple[bytes, ...]
    seconds: int
    nr_cpus: int
    phys_base: int
    dump_level: int
    flag: int
    notes: tuple[bytes | FileSlice, ...]
    vmcoreinfo: tuple[int, int] | None
    ram: Ranges
    dumped: Ranges

    @property
    def notes_size(self) -> int:
        """Bytes of all notes."""
        return sum(map(chunk_size, self.notes))

    @property
    def notes_offset(self) -> int:
        """Right behind the sub-header."""
        return self.page_size + len(d.encode_sub_header(self.order, self.bits, self.align, {}))

    @property
    def sub_blocks(self) -> int:
        """Blocks of sub-header and notes."""
        return align_up(self.notes_offset + self.notes_size, self.page_size) // self.page_size - 1

    @cached_property
    def max_mapnr(self) -> int:
        """One past the highest frame."""
        return max([int(part.end[-1]) for part in (self.ram, self.dumped) if len(part)], default=1)

    @property
    def bitmap_size(self) -> int:
        """Bytes of one bitmap: whole blocks."""
        return align_up(-(-self.max_mapnr // 8), self.page_size)

    @property
    def bitmap_offset(self) -> int:
        """Where the bitmap of RAM begins; that of the dumped frames follows."""
        return (1 + self.sub_blocks) * self.page_size

    @property
    def descriptors_offset(self) -> int:
        """Where the descriptors begin."""
        return self.bitmap_offset + 2 * self.bitmap_size

    @cached_property
    def descriptor(self) -> np.dtype[np.void]:
        """``struct page_desc``."""
        return np.dtype([(name, self.order + kind) for name, kind in d.DESCRIPTOR])

    @property
    def zero_offset(self) -> int:
        """Where the page of zeros is, the first of all."""
        return self.descriptors_offset + self.dumped.total * d.DESCRIPTOR_SIZE


def check(layout: KdumpLayout) -> None:
    """Raises OutputError where the format has no room for such memory."""
    if 2 * layout.bitmap_size > _MOST_BITMAP:
        top = layout.max_mapnr * layout.page_size
        raise OutputError(
            f"memory up to {top:#x} does not fit the bitmaps of a kdump-compressed dump",
            hint="the default --format elf has no such limit",
        )


def headers(layout: KdumpLayout) -> Iterator[tuple[int, bytes]]:
    """Header and sub-header with their file offsets."""
    words = {
        "status": layout.flag,
        "block_size": layout.page_size,
        "sub_hdr_size": layout.sub_blocks,
        "bitmap_blocks": 2 * layout.bitmap_size // layout.page_size,
        "max_mapnr": min(layout.max_mapnr, _MOST_WORD),
        # crash warns of 0
        "nr_cpus": max(layout.nr_cpus, 1),
    }
    yield 0, d.encode_header(layout.order, layout.bits, layout.utsname, layout.seconds, words)
    fields = {
        "phys_base": layout.phys_base,
        "dump_level": layout.dump_level,
        "max_mapnr_64": layout.max_mapnr,
    }
    if layout.notes_size:
        fields |= {"offset_note": layout.notes_offset, "size_note": layout.notes_size}
    if layout.vmcoreinfo is not None:
        at, size = layout.vmcoreinfo
        fields |= {"offset_vmcoreinfo": layout.notes_offset + at, "size_vmcoreinfo": size}
    yield layout.page_size, d.encode_sub_header(layout.order, layout.bits, layout.align, fields)


def bitmap(frames: Ranges, step: int = _STEP) -> Iterator[tuple[int, bytes]]:
    """Pieces of the bitmap that has these bits set, with their offsets; what is left out is zeros."""
    top = int(frames.end[-1]) if len(frames) else 0
    for low in range(0, top, 8 * step):
        begin = int(np.searchsorted(frames.end, np.uint64(low), side="right"))
        stop = int(np.searchsorted(frames.start, np.uint64(low + 8 * step), side="left"))
        if stop > begin:
            yield low // 8, _window(frames.start[begin:stop], frames.end[begin:stop], low, step)


def _window(start: U64, end: U64, low: int, step: int) -> bytes:
    """The bits of runs, cut to a window that begins at bit ``low``; without zeros at its end."""
    base, top = np.uint64(low), np.uint64(low + 8 * step)
    begin = (np.maximum(start, base) - base).astype(np.intp)
    stop = (np.minimum(end, top) - base).astype(np.intp)
    change = np.zeros(8 * step + 1, dtype=np.int8)
    change[begin] = 1
    change[stop] = -1
    set_bits = np.cumsum(change[: int(stop[-1])], dtype=np.int8)
    return np.packbits(set_bits.view(np.uint8), bitorder="little").tobytes()


def frame_batches(frames: Ranges, size: int) -> Iterator[U64]:
    """All frames in ascending order, ``size`` at a time."""
    count = frames.end - frames.start
    before = np.cumsum(count, dtype=np.uint64) - count
    for first in range(0, frames.total, size):
        number = np.arange(first, min(first + size, frames.total), dtype=np.uint64)
        run = np.searchsorted(before, number, side="right") - 1
        yield frames.start[run] + (number - before[run])
