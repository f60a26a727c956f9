"""The contents of a section, unpacked where it is compressed (gABI, "Compressed Sections").

What is compressed is unpacked into a file without a name: memory does not grow with it.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

from kdump_elftool.codecs.streams import Decoder, Inflate, zstd_library
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import CorruptDumpError, KdumpError

LARGEST = 2 << 30
"""Bytes of a section; 250 MB are in the largest of a distribution's kernel."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Contents:
    """Bytes by offset and size, fewer only at the end; how many there are; where they should not end, why."""

    read_at: Callable[[int, int], bytes]
    size: int
    cut: str | None = None

    def whole(self, largest: int) -> bytes:
        """All of them; nothing if they are more than ``largest``."""
        return self.read_at(0, self.size) if self.size <= largest else b""


NOTHING = Contents(lambda _offset, _size: b"", 0)


def section_contents(elf: ElfFile, name: str, header: np.void | None, stack: ExitStack) -> Contents:
    """What section ``name`` holds, as long as ``stack`` is open; nothing where there is no such section.

    Raises CorruptDumpError, MissingCodecError, KdumpError.
    """
    if header is None:
        return NOTHING
    start, size = int(header["sh_offset"]), int(header["sh_size"])
    if start + size > elf.file.size:
        raise CorruptDumpError(elf.file.path, f"{name} lies behind the end of the file", file_offset=start)
    if not int(header["sh_flags"]) & c.SHF_COMPRESSED:
        return Contents(
            lambda offset, count: elf.file.read_at(start + offset, _room(offset, count, size)), size
        )
    try:
        found = unpack(elf, name, start, size)
    except OSError as error:
        raise KdumpError(
            f"{elf.file.path}: cannot unpack {name}: {error.strerror}",
            hint="$TMPDIR says where there is room",
        ) from None
    stack.callback(found.file.close)
    return Contents(found.read_at, found.size, found.cut)


def _room(offset: int, count: int, size: int) -> int:
    return max(min(count, size - offset), 0)


@dataclass(frozen=True)
class Unpacked:
    """A section's contents in a file of their own; ``cut`` says that they end early."""

    file: IO[bytes]
    size: int
    cut: str | None = None

    def read_at(self, offset: int, count: int) -> bytes:
        """As :class:`Contents`."""
        self.file.seek(offset)
        return self.file.read(_room(offset, count, self.size))


def unpack(elf: ElfFile, name: str, start: int, size: int, largest: int = LARGEST) -> Unpacked:
    """Unpack section ``name``, which is at that place of the file.

    Raises CorruptDumpError for what is no such section, MissingCodecError without a decoder for it, OSError
    without room.
    """
    try:
        found, length = _unpack(elf, start, size, largest)
    except (ValueError, zlib.error) as error:
        raise CorruptDumpError(
            elf.file.path, f"{name} is compressed and cannot be unpacked: {error}", file_offset=start
        ) from None
    if found.size == length:
        return found
    return replace(
        found, cut=f"{name} is compressed and ends early: {found.size} of {length} bytes are there"
    )


def _unpack(elf: ElfFile, start: int, size: int, largest: int) -> tuple[Unpacked, int]:
    """What is there, and how many bytes should be."""
    order = elf.header.kind.order
    head = struct.Struct(f"{order}IIQQ" if elf.header.kind.bits == 64 else f"{order}III")
    if size < head.size:
        raise ValueError("it is shorter than its header")
    words = head.unpack(elf.file.read_at(start, head.size))
    method, length = words[0], words[-2]
    if length > largest:
        raise ValueError(f"{length:#x} bytes are more than any has")
    decoder, errors = _decoder(method)
    out = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        written = _copy(elf, (start + head.size, start + size), decoder, out, length)
        out.flush()
    except errors as error:
        out.close()
        raise ValueError(str(error)) from None
    except BaseException:
        out.close()
        raise
    return Unpacked(out, written), length


def _decoder(method: int) -> tuple[Decoder, tuple[type[Exception], ...]]:
    if method == c.ELFCOMPRESS_ZLIB:
        return Inflate(zlib.decompressobj()), (zlib.error,)
    if method == c.ELFCOMPRESS_ZSTD:
        library: Any = zstd_library()
        return library.ZstdDecompressor(), (library.ZstdError,)
    raise ValueError(f"compressed by method {method}, which is not known")


def _copy(elf: ElfFile, place: tuple[int, int], decoder: Decoder, out: IO[bytes], length: int) -> int:
    at, end = place
    written = 0
    while written < length and not decoder.eof:
        piece = elf.file.read_at(at, min(_PIECE, end - at)) if decoder.needs_input else b""
        if decoder.needs_input and not piece:
            break
        at += len(piece)
        written += out.write(decoder.decompress(piece, min(_PIECE, length - written)))
    return written
