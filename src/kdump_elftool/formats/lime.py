"""LiME memory images: ranges of physical memory one after the other, each behind a header.

LiME is a kernel module that saves the memory of a running Linux; AVML writes the same layout without
compression.  Source: struct lime_mem_range_header in LiME's src/lime.h, write_lime_header() in its
src/main.c, and src/image.rs of AVML.  There are no notes, and nothing tells the architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import U64, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.errors import CorruptDumpError, ReadFailedError, UnsupportedError
from kdump_elftool.files import ByteSource, readable_end
from kdump_elftool.formats.base import ClaimedMappings, Dump, Format, Lost, OpenOptions, there
from kdump_elftool.memory.extents import ZERO_FILL, normalise
from kdump_elftool.memory.physical import PhysicalMemory

MAGIC = b"EMiL"  # 0x4C694D45, little-endian whatever the machine is
VERSION = 1
HEADER = np.dtype(
    [("magic", "S4"), ("version", "<u4"), ("start", "<u8"), ("last", "<u8"), ("reserved", "<u8")]
)
MISSING = "this part is missing"
PADDR_LIMIT = 1 << 56
"""No machine has memory above this; a header that says so is wrong."""
MOST_RANGES = 1 << 20
"""AVML cuts at 16 MB: this is 16 TB of them."""


ReadAt = Callable[[int, int], bytes]
"""Up to so many bytes of the file at an offset."""


@dataclass(frozen=True)
class Range:
    """A header that can be true: ``[start, start + size)`` lies behind it, at ``at``."""

    start: int
    size: int
    at: int


@dataclass(frozen=True)
class BadHeader:
    """Where headers cease to make sense, and why."""

    at: int
    why: str


def probe(head: bytes) -> bool:
    """Whether a file begins like a LiME image."""
    return head.startswith(MAGIC)


def read_header(read: ReadAt, at: int, magic: bytes, version: int) -> Range | BadHeader | None:
    """The header at ``at``; None at the end of the file."""
    raw = read(at, HEADER.itemsize)
    if not raw:
        return None
    if len(raw) < HEADER.itemsize:
        return BadHeader(at, "the file ends within a header")
    header = np.frombuffer(raw, dtype=HEADER)[0]
    start, last = int(header["start"]), int(header["last"])
    if header["magic"] != magic:
        return BadHeader(at, f"a header is expected, {raw[:8].hex(' ')} is there")
    if header["version"] != version:
        return BadHeader(at, f"a header of version {header['version']}")
    if not start <= last < PADDR_LIMIT:
        return BadHeader(at, f"an impossible range {start:#x}-{last:#x}")
    return Range(start, last + 1 - start, at + HEADER.itemsize)


def open_lime(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open a LiME image.  Raises UnsupportedError (another version), CorruptDumpError."""
    (file,) = files
    refuse_other_version(file, VERSION, "LiME")
    ranges, bad = _read_headers(file)
    start, size, at = columns(ranges)
    held = np.minimum(size, np.where(at < file.size, np.uint64(file.size) - at, 0).astype(np.uint64))
    here, position, length = there(file, start, at, held)
    extents = normalise(here, length, position)
    memory = PhysicalMemory(file, extents, merge_ranges(start, start + size))
    in_file = merge_ranges(start, start + held)
    missing = subtract_ranges(in_file, memory.present())
    cut = subtract_ranges(memory.absent(), in_file)
    lost = (
        Lost("paddr", f"truncated at file offset {file.size:#x}", cut, file.size),
        Lost("paddr", f"missing from {file.path}", missing),
    )
    return image_dump("lime", file, options, memory, lost, ending(file, ranges, bad))


def _read_headers(file: ByteSource) -> tuple[list[Range], BadHeader | None]:
    ranges: list[Range] = []
    at = 0
    while len(ranges) < MOST_RANGES:
        try:
            found = read_header(file.read_at, at, MAGIC, VERSION)
        except ReadFailedError as error:
            if not ranges:
                raise
            found = BadHeader(at, error.why)
        if not isinstance(found, Range):
            return ranges, BadHeader(at, MISSING) if header_is_lost(file, at) else found
        ranges.append(found)
        at = found.at + found.size
    return ranges, BadHeader(at, f"more than {MOST_RANGES} ranges")


def header_is_lost(file: ByteSource, at: int) -> bool:
    """Whether a layer around the image has lost some of the header at ``at``."""
    return readable_end(file, at) < min(at + HEADER.itemsize, file.size)


def columns(ranges: list[Range]) -> tuple[U64, U64, U64]:
    """Start, size and file offset of each range."""
    return u64([r.start for r in ranges]), u64([r.size for r in ranges]), u64([r.at for r in ranges])


def ending(file: ByteSource, ranges: list[Range], bad: BadHeader | None) -> tuple[str, ...]:
    """The warning about a header that stopped the reading.  Raises CorruptDumpError if it is the first."""
    if bad is None:
        return ()
    if not ranges:
        raise CorruptDumpError(file.path, bad.why, file_offset=bad.at)
    return (f"from file offset {bad.at:#x} on nothing can be read: {bad.why}",)


def refuse_other_version(file: ByteSource, version: int, name: str) -> None:
    """Raises UnsupportedError when the first header is of another version."""
    raw = file.read_at(0, HEADER.itemsize)
    if len(raw) < HEADER.itemsize:
        raise CorruptDumpError(file.path, f"this {name} image ends within its first header")
    found = int(np.frombuffer(raw, dtype=HEADER)[0]["version"])
    if found != version:
        raise UnsupportedError(
            file.path,
            f"this is {name}'s format {found}, which is not supported",
            hint=f"supported: {version}",
        )


def image_dump(
    name: str,
    file: ByteSource,
    options: OpenOptions,
    memory: PhysicalMemory,
    lost: tuple[Lost, ...],
    warnings: tuple[str, ...],
) -> Dump:
    """A dump that is memory alone.

    What the ranges leave out in between is no RAM, or, in AVML's images, RAM full of zeros.
    """
    nothing = u64([])
    return Dump(
        format=name,
        file=file,
        kind=options.kind,
        e_machine=options.e_machine,
        e_flags=0,
        memory=_with_zeros(memory) if options.zero_excluded else memory,
        notes=(),
        claimed=ClaimedMappings(nothing, nothing, nothing),
        lost=tuple(part for part in lost if len(part.ranges)),
        warnings=warnings,
        machine_known=False,
    )


def _with_zeros(memory: PhysicalMemory) -> PhysicalMemory:
    """Zeros between the ranges: AVML leaves out 16 MB that hold nothing else."""
    declared = memory.declared
    whole = Ranges(declared.start[:1], declared.end[-1:])
    gaps = subtract_ranges(whole, declared)  # not what is missing of the ranges themselves
    held = memory.extents
    fill = np.full(len(gaps), ZERO_FILL, dtype=np.uint64)
    extents = normalise(
        np.concatenate([held.start, gaps.start]),
        np.concatenate([held.size, gaps.end - gaps.start]),
        np.concatenate([held.position, fill]),
    )
    return replace(memory, extents=extents, declared=whole)


FORMAT = Format("lime", probe, open_lime)
