"""Read a kdump-compressed dump without the package under test: ``struct`` and the codecs' own libraries.

Little-endian dumps of version 6 only, as makedumpfile's diskdump_mod.h describes them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cramjam
import lzallright

from tests.builders.diskdump import FLAGS, HEADER_WORDS, SUB_FIELDS

_NAMES = ("sysname", "nodename", "release", "version", "machine", "domainname")
_SIZES = {"long": ("Q", 8), "int": ("I", 4), "quad": ("Q", 8)}
_SIZES32 = {**_SIZES, "long": ("I", 4)}
_CODECS = {flags: name for name, flags in FLAGS.items()}


@dataclass(frozen=True)
class ReadKdump:
    """Pages by frame; ``descriptors`` are (offset, size, flags) in their order."""

    utsname: dict[str, bytes]
    seconds: int
    head: dict[str, int]
    sub: dict[str, int]
    notes: bytes
    vmcoreinfo: bytes
    ram: set[int]
    descriptors: list[tuple[int, int, int]]
    pages: dict[int, bytes]


def decompress(flags: int, data: bytes, page: int) -> bytes:
    """One page by the codec that its descriptor names."""
    codec = _CODECS[flags]
    if codec == "zlib":
        return zlib.decompress(data)
    if codec == "lzo":
        return bytes(lzallright.LZOCompressor.decompress(data, page))
    if codec == "snappy":
        return bytes(cramjam.snappy.decompress_raw(data))
    if codec == "zstd":
        return bytes(cramjam.zstd.decompress(data))
    return data


def read_kdump(image: bytes, bits: int = 64, align: int = 8) -> ReadKdump:
    """Parse a whole dump; every length is checked.  ``align`` is that of u64 on the machine: 4 on i386."""
    assert image[:8] == b"KDUMP   "
    assert struct.unpack_from("<I", image, 8) == (6,)
    fields = [image[12 + 65 * number :][:65] for number in range(6)]
    assert all(field.endswith(b"\0") for field in fields)
    seconds, _ = (
        struct.unpack_from("<QQ", image, 408) if bits == 64 else struct.unpack_from("<II", image, 404)
    )
    words = struct.unpack_from("<10I", image, 424 if bits == 64 else 412)
    head = dict(zip(HEADER_WORDS, words, strict=True))
    block = head["block_size"]
    sub, at = {}, block
    for name, kind, _ in SUB_FIELDS:
        code, size = (_SIZES if bits == 64 else _SIZES32)[kind]
        at += -at % min(size, align)
        (sub[name],) = struct.unpack_from("<" + code, image, at)
        at += size
    notes = image[sub["offset_note"] :][: sub["size_note"]]
    vmcoreinfo = image[sub["offset_vmcoreinfo"] :][: sub["size_vmcoreinfo"]]
    assert not notes or sub["offset_note"] == at
    bitmaps = block * (1 + head["sub_hdr_size"])
    assert at + len(notes) <= bitmaps
    half = block * head["bitmap_blocks"] // 2
    assert 8 * half >= sub["max_mapnr_64"]
    ram, dumped = (_bits(image[start : start + half]) for start in (bitmaps, bitmaps + half))
    first = bitmaps + 2 * half
    pages, descriptors = {}, []
    for number, pfn in enumerate(dumped):
        offset, size, flags, page_flags = struct.unpack_from("<QIIQ", image, first + 24 * number)
        assert first + 24 * len(dumped) <= offset and offset + size <= len(image) and page_flags == 0
        descriptors.append((offset, size, flags))
        pages[pfn] = decompress(flags, image[offset : offset + size], block)
        assert len(pages[pfn]) == block
    return ReadKdump(
        {name: field.split(b"\0", 1)[0] for name, field in zip(_NAMES, fields, strict=True)},
        seconds, head, sub, notes, vmcoreinfo, set(ram), descriptors, pages,
    )  # fmt: skip


def _bits(bitmap: bytes) -> list[int]:
    return [8 * at + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]


def unflatten(stream: bytes) -> bytes:
    """What ``makedumpfile -R`` does with a stream of ``makedumpfile -F``."""
    assert struct.unpack_from(">16sqq", stream) == (b"makedumpfile".ljust(16, b"\0"), 1, 1)
    image, at = bytearray(), 4096
    while True:
        offset, size = struct.unpack_from(">qq", stream, at)
        at += 16
        if (offset, size) == (-1, -1):
            assert at == len(stream)
            return bytes(image)
        assert offset >= 0 and size > 0 and at + size <= len(stream)
        image += bytes(max(offset + size - len(image), 0))
        image[offset : offset + size] = stream[at : at + size]
        at += size
