"""AVML memory images: LiME's layout under another magic number, each range compressed by Snappy.

A range is a header, a Snappy stream in frames of at most 64 KB, and the stream's length in 8 bytes.
AVML begins a new range every 16 MB and leaves out those that hold nothing but zeros.  Source:
src/image.rs and src/io/snappy.rs of AVML; framing_format.txt of Snappy.
"""

from __future__ import annotations

from kdump_elftool.addr import merge_ranges, subtract_ranges, u64
from kdump_elftool.codecs.pages import INSTALL
from kdump_elftool.errors import MissingCodecError
from kdump_elftool.files import ByteSource, Complaints, UpToFailure, readable_end
from kdump_elftool.formats import lime
from kdump_elftool.formats.avml_frames import Found, FrameReader, Piece, walk
from kdump_elftool.formats.base import Dump, Format, Lost, OpenOptions
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory

MAGIC = b"AVML"  # 0x4C4D5641, little-endian
VERSION = 2


def probe(head: bytes) -> bool:
    """Whether a file begins like an AVML image."""
    return head.startswith(MAGIC)


def open_avml(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open an AVML image.  Raises UnsupportedError, CorruptDumpError, MissingCodecError."""
    (file,) = files
    lime.refuse_other_version(file, VERSION, "AVML")
    try:
        import cramjam  # noqa: F401  # said now, not at the first page
    except ImportError:
        raise MissingCodecError(
            "cramjam",
            "an AVML image needs the Python package cramjam",
            f"{INSTALL}; or make a LiME image of it with avml convert",
        ) from None
    readable = UpToFailure(file)
    found = walk(readable, MAGIC, VERSION)
    if not found.pieces:
        lime.ending(file, [], found.bad[0])
    start, size, _ = lime.columns([piece.range for piece in found.pieces])
    held, position = u64([piece.held for piece in found.pieces]), u64([p.position for p in found.pieces])
    reader = FrameReader(readable, found.frames())
    memory = PhysicalMemory(reader, normalise(start, held, position), merge_ranges(start, start + size))
    failed = (readable.failure.message,) if readable.failure else ()
    lost = _lost(readable, found, memory)
    return lime.image_dump("avml", file, options, memory, lost, (*_warnings(found), *failed))


def _what_ended(file: ByteSource, end: int) -> str:
    """Why a range stops at ``end``."""
    if end == file.size:
        return "truncated"
    return "damaged" if readable_end(file, end) > end else "missing"


def _lost(file: ByteSource, found: Found, memory: PhysicalMemory) -> tuple[Lost, ...]:
    """What the ranges should hold beyond the frames that were found."""
    ends: dict[int, list[Piece]] = {}
    for piece in found.pieces:
        if piece.held < piece.range.size:
            ends.setdefault(min(piece.end, file.size), []).append(piece)
    lost = []
    for end, pieces in ends.items():
        tails = merge_ranges(
            u64([piece.range.start + piece.held for piece in pieces]),
            u64([piece.range.start + piece.range.size for piece in pieces]),
        )
        what = _what_ended(file, end)
        lost.append(
            Lost("paddr", f"{what} at file offset {end:#x}", subtract_ranges(tails, memory.present()), end)
        )
    return tuple(lost)


def _warnings(found: Found) -> tuple[str, ...]:
    said = Complaints("places are damaged")
    for bad in found.bad:
        said.add(f"damaged at file offset {bad.at:#x}: {bad.why}")
    return tuple(said.told())


FORMAT = Format("avml", probe, open_avml)
