"""Contents compressed in every shape that the programs produce, by the reference libraries."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from random import Random

import lz4.frame
from backports import zstd
from lzallright import LZOCompressor

SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"note"


def contents(size: int, seed: int) -> bytes:
    """Like memory: zeros, words that count up, text, noise; compressible about 3:1."""
    random = Random(seed)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: bytes(4096),
        lambda: struct.pack("<512Q", *range(random.randrange(1 << 40), 1 << 63, 4096)[:512]),
        lambda: (b"Linux version %d " % random.randrange(1000) * 400)[:4096],
        lambda: random.randbytes(2048) * 2,
    )
    return b"".join(random.choice(kinds)() for _ in range(-(-size // 4096)))[:size]


def gzip_member(data: bytes) -> bytes:
    """The higher levels take seconds for the patterns that tests are made of."""
    return gzip.compress(data, 1)


def gzip_with_fields(data: bytes) -> bytes:
    """Every optional field of a gzip header: extra, name, comment, checksum."""
    plain = gzip.compress(data, 1, mtime=0)
    head = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\0\3" + struct.pack("<H", 300) + bytes(300)
    head += b"vmcore\0a comment\0"
    return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + plain[10:]


def xz_in_blocks(*pieces: bytes) -> bytes:
    """One stream with a block for each piece, as ``xz -T`` makes them."""
    blocks, records = b"", b""
    for piece in pieces:
        stream = xz_stream(piece)
        index_size = (struct.unpack_from("<I", stream, len(stream) - 8)[0] + 1) * 4
        index = stream[-12 - index_size : -12]
        assert index[1] == 1, "one block"
        blocks += stream[12 : -12 - index_size]
        records += index[2 : 2 + _numbers(index[2:], 2)]
        header, flags = stream[:12], stream[-4:-2]
    index = b"\0" + bytes([len(pieces)]) + records
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    tail = struct.pack("<I", len(index) // 4 - 1) + flags
    return header + blocks + index + struct.pack("<I", zlib.crc32(tail)) + tail + b"YZ"


def _numbers(data: bytes, count: int) -> int:
    """Length of so many variable-length numbers."""
    at = 0
    for _ in range(count):
        while data[at] & 0x80:
            at += 1
        at += 1
    return at


def lz4_frame(data: bytes, **options: object) -> bytes:
    """A frame with its checksum, as the lz4 program makes it: blocks by themselves."""
    return lz4.frame.compress(data, **{"block_linked": False, "content_checksum": True, **options})


def zstd_frame(data: bytes) -> bytes:
    """A frame with its checksum, as the zstd program makes it."""
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def zlib_stream(data: bytes) -> bytes:
    """What LiME's compress=1 writes: a window of 2 KB (src/deflate.c)."""
    maker = zlib.compressobj(6, zlib.DEFLATED, 11, 5)
    return maker.compress(data) + maker.flush()


def xz_stream(data: bytes, **options: object) -> bytes:
    """One stream of one block."""
    return lzma.compress(data, preset=0, **options)  # type: ignore[arg-type]


def lzop_file(
    data: bytes, block: int = 1 << 18, adler: bool = True, crc: bool = False, name: bytes = b""
) -> bytes:
    """What lzop writes: a checksum of each block's contents, blocks that don't get smaller as they are."""
    flags = 0x03000000 | adler | crc << 8
    head = (
        struct.pack(">3H2B4IB", 0x1040, 0x20A0, 0x0940, 1, 5, flags, 0o100644, 1700000000, 0, len(name))
        + name
    )
    out = b"\x89LZO\0\r\n\x1a\n" + head + struct.pack(">I", zlib.adler32(head))
    for at in range(0, len(data), block):
        part = data[at : at + block]
        packed = LZOCompressor().compress(part)
        stored = packed if len(packed) < len(part) else part
        out += struct.pack(">2I", len(part), len(stored))
        out += struct.pack(">I", zlib.adler32(part)) if adler else b""
        out += struct.pack(">I", zlib.crc32(part)) if crc else b""
        out += stored
    return out + bytes(4)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip_member,
    "xz": xz_stream,
    "zstd": zstd_frame,
    "lz4": lz4_frame,
    "lzop": lzop_file,
    "bzip2": lambda data: bz2.compress(data, 1),
}


def _halves(make: Callable[[bytes], bytes], between: bytes = b"") -> Callable[[bytes], bytes]:
    def both(data: bytes) -> bytes:
        middle = len(data) // 2 + 1
        return make(data[:middle]) + between + make(data[middle:])

    return both


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    **COMPRESS,
    **{f"{name}, two members": _halves(make) for name, make in COMPRESS.items()},
    "gzip, all fields": gzip_with_fields,
    "gzip, padded": lambda data: gzip_member(data) + bytes(1000),
    "gzip, stored": lambda data: gzip.compress(data, 0),
    "gzip, an empty member": _halves(gzip_member, gzip_member(b"")),
    "xz, blocks": lambda data: xz_in_blocks(
        *(data[at : at + 300_000] for at in range(0, len(data), 300_000))
    ),
    "xz, padded": _halves(xz_stream, bytes(8)),
    "xz, no check": lambda data: xz_stream(data, check=lzma.CHECK_NONE),
    "zstd, skippable first": lambda data: SKIPPABLE + zstd_frame(data),
    "zstd, skippable between": _halves(zstd_frame, SKIPPABLE),
    "lz4, linked": lambda data: lz4_frame(data, block_linked=True),
    "lz4, small blocks": lambda data: lz4_frame(data, block_size=4, block_checksum=True),
    "lz4, length stored": lambda data: lz4_frame(data, store_size=True),
    "lzop, both checksums": lambda data: lzop_file(data, adler=True, crc=True, name=b"vmcore"),
    "lzop, no checksum": lambda data: lzop_file(data, 1 << 16, adler=False),
    "lz4, skippable between": _halves(lz4_frame, SKIPPABLE),
}
