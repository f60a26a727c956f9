"""LiME and AVML images from their descriptions, and a text form of them for ``tests/formats/images``.

::

    format = lime | avml
    range paddr=0x1000 fill=own*0x2000      and, as lies: magic=HEX version=3 start= last= reserved=
                                            trailer= (AVML: the length behind the stream)
                                            stream=HEX (AVML: in place of the compressed data)
                                            frames=N (AVML: bytes in each frame, default 65536)
    bytes HEX                               these bytes between the ranges
    poke 0x123 HEX                          bytes put at an offset of the file
    truncate = 100                          of the file
    outer = gzip                            compressed as a whole (tests/builders/streams.py)
    expect ...                              as in tests/formats/test_specs.py
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import cramjam

from tests.builders.elfcore import own_address_words
from tests.builders.spectext import filling, number

MAGIC = {"lime": b"EMiL", "avml": b"AVML"}
VERSION = {"lime": 1, "avml": 2}
HEADER = struct.Struct("<4sIQQ8s")
IDENTIFIER = b"\xff\x06\0\0sNaPpY"


def snappy_frames(data: bytes, size: int = 65536) -> bytes:
    """A framed Snappy stream with so many bytes in each frame."""
    stream = IDENTIFIER
    for at in range(0, len(data), size):
        frame = bytes(cramjam.snappy.compress(data[at : at + size]))
        assert frame.startswith(IDENTIFIER)
        stream += frame[len(IDENTIFIER) :]
    return stream


def header(kind: str, start: int, last: int) -> bytes:
    """A range header; ``last`` is the last address in it."""
    return HEADER.pack(MAGIC[kind], VERSION[kind], start, last, bytes(8))


def build_image(kind: str, ranges: list[tuple[int, bytes]]) -> bytes:
    """An image of ranges of memory, each (address, data)."""
    return b"".join(_range(kind, paddr, data, {}) for paddr, data in ranges)


def cut_like_avml(ranges: list[tuple[int, bytes]], most: int = 16 << 20) -> list[tuple[int, bytes]]:
    """Ranges in pieces of 16 MB at most, without those that are zero."""
    pieces = [
        (start + at, data[at : at + most]) for start, data in ranges for at in range(0, len(data), most)
    ]
    return [(start, data) for start, data in pieces if data.count(0) < len(data)]


def _range(kind: str, paddr: int, data: bytes, lies: dict[str, str]) -> bytes:
    head = HEADER.pack(
        bytes.fromhex(lies["magic"]) if "magic" in lies else MAGIC[kind],
        number(lies.get("version", str(VERSION[kind]))),
        number(lies.get("start", str(paddr))),
        number(lies.get("last", str(paddr + len(data) - 1))),
        struct.pack("<Q", number(lies.get("reserved", "0"))),
    )
    if kind == "lime":
        return head + data
    stream = snappy_frames(data, number(lies.get("frames", "65536")))
    if "stream" in lies:
        stream = bytes.fromhex(lies["stream"])
    return head + stream + struct.pack("<Q", number(lies.get("trailer", str(len(stream)))))


@dataclass
class ImageSpec:
    """A parsed spec."""

    image: bytes
    options: dict[str, str]
    expect: list[list[str]] = field(default_factory=list)


def read_image_spec(path: Path) -> ImageSpec:
    """Parse and build a spec file."""
    spec = ImageSpec(b"", {})
    pokes: list[tuple[int, bytes]] = []
    for raw in path.read_text().splitlines():
        line = raw.split("#", 1)[0].strip()
        word, _, rest = line.partition(" ")
        if word == "range":
            pairs = dict(part.split("=", 1) for part in rest.split())
            paddr = number(pairs.pop("paddr"))
            data = filling(pairs.pop("fill"), paddr)
            spec.image += _range(spec.options["format"], paddr, data, pairs)
        elif word == "bytes":
            spec.image += bytes.fromhex(rest)
        elif word == "poke":
            at, _, value = rest.partition(" ")
            pokes.append((number(at), bytes.fromhex(value)))
        elif word == "expect":
            spec.expect.append(rest.split())
        elif line:
            key, _, value = line.partition("=")
            spec.options[key.strip()] = value.strip()
    for at, value in pokes:
        spec.image = spec.image[:at] + value + spec.image[at + len(value) :]
    if "truncate" in spec.options:
        spec.image = spec.image[: number(spec.options["truncate"])]
    return spec


def two_ranges(kind: str) -> bytes:
    """A small image for tests that damage it: 0x1000-0x9000 and 0x100000-0x13a000."""
    return build_image(
        kind, [(0x1000, own_address_words(0x1000, 0x8000)), (0x100000, own_address_words(0x100000, 0x3A000))]
    )
