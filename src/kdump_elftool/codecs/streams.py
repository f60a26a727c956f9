"""The compressions that people put around a whole dump: where their parts begin, and who decodes them.

A stream is a row of members (gzip's word; frames in zstd and lz4, streams in xz and bzip2), each of
which can be decoded by itself.  gzip: RFC 1952 and 1951, zlib: RFC 1950, zstd: RFC 8878, lz4:
lz4_Frame_format.md, xz: xz-file-format.txt, lzop: see ``codecs.lzop``.  The standard library decodes gzip,
zlib, xz and bzip2; zlib-ng, lz4, lzallright (lzop) and backports.zstd (compression.zstd of Python 3.14) are
used where they are installed.

Modules are imported when they are needed: a crash kernel may not have them.
"""

from __future__ import annotations

import importlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from kdump_elftool.codecs import lzop, marks
from kdump_elftool.codecs.marks import Mark
from kdump_elftool.codecs.pages import INSTALL
from kdump_elftool.errors import MissingCodecError
from kdump_elftool.files import ByteSource

SKIPPABLE = range(0x184D2A50, 0x184D2A60)
"""Magic numbers of frames that zstd and lz4 readers pass over (pzstd puts one before each frame)."""

_MEMORY_LIMIT = 256 << 20  # for the dictionary of xz; xz -9 takes 65 MB
_SKIPPED_MOST = 1000  # skippable frames in a row
_PADDING_MOST = 64 << 20  # zeros between members; a partition may end in terabytes of them
_PADDING_STEP = 1 << 20
_GZIP_HEADER_MOST = 1 << 17  # the name and the comment have no limit of their own


class Decoder(Protocol):
    """One member's decoder, as in lzma and bz2: feed it when ``needs_input``, until ``eof``."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Inflate:
    """A raw deflate stream as a :class:`Decoder`; without the checksum unless ``check`` computes it."""

    def __init__(self, engine: Any, check: Callable[[bytes, int], int] | None = None, value: int = 0) -> None:
        self._engine = engine
        self._check = check
        self._tail = b""
        self._full = False
        self.check_value = value
        self.length = 0

    @property
    def eof(self) -> bool:
        return bool(self._engine.eof)

    @property
    def needs_input(self) -> bool:
        return not self._tail and not self._full

    @property
    def unused_data(self) -> bytes:
        return bytes(self._engine.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out: bytes = self._engine.decompress(self._tail + data if self._tail else data, max_length)
        self._tail = self._engine.unconsumed_tail
        self._full = len(out) == max_length
        self.length += len(out)
        if self._check is not None:
            self.check_value = self._check(out, self.check_value)
        return out

    def copy(self) -> Inflate:
        """A decoder that goes on from here by itself; only where ``needs_input``."""
        return Inflate(self._engine.copy())


@dataclass(frozen=True)
class Begun:
    """A member that begins: its decoder, and where the decoder's input starts."""

    decoder: Decoder
    input_at: int


@dataclass(frozen=True)
class Stream:
    """One compression.

    ``margin`` is how many compressed bytes before a place where decoding failed may have been decoded
    to garbage already: the largest unit that is verified as a whole, or in which a wrong bit shows.
    """

    name: str
    magics: tuple[bytes, ...]
    margin: int
    decoder: Callable[[], Decoder]
    errors: Callable[[], tuple[type[Exception], ...]]
    marks: Callable[[ByteSource], Iterator[Mark]] = marks.none
    copies: bool = False
    """Whether a decoder's state can be copied anywhere."""

    def probe(self, head: bytes) -> bool:
        """Whether a file begins like such a stream."""
        return head.startswith(self.magics)

    def begin(self, source: ByteSource, at: int, *, verify: bool) -> Begun | None:
        """The member at ``at``, or behind padding and skippable frames there; None: no further one."""
        del verify  # libraries verify on their own
        frames, zeros_end = 0, at + _PADDING_MOST
        while at < min(source.size, zeros_end) and frames <= _SKIPPED_MOST:
            head = source.read_at(at, 16)
            if head.startswith(self.magics):
                return Begun(self.decoder(), at)
            if len(head) >= 8 and int.from_bytes(head[:4], "little") in SKIPPABLE:
                size = 8 + int.from_bytes(head[4:8], "little")
                at, zeros_end, frames = at + size, zeros_end + size, frames + 1
            elif head[:4] == bytes(4):
                data = source.read_at(at, _PADDING_STEP)
                at += max(len(data) - len(data.lstrip(b"\0")) & ~3, 4)  # xz pads streams to four bytes
            else:
                return None
        return None

    def end(self, source: ByteSource, at: int, decoder: Decoder) -> tuple[int, str | None]:
        """Where the member whose input ended at ``at`` ends, and what is wrong with its trailer."""
        del source, decoder
        return at, None


