"""The Snappy frames of AVML images: found by their headers, decoded when somebody reads them.

Frames, by framing_format.txt of Snappy: a type byte, a length of three bytes, then for data the
masked CRC-32C of what it decodes to.  AVML's hold whole pages, so that a page lies in one frame.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from kdump_elftool.addr import U64, Bools
from kdump_elftool.files import ByteSource, behind_gap, readable_end
from kdump_elftool.formats.lime import MISSING, MOST_RANGES, BadHeader, Range, header_is_lost, read_header
from kdump_elftool.memory.paged import Bytes2D, PagedReader, Trouble

PAGE = 4096
STREAM_START = b"\xff\x06\x00\x00sNaPpY"
_COMPRESSED, _PLAIN, _FIRST_SKIPPABLE, _START = 0x00, 0x01, 0x80, 0xFF
_HEADER, _CHECK, _TRAILER = 4, 4, 8
_FRAME_MOST = 1 << 16
_DATA_MOST = 32 + _FRAME_MOST + _FRAME_MOST // 6  # snappy.cc: MaxCompressedLength
_RATIO_MOST = 22  # a copy of 3 bytes makes at most 64
_WINDOW = 1 << 20
_KEPT_FRAMES = 64


@dataclass(frozen=True)
class Frames:
    """Columns by ascending ``position`` in the image's decoded data; ``at``, ``length``: in the file."""

    position: U64
    size: U64
    at: U64
    length: U64


@dataclass(frozen=True)
class Piece:
    """A range whose frames hold ``held`` bytes of it, at ``position``; ``end`` is where they end."""

    range: Range
    position: int
    held: int
    end: int


@dataclass
class Found:
    """What the walk has come across."""

    pieces: list[Piece] = field(default_factory=list)
    bad: list[BadHeader] = field(default_factory=list)
    columns: tuple[array[int], ...] = field(default_factory=lambda: tuple(array("Q") for _ in range(4)))

    def frames(self) -> Frames:
        """All frames of all ranges."""
        return Frames(*(np.array(column, dtype=np.uint64) for column in self.columns))


class _Window:
    """Small reads that mostly go forward, in large ones."""

    def __init__(self, file: ByteSource) -> None:
        self._file, self._begin, self._data = file, 0, b""

    def read(self, at: int, size: int) -> bytes:
        if not self._begin <= at <= at + size <= self._begin + len(self._data):
            self._begin, self._data = at, self._file.read_at(at, max(_WINDOW, size))
        return self._data[at - self._begin : at - self._begin + size]

    def reach(self, at: int) -> int:
        """Where what can be read from ``at`` on ends."""
        return readable_end(self._file, at) if len(self._file.missing) else self._file.size

    def why(self, at: int, what: str) -> str:
        """Why there is no more from ``at`` on."""
        return f"the file ends within a {what}" if self.reach(at) == self._file.size else MISSING


def walk(file: ByteSource, magic: bytes, version: int) -> Found:
    """Ranges and frames.  Behind a damaged place it goes on with the next range that can be told."""
    found, window = Found(), _Window(file)
    sign = magic + version.to_bytes(4, "little")
    at, position = 0, 0
    while len(found.pieces) < MOST_RANGES:
        header = read_header(window.read, at, magic, version)
        if header_is_lost(file, at):
            header = BadHeader(at, MISSING)
        if header is None:
            return found
        if isinstance(header, Range):
            held, end, bad = _walk_range(window, header, position, found.columns)
            found.pieces.append(Piece(header, position, held, end))
            position += held + -held % PAGE
        else:
            end, bad = at, header
        if bad is None:
            at = end
            continue
        if end < file.size:
            found.bad.append(bad)
        next_at = _next_range(file, end + 1, sign)
        if next_at is None:
            return found
        at = next_at
    found.bad.append(BadHeader(at, f"more than {MOST_RANGES} ranges"))
    return found


