"""lzop's files: blocks of LZO, each with its sizes and checksums, behind a header.  All big-endian.

The header: magic, u16 version, of the library, and needed; u8 method and level, u32 flags, mode, two of
time; the name behind its length in a byte; u32 checksum.  A block: u32 size, u32 stored size, checksums
of the contents, those of what is stored if that is less, data; a size of 0 ends it.
Source: lzop's description of its format in its own source (src/lzop.c, ``read_header``,
``x1x_decompress``), version 1.04.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdump_elftool.codecs.marks import Mark
from kdump_elftool.files import ByteSource

MAGIC = b"\x89LZO\0\r\n\x1a\n"
LARGEST_BLOCK = 1 << 20
"""lzop writes 256 KB.  LZO swells to 255 times its size at most, which nothing stops before."""
_FIXED = struct.Struct(">3H2B4IB")
_FIRST_VERSION = 0x0940
"""Headers of older ones have fewer fields; nobody has written them since 1997."""
_METHODS = range(1, 4)
_ADLER_D, _ADLER_C, _EXTRA, _CRC_D, _CRC_C, _MULTIPART, _FILTER, _HEADER_CRC = (
    1 << bit for bit in (0, 1, 6, 8, 9, 10, 11, 12)
)
_APART = 1 << 18
_USUAL_HEADER = 1 << 10
_STEPS = 1 << 22
"""Blocks that are gone over to find places to begin at: 1 TB."""


class LzopError(ValueError):
    """What is there is no lzop file, or a damaged one."""


@dataclass(frozen=True)
class Header:
    """``size`` in bytes, and which checksums the blocks have."""

    size: int
    flags: int

    def checks(self, stored: int, size: int) -> tuple[int, int]:
        """Checksums of contents and of what is stored, in a block of such sizes."""
        compressed = bool(self.flags & _ADLER_C) + bool(self.flags & _CRC_C) if stored < size else 0
        return bool(self.flags & _ADLER_D) + bool(self.flags & _CRC_D), compressed


def read_header(data: bytes | bytearray) -> Header | None:
    """The header that ``data`` begins with; None where there is more of it.  Raises LzopError."""
    if len(data) < len(MAGIC) + _FIXED.size:
        return None
    if not data.startswith(MAGIC):
        raise LzopError("no header of lzop")
    version, _, _, method, _, flags, *_, length = _FIXED.unpack_from(data, len(MAGIC))
    if version < _FIRST_VERSION or method not in _METHODS or flags & (_FILTER | _MULTIPART):
        raise LzopError(f"version {version:#x}, method {method}, flags {flags:#x} are not supported")
    end = len(MAGIC) + _FIXED.size + length
    if len(data) < end + 4:
        return None
    checksum = zlib.crc32 if flags & _HEADER_CRC else zlib.adler32
    if checksum(data[len(MAGIC) : end]) != int.from_bytes(data[end : end + 4], "big"):
        raise LzopError("its header has a wrong checksum")
    end += 4
    if flags & _EXTRA:
        if len(data) < end + 4:
            return None
        end += 8 + int.from_bytes(data[end : end + 4], "big")
    return Header(end, flags) if len(data) >= end else None


class Decompressor:
    """One file, fed as it comes: a ``codecs.streams.Decoder``."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._input = bytearray()
        self._out = memoryview(b"")
        self._header: Header | None = None
        self._hungry = True
        self.eof = False

    @property
    def needs_input(self) -> bool:
        return self._hungry and not self._out and not self.eof

    @property
    def unused_data(self) -> bytes:
        return bytes(self._input) if self.eof else b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """The next contents, at most so many.  Raises LzopError."""
        self._input += data
        if not self._out and not self.eof:
            self._out = memoryview(self._next())
        out, self._out = bytes(self._out[:max_length]), self._out[max_length:]
        return out

    def _next(self) -> bytes:
        """The next block; nothing where its input is incomplete or the file ends."""
        self._hungry = True
        if self._header is None:
            self._header = read_header(self._input)
            if self._header is None:
                if len(self._input) > LARGEST_BLOCK:
                    raise LzopError("its header has no end")
                return b""
            del self._input[: self._header.size]
        if len(self._input) < 4:
            return b""
        size = int.from_bytes(self._input[:4], "big")
        if not size:
            del self._input[:4]
            self.eof, self._hungry = True, False
            return b""
        if len(self._input) < 8:
            return b""
        stored = int.from_bytes(self._input[4:8], "big")
        if not 0 < stored <= size <= LARGEST_BLOCK:
            raise LzopError(f"a block of {stored:#x} bytes that holds {size:#x}")
        checks = self._header.checks(stored, size)
        begin = 8 + 4 * sum(checks)
        if len(self._input) < begin + stored:
            return b""
        self._hungry = not self._input[begin + stored :]
        block = bytes(self._input[begin : begin + stored])
        sums = struct.unpack_from(f">{sum(checks)}I", self._input, 8)
        del self._input[: begin + stored]
        return self._contents(block, size, sums[: checks[0]])

    def _contents(self, block: bytes, size: int, sums: tuple[int, ...]) -> bytes:
        assert self._header is not None
        if len(block) < size:
            try:
                block = self._library.LZOCompressor.decompress(block, size)
            except self._library.LZOError as error:
                raise LzopError(f"a block that cannot be decompressed: {error}") from None
        if len(block) != size:
            raise LzopError(f"a block of {len(block)} bytes instead of {size}")
        kinds = ((_ADLER_D, zlib.adler32), (_CRC_D, zlib.crc32))
        used = [checksum for flag, checksum in kinds if self._header.flags & flag]
        if any(checksum(block) != told for checksum, told in zip(used, sums, strict=True)):
            raise LzopError("a block with a wrong checksum")
        return block


def library() -> Any:
    """lzallright.  Raises ImportError."""
    return importlib.import_module("lzallright")


def blocks(source: ByteSource) -> Iterator[Mark]:
    """Blocks by walking from size to size, _APART from each other at least."""
    at, steps = 0, _STEPS
    while at < source.size and steps > 0:
        try:
            header = read_header(source.read_at(at, _USUAL_HEADER))
            header = header or read_header(source.read_at(at, LARGEST_BLOCK))
        except LzopError:
            return
        if header is None:
            return
        prefix = source.read_at(at, header.size)
        places, end, walked = _walk(source, header, at + header.size, steps)
        yield from (Mark(place, prefix, end, end + 4) for place in places)
        at, steps = end + 4, steps - walked - 1


def _walk(source: ByteSource, header: Header, at: int, steps: int) -> tuple[list[int], int, int]:
    """The places, where the walk ended (the end mark), and its steps."""
    places, last, walked = [], at, 0
    while walked < steps:
        field = source.read_at(at, 8)
        size, stored = int.from_bytes(field[:4], "big"), int.from_bytes(field[4:], "big")
        if len(field) < 8 or not 0 < stored <= size <= LARGEST_BLOCK:
            break
        if at - last >= _APART:
            places.append(at)
            last = at
        at += 8 + 4 * sum(header.checks(stored, size)) + stored
        walked += 1
    return places, at, walked