class _Deflated(Stream, ABC):
    """gzip and zlib: raw deflate with a header and trailer that are read here.

    So a checksum that does not match costs no data, and reading again need not compute it.
    """

    def begin(self, source: ByteSource, at: int, *, verify: bool) -> Begun | None:
        head = source.read_at(at, _GZIP_HEADER_MOST)
        size = self.header_size(head)
        if size is None:
            return None
        return Begun(self.raw(verify), at + size)

    @abstractmethod
    def header_size(self, head: bytes) -> int | None:
        """Bytes of the header that ``head`` begins with; None if it is none."""

    @abstractmethod
    def raw(self, verify: bool) -> Inflate:
        """A decoder of what is behind the header."""


class _Gzip(_Deflated):
    def header_size(self, head: bytes) -> int | None:
        return gzip_header_size(head)

    def raw(self, verify: bool) -> Inflate:
        library = inflate_library()
        return Inflate(library.decompressobj(-15), library.crc32 if verify else None)

    def end(self, source: ByteSource, at: int, decoder: Decoder) -> tuple[int, str | None]:
        assert isinstance(decoder, Inflate)
        trailer = source.read_at(at, 8)
        if len(trailer) < 8:
            return at + len(trailer), "ends within its checksum"
        crc, length = struct.unpack("<II", trailer)
        wrong = crc != decoder.check_value or length != decoder.length & 0xFFFFFFFF
        return (
            at + 8,
            "does not have the checksum it should: what it holds may be partly wrong" if wrong else None,
        )


class _Zlib(_Deflated):
    def probe(self, head: bytes) -> bool:
        """Two bytes are little to go by: what they announce must be a LiME image."""
        if self.header_size(head) is None:
            return False
        library = inflate_library()
        try:
            return bool(library.decompressobj(-15).decompress(head[2:], 4) == b"EMiL")
        except library.error:
            return False

    def header_size(self, head: bytes) -> int | None:
        if len(head) < 2 or head[0] & 0xF != 8 or head[0] >> 4 > 7 or head[1] & 0x20:
            return None
        return None if int.from_bytes(head[:2], "big") % 31 else 2

    def raw(self, verify: bool) -> Inflate:
        library = inflate_library()
        return Inflate(library.decompressobj(-15), library.adler32 if verify else None, 1)

    def end(self, source: ByteSource, at: int, decoder: Decoder) -> tuple[int, str | None]:
        assert isinstance(decoder, Inflate)
        trailer = source.read_at(at, 4)
        if len(trailer) < 4:
            return at + len(trailer), "ends within its checksum"
        wrong = int.from_bytes(trailer, "big") != decoder.check_value
        return (
            at + 4,
            "does not have the checksum it should: what it holds may be partly wrong" if wrong else None,
        )


def gzip_header_size(head: bytes) -> int | None:
    """Size of the gzip header that ``head`` begins with; None when it is none (RFC 1952, 2.3)."""
    if len(head) < 10 or not head.startswith(b"\x1f\x8b\x08") or head[3] & 0xE0:
        return None
    flags, at = head[3], 10
    if flags & 4:  # FEXTRA
        if len(head) < at + 2:
            return None
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):  # FNAME, FCOMMENT: end with a zero byte
        if flags & flag:
            at = head.find(b"\0", at) + 1
            if not at:
                return None
    at += 2 if flags & 2 else 0  # FHCRC
    return at if at <= len(head) else None


def inflate_library() -> Any:
    """zlib-ng where it is installed, which is more than twice as fast, or the standard library's zlib."""
    try:
        return importlib.import_module("zlib_ng.zlib_ng")
    except ImportError:
        return importlib.import_module("zlib")


