"""The files of a kdump-compressed dump: which frames each holds, and whether they make one dump."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import Ranges, align_up, merge_ranges, u64
from kdump_elftool.errors import CorruptDumpError, FormatError, UsageError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import diskdump_structs as d
from kdump_elftool.formats.diskdump_bitmaps import read_runs
from kdump_elftool.formats.diskdump_pages import GOOD, UNKNOWN_FLAGS, PartPages
from kdump_elftool.memory.extents import intersect

log = logging.getLogger(__name__)

_PFN_LIMIT = 1 << 44
_SAMPLE = 4096


@dataclass(frozen=True)
class Part:
    """One file: its headers, where memory was (``ram``) and what it holds (``dumped``), in frames."""

    file: ByteSource
    header: d.Header
    sub: d.SubHeader
    ram: Ranges
    dumped: Ranges
    pages: PartPages
    warnings: tuple[str, ...]


def probe(head: bytes) -> bool:
    """True for anything that begins like a dump of this kind."""
    return head.startswith((d.KDUMP, d.DISKDUMP))


def within(ranges: Ranges, window: Ranges) -> Ranges:
    """The parts of ``ranges`` that lie in ``window``."""
    pieces = intersect(window, ranges.start, ranges.end - ranges.start)
    return merge_ranges(pieces.start, pieces.start + pieces.size)


def read_part(file: ByteSource) -> Part:
    """One file's headers, bitmaps and the place of its descriptors.  Raises FormatError."""
    head = file.read_at(0, 8)
    if not probe(head):
        raise FormatError(
            file.path,
            f"no kdump-compressed dump: it begins with {head.hex(' ')}",
            hint="without -I the format is found; only the parts of one split dump go together",
        )
    header = d.read_header(file)
    sub = d.read_sub_header(file, header)
    log.info(
        "kdump-compressed: version %d, %s, %d-bit, %s, status %#x, %d frames of %d bytes",
        header.version, header.order, sub.bits, header.machine or "machine not named",
        header.status, sub.max_mapnr, header.block_size,
    )  # fmt: skip
    warnings = []
    if header.version > d.LAST_VERSION:
        warnings.append(f"header version {header.version} is not known: read as version {d.LAST_VERSION}")
    ram, dumped, descriptors = _bitmaps(file, header, sub, warnings)
    if sub.split:
        window = Ranges(u64([sub.start_pfn]), u64([sub.end_pfn]))
        dumped = within(dumped, window) if sub.end_pfn > sub.start_pfn else Ranges(u64([]), u64([]))
    pages = PartPages(file, header.descriptor, descriptors, dumped.total, header.block_size)
    _check_count(pages)
    return Part(file, header, sub, ram, dumped, pages, tuple(warnings))


def _bitmaps(
    file: ByteSource, header: d.Header, sub: d.SubHeader, warnings: list[str]
) -> tuple[Ranges, Ranges, int]:
    """Frames that were RAM, frames that are dumped, and where the descriptors begin.

    A dump with all of its memory may have one bitmap only (crash: dump_is_partial).
    """
    block, total = header.block_size, header.bitmap_blocks * header.block_size
    wanted = align_up(sub.max_mapnr, 8 * block) // (8 * block)
    # a count of frames that no bitmap could hold says nothing
    both = header.bitmap_blocks >= 2 * wanted or wanted > header.bitmap_blocks
    half = total // 2 if both else total
    nr_bits = min(sub.max_mapnr, 8 * half, _PFN_LIMIT)
    if nr_bits < sub.max_mapnr:
        warnings.append(f"the bitmaps hold {nr_bits} frames, the header says {sub.max_mapnr}")
    if header.bitmap_offset >= file.size:
        raise CorruptDumpError(
            file.path, f"the bitmaps would begin at {header.bitmap_offset:#x}, behind the end of the file",
            file_offset=file.size, hint="the file was cut off: copy it again",
        )  # fmt: skip
    first = read_runs(file, header.bitmap_offset, nr_bits)
    descriptors = header.bitmap_offset + total
    if both:
        return first, read_runs(file, header.bitmap_offset + half, nr_bits), descriptors
    pages = PartPages(file, header.descriptor, descriptors, first.total, block)
    second = read_runs(file, descriptors, nr_bits)
    twice = PartPages(file, header.descriptor, descriptors + total, second.total, block)
    if not _looks_right(pages) and _looks_right(twice):
        # some writers count the blocks of one bitmap and write two
        return first, second, descriptors + total
    return first, first, descriptors


def _looks_right(pages: PartPages) -> bool:
    """Whether there are descriptors where they should be."""
    found = pages.read(0, min(pages.count, _SAMPLE))
    return bool(len(found)) and bool(np.mean(pages.states(found) == GOOD) > 0.5)


def _check_count(pages: PartPages) -> None:
    """Refuse a second bitmap that does not fit its descriptors: pages would be taken for others.

    Page data follows the last descriptor, in what all known writers make.  One wrong descriptor must not
    be mistaken for that.  Raises CorruptDumpError.
    """
    found = pages.read(0, min(pages.count, _SAMPLE))
    offset = found["offset"][pages.states(found) != UNKNOWN_FLAGS]
    offset = offset[offset > np.uint64(pages.offset)]
    if not len(offset):
        return
    data = int(offset.min())
    real, odd = divmod(data - pages.offset, d.DESCRIPTOR_SIZE)
    difference = min(abs(real - pages.count), _SAMPLE)
    if odd or not difference or real > pages.count + pages.page_size // d.DESCRIPTOR_SIZE:
        return
    between = replace(pages, count=max(real, pages.count)).read(min(real, pages.count), difference)
    more = bool(np.all(pages.states(between) == GOOD))
    # more bits than descriptors: what stands in their place is page data, and does not look like any
    if more == (real > pages.count):
        raise CorruptDumpError(
            pages.file.path,
            f"the bitmap names {pages.count} pages, but there are {real} descriptors: which page is which "
            "cannot be told",
            file_offset=pages.offset,
        )


def as_set(parts: list[Part]) -> tuple[tuple[Part, ...], list[str]]:
    """The parts in the order of their frames, each frame in one of them, and what to say about it."""
    warnings = [warning for part in parts for warning in part.warnings]
    first = parts[0]
    for part in parts[1:]:
        if not part.sub.split or not first.sub.split:
            whole = part if not part.sub.split else first
            raise UsageError(
                f"{len(parts)} files are given, and {whole.file.path} is a whole dump",
                hint="one dump is read at a time; only the parts of a split dump go together "
                "(a vmlinux is given with -m)",
            )
        if part.header.common != first.header.common or part.sub.max_mapnr != first.sub.max_mapnr:
            raise UsageError(
                f"{part.file.path} and {first.file.path} are parts of different dumps",
                hint="name the parts of one dump",
            )
    kept: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.sub.start_pfn, part.sub.end_pfn)):
        before = kept[-1] if kept else None
        if before and part.sub.start_pfn < before.sub.end_pfn:
            if part.sub.end_pfn > before.sub.end_pfn:
                raise CorruptDumpError(
                    part.file.path, f"this part and {before.file.path} overlap, which no set does"
                )
            warnings.append(f"{part.file.path} holds what {before.file.path} has: not used")
            continue
        kept.append(part)
    return tuple(kept), warnings
