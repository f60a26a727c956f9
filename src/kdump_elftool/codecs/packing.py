"""Page codecs the other way round: pages of one buffer become pieces, ready to be written.

A page that a codec does not make smaller stays as it is, and is recognised by its size.  The
bindings give up the interpreter lock, so that slices of one buffer are packed on all cores;
whatever a codec needs to keep (LZO: a table) is made once for a slice, since a shared one would be
waited for.  docs/performance.md says how the bindings were chosen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from kdump_elftool.codecs.pages import INSTALL
from kdump_elftool.errors import MissingCodecError

_LEVEL = 1
"""Of zlib and zstd: what makedumpfile uses; more costs much and saves little on single pages."""


@dataclass(frozen=True)
class Packed:
    """Pieces one after the other, and the size of each; one of full size is the page itself."""

    data: bytes | memoryview
    sizes: list[int]


Pack = Callable[[memoryview, Sequence[int], int], Packed]
"""Packs the pages at some offsets of a buffer; the last argument is the size of a page."""


@dataclass(frozen=True)
class Packer:
    """A codec to write with: its name, the package that it needs, and how to load that."""

    name: str
    package: str
    load: Callable[[], Pack]


def packer(name: str) -> Pack:
    """The pack function of a codec by its name.  Raises MissingCodecError."""
    known = PACKERS[name]
    try:
        return known.load()
    except ImportError:
        raise MissingCodecError(
            known.package, f"compressing with {name} needs the Python package {known.package}", INSTALL
        ) from None


def default_codec() -> str:
    """zstd where its package is installed, else zlib."""
    try:
        packer("zstd")
    except MissingCodecError:
        return "zlib"
    return "zstd"


def _plain(source: memoryview, begin: Sequence[int], page: int) -> Packed:
    """No compression at all."""
    if begin and begin[-1] - begin[0] == (len(begin) - 1) * page:
        data: bytes | memoryview = source[begin[0] : begin[-1] + page]
    else:
        data = b"".join(source[at : at + page] for at in begin)
    return Packed(data, [page] * len(begin))


@cache
def _zlib() -> Pack:
    compress: Callable[[memoryview, int], bytes] = zlib.compress
    try:
        from isal import isal_zlib

        compress = isal_zlib.compress
    except ImportError:
        pass  # three times slower, which is no reason to fail
    return _from_bytes(lambda: lambda page: compress(page, _LEVEL))


@cache
def _lzo() -> Pack:
    from lzallright import LZOCompressor

    return _from_bytes(lambda: LZOCompressor().compress)


def _from_bytes(start: Callable[[], Callable[[memoryview], bytes]]) -> Pack:
    """A pack function of a binding that returns bytes; ``start`` gives one slice's compressor."""

    def pack(source: memoryview, begin: Sequence[int], page: int) -> Packed:
        compress = start()
        pieces: list[bytes | memoryview] = []
        for at in begin:
            view = source[at : at + page]
            piece = compress(view)
            pieces.append(piece if len(piece) < page else view)
        return Packed(b"".join(pieces), [len(piece) for piece in pieces])

    return pack


@cache
def _snappy() -> Pack:
    from cramjam import snappy

    compress_into, most = snappy.compress_raw_into, snappy.compress_raw_max_len

    def pack(source: memoryview, begin: Sequence[int], page: int) -> Packed:
        # it wants room for the worst case even where the piece turns out small
        room = most(source[:page]) if begin else 0
        out = memoryview(bytearray((len(begin) - 1) * page + room)) if begin else memoryview(b"")
        sizes, done = [], 0
        for at in begin:
            view = source[at : at + page]
            size = compress_into(view, out[done : done + room])
            if size >= page:
                out[done : done + page] = view
                size = page
            sizes.append(size)
            done += size
        return Packed(out[:done], sizes)

    return pack


@cache
def _zstd() -> Pack:
    from cramjam import CompressionError, zstd

    compress_into = zstd.compress_into

    def pack(source: memoryview, begin: Sequence[int], page: int) -> Packed:
        out = memoryview(bytearray(len(begin) * page))
        sizes, done = [], 0
        for at in begin:
            view = source[at : at + page]
            try:
                size = compress_into(view, out[done : done + page], _LEVEL)
            except CompressionError:
                size = page  # there was not enough room: it did not become smaller
            if size >= page:
                out[done : done + page] = view
                size = page
            sizes.append(size)
            done += size
        return Packed(out[:done], sizes)

    return pack


PACKERS: dict[str, Packer] = {
    known.name: known
    for known in (
        Packer("zstd", "cramjam", _zstd),
        Packer("zlib", "isal", _zlib),
        Packer("lzo", "lzallright", _lzo),
        Packer("snappy", "cramjam", _snappy),
        Packer("none", "", lambda: _plain),
    )
}