def _walk_range(
    window: _Window, header: Range, position: int, columns: tuple[array[int], ...]
) -> tuple[int, int, BadHeader | None]:
    """Bytes that the range's frames hold, where they end, and what is wrong there."""
    at, held = header.at, 0
    while held < header.size:
        raw = window.read(at, _HEADER + _CHECK + 3)
        if len(raw) < _HEADER + _CHECK + 3:
            return held, window.reach(at), BadHeader(at, window.why(at, "range"))
        kind, length = raw[0], int.from_bytes(raw[1:4], "little")
        if kind == _START and raw[:10] == STREAM_START[: len(raw[:10])]:
            at += len(STREAM_START)
        elif _FIRST_SKIPPABLE <= kind < _START:
            at += _HEADER + length
        else:
            size = _decoded_size(kind, length, raw[_HEADER + _CHECK :])
            if not size or size > header.size - held or (size % PAGE and size != header.size - held):
                return held, at, BadHeader(at, f"no frame of pages but {raw.hex(' ')}")
            if at + _HEADER + length > window.reach(at):
                return held, window.reach(at), BadHeader(at, window.why(at, "frame"))
            row = (position + held, size, at, _HEADER + length)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
            held += size
            at += _HEADER + length
    trailer = window.read(at, _TRAILER)
    if int.from_bytes(trailer, "little") != at - header.at and len(trailer) == _TRAILER:
        return held, at, BadHeader(at, f"the range's length is {at - header.at:#x}, not {trailer.hex(' ')}")
    return held, at + _TRAILER, None


def _decoded_size(kind: int, length: int, preamble: bytes) -> int:
    """What a frame of data decodes to, by its header; 0 when it is none."""
    data = length - _CHECK
    if kind == _PLAIN:
        return data if 0 < data <= _FRAME_MOST else 0
    if kind != _COMPRESSED or not 0 < data <= _DATA_MOST:
        return 0
    size = 0
    for place, byte in enumerate(preamble):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return size if size <= min(_FRAME_MOST, data * _RATIO_MOST) else 0
    return 0


def _next_range(file: ByteSource, at: int, sign: bytes) -> int | None:
    """Where the next header stands that a Snappy stream follows."""
    head = 32
    need = head + len(STREAM_START)
    while at + need <= file.size:
        data = file.read_at(at, _WINDOW + need)
        where = data.find(sign)
        while 0 <= where <= len(data) - need:
            if data[where + head : where + need] == STREAM_START:
                return at + where
            where = data.find(sign, where + 1)
        if len(data) < need:
            stop = at + len(data)
            at = behind_gap(file, stop)
            if at == stop:
                return None  # it has become shorter
        else:
            at += len(data) - need + 1
    return None


class FrameReader(PagedReader):
    """Decoded data of frames, by page.  Frames decoded lately are kept."""

    page_size = PAGE

    def __init__(self, file: ByteSource, frames: Frames) -> None:
        self._file, self._frames = file, frames
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()
        self._lock = Lock()

    def read_pages(self, pages: U64, out: Bytes2D) -> Bools:
        good = np.zeros(len(pages), dtype=np.bool_)
        frames = self._frames
        position = pages * np.uint64(PAGE)
        frame = np.searchsorted(frames.position, position, side="right") - 1
        borders = np.flatnonzero(np.diff(frame)) + 1
        for begin, end in zip([0, *borders.tolist()], [*borders.tolist(), len(pages)], strict=True):
            if begin == end or frame[begin] < 0:
                continue
            data = self._decoded(int(frame[begin]))
            if data is None:
                continue
            slot = ((position[begin:end] - frames.position[frame[begin]]) // np.uint64(PAGE)).astype(np.intp)
            whole = np.frombuffer(data + bytes(-len(data) % PAGE), dtype=np.uint8).reshape(-1, PAGE)
            inside = slot < len(whole)
            out[begin:end][inside] = whole[slot[inside]]
            good[begin:end] = inside
        return good

    def trouble(self, page: int) -> Trouble:
        number = int(np.searchsorted(self._frames.position, np.uint64(page * PAGE), side="right")) - 1
        at = int(self._frames.at[number]) if number >= 0 else None
        return Trouble("its Snappy frame is damaged", at)

    def _decoded(self, number: int) -> bytes | None:
        """The data of a frame; None when it is damaged.  The library compares the checksum."""
        import cramjam

        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        frames = self._frames
        raw = self._file.read_at(int(frames.at[number]), int(frames.length[number]))
        data: bytes | None
        try:
            data = bytes(cramjam.snappy.decompress(STREAM_START + raw))
        except cramjam.DecompressionError:
            data = None
        if data is not None and len(data) != int(frames.size[number]):
            data = None
        with self._lock:
            self._kept[number] = data
            if len(self._kept) > _KEPT_FRAMES:
                self._kept.popitem(last=False)
        return data