def _inflate_errors() -> tuple[type[Exception], ...]:
    return (inflate_library().error,)


def _no_decoder() -> Decoder:
    raise AssertionError("deflate decoders come from begin()")


def _xz_decoder() -> Decoder:
    lzma = importlib.import_module("lzma")
    decoder: Decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT)
    return decoder


def _xz_errors() -> tuple[type[Exception], ...]:
    return (importlib.import_module("lzma").LZMAError,)


def _bzip2_decoder() -> Decoder:
    decoder: Decoder = importlib.import_module("bz2").BZ2Decompressor()
    return decoder


def _bzip2_errors() -> tuple[type[Exception], ...]:
    return (OSError, ValueError)  # what bz2 raises for bad data


def _missing(what: str, package: str) -> MissingCodecError:
    return MissingCodecError(
        package,
        f"a file compressed with {what} needs the Python package {package}",
        f"{INSTALL}, or decompress it first",
    )


def zstd_library() -> Any:
    """The module whose ZstdDecompressor is used.  Raises MissingCodecError."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise _missing("zstd", "backports.zstd")


def _zstd_decoder() -> Decoder:
    decoder: Decoder = zstd_library().ZstdDecompressor()
    return decoder


def _zstd_errors() -> tuple[type[Exception], ...]:
    return (zstd_library().ZstdError,)


def lz4_library() -> Any:
    """lz4.frame.  Raises MissingCodecError."""
    try:
        return importlib.import_module("lz4.frame")
    except ImportError:
        raise _missing("lz4", "lz4") from None


class _Lz4Decoder:
    """lz4.frame's decompressor, which says that it needs input while a block still waits to be handed out."""

    def __init__(self) -> None:
        self._engine = lz4_library().LZ4FrameDecompressor()
        self._full = False

    @property
    def eof(self) -> bool:
        return bool(self._engine.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._engine.needs_input) and not self._full

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data or b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out: bytes = self._engine.decompress(data, max_length)
        self._full = len(out) == max_length
        return out


def _lz4_errors() -> tuple[type[Exception], ...]:
    return (RuntimeError, ValueError)  # what lz4.frame raises for bad data


def _lzop_decoder() -> Decoder:
    try:
        return lzop.Decompressor(lzop.library())
    except ImportError:
        raise _missing("lzop", "lzallright") from None


def _lzop_errors() -> tuple[type[Exception], ...]:
    return (lzop.LzopError,)


class _Skipping(Stream):
    """zstd and lz4: a file may begin with skippable frames, whose magic numbers they share."""

    def probe(self, head: bytes) -> bool:
        while len(head) >= 8 and int.from_bytes(head[:4], "little") in SKIPPABLE:
            head = head[8 + int.from_bytes(head[4:8], "little") :]
        return head.startswith(self.magics)


STREAMS: tuple[Stream, ...] = (
    # a block of gzip or pigz has at most 32768 symbols: seldom above 64 KB
    _Gzip("gzip", (b"\x1f\x8b",), 1 << 17, _no_decoder, _inflate_errors, copies=True),
    _Zlib("zlib", (), 1 << 17, _no_decoder, _inflate_errors, copies=True),
    # a chunk of LZMA2 has at most 64 KB and must come out even
    Stream("xz", (b"\xfd7zXZ\0",), 1 << 17, _xz_decoder, _xz_errors, marks.xz_blocks),
    # blocks of 128 KB, each of which must come out even
    _Skipping("zstd", (b"\x28\xb5\x2f\xfd",), 1 << 18, _zstd_decoder, _zstd_errors),
    _Skipping("lz4", (b"\x04\x22\x4d\x18",), 4 << 20, _Lz4Decoder, _lz4_errors,
              lambda source: marks.lz4_blocks(source, lz4_library())),
    # blocks of 256 KB with a checksum each, unless that was not wanted
    Stream("lzop", (lzop.MAGIC,), 1 << 18, _lzop_decoder, _lzop_errors, lzop.blocks),
    # blocks of 900 KB with a checksum each, compressed
    Stream("bzip2", tuple(b"BZh%d" % n for n in range(1, 10)), 1 << 20, _bzip2_decoder, _bzip2_errors),
)  # fmt: skip
