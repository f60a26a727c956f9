"""Places within a member where decoding can begin: blocks of xz, independent blocks of lz4.

Each is entered by a decoder that is first fed a short header in place of the member's beginning.
What these tables say is the file's claim: decoders are told where to stop, and whatever does not
decode from a mark is an error of the one who reads there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdump_elftool.files import ByteSource

_INDEX_MOST = 1 << 20  # of an xz index: 100,000 blocks
_XZ_HEADER = 12
_LZ4_APART = 1 << 18  # blocks may be as small as 64 KB
_LZ4_STEPS = 1 << 21  # of a walk: 128 GB in blocks of 64 KB
_LZ4_BLOCK = {4: 1 << 16, 5: 1 << 18, 6: 1 << 20, 7: 1 << 22}


@dataclass(frozen=True)
class Mark:
    """A place to begin at: ``prefix`` goes before the file's bytes from ``at`` on.

    The decoder's input must end at ``limit``; the stream goes on at ``resume`` with the next member.
    """

    at: int
    prefix: bytes
    limit: int
    resume: int


def none(_source: ByteSource) -> Iterator[Mark]:
    """No marks: members can only be entered at their beginning."""
    return iter(())


def xz_blocks(source: ByteSource) -> Iterator[Mark]:
    """Blocks by the indexes at the ends of the streams; none where these are not sound."""
    streams: list[list[Mark]] = []
    end = source.size & ~3
    while end >= 2 * _XZ_HEADER:
        footer = source.read_at(end - _XZ_HEADER, _XZ_HEADER)
        if footer == bytes(_XZ_HEADER):
            return iter(())  # more padding than anyone writes: not worth the search
        if footer[8:] == bytes(4):
            end -= 4
            continue
        found = _xz_stream(source, end, footer)
        if found is None:
            break
        end, blocks = found
        streams.append(blocks)
    return (mark for blocks in reversed(streams) for mark in blocks)


def _xz_stream(source: ByteSource, end: int, footer: bytes) -> tuple[int, list[Mark]] | None:
    """Start and blocks of the stream that ends at ``end`` (xz-file-format.txt, 2.1.2 and 4)."""
    if footer[10:] != b"YZ" or zlib.crc32(footer[4:10]) != int.from_bytes(footer[:4], "little"):
        return None
    index_size = (int.from_bytes(footer[4:8], "little") + 1) * 4
    index_at = end - _XZ_HEADER - index_size
    if index_size > _INDEX_MOST or index_at < _XZ_HEADER:
        return None
    index = source.read_at(index_at, index_size)
    if index[:1] != b"\0" or zlib.crc32(index[:-4]) != int.from_bytes(index[-4:], "little"):
        return None
    sizes = _xz_records(index)
    start = index_at - sum(sizes) - _XZ_HEADER
    header = source.read_at(start, _XZ_HEADER) if start >= 0 else b""
    if not header.startswith(b"\xfd7zXZ\0"):
        return None
    at, blocks = start + _XZ_HEADER, []
    for size in sizes:
        blocks.append(Mark(at, header, index_at, end))
        at += size
    return start, blocks


def _xz_records(index: bytes) -> list[int]:
    """Padded size of each block."""
    count, at = _xz_number(index, 1)
    sizes = []
    while count and at < len(index) - 4:
        unpadded, at = _xz_number(index, at)
        _, at = _xz_number(index, at)  # uncompressed: decoding will tell
        sizes.append(unpadded + 3 & ~3)
        count -= 1
    return sizes


def _xz_number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(9):
        byte = data[at + place] if at + place < len(data) else 0
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return value, at + 9


def lz4_blocks(source: ByteSource, library: Any) -> Iterator[Mark]:
    """Blocks of frames whose blocks are independent, by walking from size to size."""
    at, steps = 0, _LZ4_STEPS
    while at < source.size and steps > 0:
        head = source.read_at(at, 32)
        magic = int.from_bytes(head[:4], "little")
        steps -= 1
        if 0x184D2A50 <= magic <= 0x184D2A5F and len(head) >= 8:
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        if magic != 0x184D2204 or len(head) < 7:
            return
        flags, size_code = head[4], head[5] >> 4 & 7
        if flags >> 6 != 1 or size_code not in _LZ4_BLOCK:
            return
        checks = 4 if flags & 0x10 else 0
        begin = at + 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
        blocks, end, walked = _lz4_walk(source, begin, _LZ4_BLOCK[size_code], checks, steps)
        at = end + 4 + (4 if flags & 4 else 0)
        steps -= walked
        if flags & 0x20:
            prefix = _lz4_prefix(library, size_code, bool(checks))
            yield from (Mark(block, prefix, end, at) for block in blocks)


def _lz4_walk(source: ByteSource, at: int, most: int, checks: int, steps: int) -> tuple[list[int], int, int]:
    """Blocks at least _LZ4_APART from each other, where the walk ended (the end mark), and its steps."""
    kept, last, walked = [], at, 0
    while walked < steps:
        field = source.read_at(at, 4)
        size = int.from_bytes(field, "little") & 0x7FFFFFFF  # the top bit: stored as it is
        if len(field) < 4 or not size or size > most:
            break
        if at - last >= _LZ4_APART:
            kept.append(at)
            last = at
        at += 4 + size + checks
        walked += 1
    return kept, at, walked


def _lz4_prefix(library: Any, size_code: int, checks: bool) -> bytes:
    context = library.create_compression_context()
    return bytes(
        library.compress_begin(
            context, block_size=size_code, block_linked=False, content_checksum=False, block_checksum=checks
        )
    )
