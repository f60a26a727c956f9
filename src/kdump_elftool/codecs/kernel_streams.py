"""What kernels are compressed with inside their image files: two forms that no other file here has.

``lzma`` writes the headers of its first format ("alone"), ``lz4 -l`` its legacy frames: a magic number, then
blocks of 8 MB behind their stored sizes, of which a shorter one is the last.  In both cases, and in the
others too, the kernel's build adds the size of the contents, 4 bytes that belong to no stream.

References: scripts/Makefile.lib (cmd_gzip to cmd_zstd_with_size), lib/decompress_unlz4.c,
lib/decompress_unlzma.c; lz4_Frame_format.md, "Legacy frame".
"""

from __future__ import annotations

import importlib
from typing import Any

from kdump_elftool.codecs.streams import STREAMS, Decoder, Stream, lz4_library

_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
_LZ4_STORED = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16
"""LZ4_compressBound()."""
_LZMA_MEMORY = 256 << 20


class _LegacyLz4:
    """One legacy frame, fed as it comes: a ``codecs.streams.Decoder``."""

    def __init__(self) -> None:
        lz4_library()  # says which package is missing
        self._library: Any = importlib.import_module("lz4.block")
        self._input = bytearray()
        self._out = memoryview(b"")
        self._begun = self._last = self._hungry = False

    @property
    def eof(self) -> bool:
        return self._last and not self._out

    @property
    def needs_input(self) -> bool:
        return not self._out and not self._last and (self._hungry or not self._input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._input) if self.eof else b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """The next contents, at most so many.  Raises ValueError, RuntimeError."""
        self._input += data
        if not self._out and not self._last:
            self._out = memoryview(self._next())
        out, self._out = bytes(self._out[:max_length]), self._out[max_length:]
        return out

    def _next(self) -> bytes:
        """The next block; nothing where its input is incomplete or the frame has ended."""
        self._hungry = True
        if not self._begun:
            if len(self._input) < len(_LZ4_MAGIC):
                return b""
            del self._input[: len(_LZ4_MAGIC)]
            self._begun = True
        size = int.from_bytes(self._input[:4], "little")
        if len(self._input) < 4 or (0 < size <= _LZ4_STORED and len(self._input) < 4 + size):
            return b""
        if not 0 < size <= _LZ4_STORED:
            self._last = True  # behind contents of so many whole blocks
            return b""
        block: bytes = self._library.decompress(bytes(self._input[4 : 4 + size]), _LZ4_BLOCK)
        del self._input[: 4 + size]
        self._last, self._hungry = len(block) < _LZ4_BLOCK, False
        return block


def _lz4_errors() -> tuple[type[Exception], ...]:
    lz4_library()
    return (importlib.import_module("lz4.block").LZ4BlockError, ValueError, RuntimeError)


def _lzma_decoder() -> Decoder:
    lzma = importlib.import_module("lzma")
    decoder: Decoder = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
    return decoder


def _lzma_errors() -> tuple[type[Exception], ...]:
    return (importlib.import_module("lzma").LZMAError,)


KERNEL_STREAMS: tuple[Stream, ...] = (
    *(stream for stream in STREAMS if stream.magics),
    Stream("legacy lz4", (_LZ4_MAGIC,), _LZ4_BLOCK, _LegacyLz4, _lz4_errors),
    Stream("lzma", (b"\x5d\0\0",), 1 << 17, _lzma_decoder, _lzma_errors),
)
