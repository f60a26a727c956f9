"""Page codecs in batches: many compressed pieces of one buffer become pages of another.

A piece is right only when it decodes to exactly one page.  No codec is let write more than a page,
or, for LZO, more than its worst ratio (255) makes of the piece.  The bindings give up the interpreter
lock while they decode, so that batches of different threads overlap.

zlib is always there; the faster isal, and the bindings for the other codecs, are optional and
loaded when the first page wants them.  docs/performance.md says how they were chosen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from kdump_elftool.errors import MissingCodecError

INSTALL = "pip install 'kdump-elftool[codecs]'"


@dataclass(frozen=True)
class Batch:
    """Pieces ``source[begin:end]`` and where their pages go in ``out``."""

    source: memoryview
    begin: Sequence[int]
    end: Sequence[int]
    out: memoryview
    place: Sequence[int]
    page_size: int


Decode = Callable[[Batch], list[int]]
"""Decodes a batch; returns the numbers of the pieces that are no page (their place is then garbage)."""


@dataclass(frozen=True)
class Codec:
    """A page codec: its name, the package that decodes it, and how to load that."""

    name: str
    package: str
    load: Callable[[], Decode]


def decoder(codec: Codec) -> Decode:
    """The codec's decode function.  Raises MissingCodecError when its package is not installed."""
    try:
        return codec.load()
    except ImportError:
        raise MissingCodecError(
            codec.package,
            f"pages compressed with {codec.name} need the Python package {codec.package}",
            INSTALL,
        ) from None


@cache
def _zlib() -> Decode:
    inflater, error = zlib.decompressobj, zlib.error
    try:
        from isal import isal_zlib

        inflater, error = isal_zlib.decompressobj, isal_zlib.error  # type: ignore[assignment]
    except ImportError:
        pass  # a third slower, which is no reason to fail

    def decode(batch: Batch) -> list[int]:
        source, out, page = batch.source, batch.out, batch.page_size
        bad = []
        for number, (begin, end, at) in enumerate(zip(batch.begin, batch.end, batch.place, strict=True)):
            stream = inflater()
            try:
                # room for one byte more: the end of the stream, with its checksum, must come in sight
                data = stream.decompress(source[begin:end], page + 1)
            except error:
                bad.append(number)
                continue
            if len(data) == page and stream.eof:
                out[at : at + page] = data
            else:
                bad.append(number)
        return bad

    return decode


@cache
def _lzo() -> Decode:
    from lzallright import LZOCompressor, LZOError

    decompress = LZOCompressor.decompress

    def decode(batch: Batch) -> list[int]:
        source, out, page = batch.source, batch.out, batch.page_size
        bad = []
        for number, (begin, end, at) in enumerate(zip(batch.begin, batch.end, batch.place, strict=True)):
            try:
                data = decompress(source[begin:end], page)
            except LZOError:
                bad.append(number)
                continue
            if len(data) == page:
                out[at : at + page] = data
            else:
                bad.append(number)
        return bad

    return decode


@cache
def _snappy() -> Decode:
    from cramjam import DecompressionError, snappy

    return _into(snappy.decompress_raw_into, DecompressionError)


@cache
def _zstd() -> Decode:
    from cramjam import DecompressionError, zstd

    return _into(zstd.decompress_into, DecompressionError)


def _into(decompress_into: Callable[[memoryview, memoryview], int], error: type[Exception]) -> Decode:
    """A decode function of a binding that writes where it is told, and not beyond."""

    def decode(batch: Batch) -> list[int]:
        source, out, page = batch.source, batch.out, batch.page_size
        bad = []
        for number, (begin, end, at) in enumerate(zip(batch.begin, batch.end, batch.place, strict=True)):
            try:
                if decompress_into(source[begin:end], out[at : at + page]) != page:
                    bad.append(number)
            except error:
                bad.append(number)
        return bad

    return decode


ZLIB = Codec("zlib", "isal", _zlib)
LZO = Codec("LZO", "lzallright", _lzo)
SNAPPY = Codec("snappy", "cramjam", _snappy)
ZSTD = Codec("zstd", "cramjam", _zstd)
