"""Damaged kdump-compressed dumps, in process: a page is right or absent, or there is one clear error.

zlib carries a checksum, so no flip of a single bit, wherever it is, may show as a wrong byte: not even in
the bitmaps, where it would make each page another one.
"""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from random import Random

import pytest

from kdump_elftool.addr import NO_RANGES
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.builders.diskdump import KdumpSpec, PageSpec, Placed, build_kdump_map, own_pages
from tests.builders.elfcore import own_address_words
from tests.builders.notes import vmcoreinfo_note, x86_64_prstatus

SEED = 20261124
PAGE = 4096
FLIPS = 2000
CUTS = 200
NOTES = (x86_64_prstatus(1), x86_64_prstatus(2), vmcoreinfo_note("OSRELEASE=6.1\nPAGESIZE=4096\n"))


def spec_of(*codecs: str) -> KdumpSpec:
    """Runs of pages at odd places, one codec after the other."""
    pages = []
    for number in range(12):
        start = 0x20 + number * 23
        pages += own_pages(start, start + 9 + number % 4, codecs[number % len(codecs)])
    return KdumpSpec(pages=pages, ram=[(0x20, 0x150)], notes=NOTES)


@pytest.fixture(params=["zlib", "lzo", "snappy", "zstd", "raw", "mixed", "big"])
def case(request) -> tuple[str, Placed]:
    name = request.param
    if name == "big":
        spec = replace(spec_of("zlib"), big_endian=True, machine="s390x")
    elif name == "mixed":
        spec = spec_of("zlib", "lzo", "snappy", "zstd", "raw")
    else:
        spec = spec_of(name)
    return name, build_kdump_map(spec)


class InMemory:
    """A dump without a file: thousands of them are opened here."""

    warnings: tuple[str, ...] = ()
    missing = NO_RANGES

    path = "dump"

    def __init__(self, image: bytes) -> None:
        self.image, self.size = image, len(image)

    def read_at(self, offset: int, size: int) -> bytes:
        return self.image[offset : offset + size]

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.image[offset : offset + len(view)]


def outcome(image: bytes, *, exact: bool) -> int | None:
    """Pages that can be read; None for an error.  With ``exact`` each must be the page it should be."""
    file = InMemory(image)
    try:
        dump = open_dump(file)
    except KdumpError as error:
        assert error.hint
        assert "\n" not in error.message
        return None
    present = dump.memory.present()
    assert present.total <= 1 << 24
    total = 0
    for start, end in zip(present.start.tolist(), present.end.tolist(), strict=True):
        view = memoryview(bytearray(end - start))
        holes = dump.memory.read_present(start, view)
        for low, high in holes:
            assert not any(view[low:high])
            assert dump.memory.trouble(start + low).why
        total += end - start - sum(high - low for low, high in holes)
        if exact:
            done = 0
            for low, high in [*holes, (end - start, end - start)]:
                assert view[done:low] == own_address_words(start + done, low - done), hex(start + done)
                done = high
    missing = dump.memory.absent().total
    assert not missing or dump.lost, "what is missing has a reason"
    return total // PAGE


def test_flipped_bits(case):
    name, placed = case
    whole = outcome(placed.image, exact=name != "big")
    assert whole == 126
    random = Random(SEED)
    print(f"seed {SEED}")
    counts = []
    for number in range(FLIPS // 7):
        image = bytearray(placed.image)
        top = placed.data if number % 3 else len(image)
        at = random.randrange(top)
        image[at] ^= 1 << random.randrange(8)
        counts.append(outcome(bytes(image), exact=name == "zlib"))
    assert sum(count == whole for count in counts) > FLIPS // 7 // 3, "much of the headers does not matter"
    assert any(count is not None and whole // 2 < count < whole for count in counts)


def test_every_bit_of_the_second_bitmap():
    placed = build_kdump_map(spec_of("zlib"))
    for bit in range(0x1C0):
        image = bytearray(placed.image)
        image[placed.bitmaps + 4096 + bit // 8] ^= 1 << bit % 8
        count = outcome(bytes(image), exact=True)
        assert count is None or count <= 126


def test_every_bit_of_a_descriptor():
    placed = build_kdump_map(spec_of("zlib"))
    for bit in range(16 * 8):
        image = bytearray(placed.image)
        image[placed.descriptors + 24 * 40 + bit // 8] ^= 1 << bit % 8
        assert outcome(bytes(image), exact=True) in (125, 126)


def test_truncated(case):
    name, placed = case
    random = Random(SEED)
    cuts = sorted({random.randrange(len(placed.image)) for _ in range(CUTS // 4)} | {0, 1, 8, 463, 464, 4096})
    counts = [outcome(placed.image[:cut], exact=name != "big") or 0 for cut in cuts]
    assert counts == sorted(counts)
    assert counts[-1] > 100


def test_absurd_sizes_cost_nothing():
    """Every 32-bit word of the header and every field of the sub-header at its largest."""
    placed = build_kdump_map(spec_of("zlib"))
    for at in [*range(8, 12, 4), *range(424, 464, 4), *range(4096, 4096 + 104, 4)]:
        for value in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"):
            image = bytearray(placed.image)
            image[at : at + 4] = value
            outcome(bytes(image), exact=True)


class Terabyte:
    """A dump of 2**28 frames that is nowhere: every page is there, and all share one zero page."""

    warnings: tuple[str, ...] = ()
    missing = NO_RANGES

    path = "terabyte"
    frames = 1 << 28

    def __init__(self) -> None:
        counts = {"bitmap_blocks": 2 * self.frames // 8 // PAGE, "max_mapnr": self.frames}
        sub = {"max_mapnr_64": self.frames}
        page = PageSpec(0, b"x" * PAGE)
        placed = build_kdump_map(KdumpSpec(pages=[page], notes=NOTES, head=counts, sub=sub))
        self.head = placed.image[: placed.bitmaps]
        self.descriptors = placed.bitmaps + self.frames // 4
        self.data = self.descriptors + 24 * self.frames
        self.entry = struct.pack("<QIIQ", self.data, PAGE, 0, 0)
        self.size = self.data + PAGE
        self.read = 0

    def read_at(self, offset: int, size: int) -> bytes:
        size = max(min(size, self.size - offset), 0)
        self.read += size
        if offset < len(self.head):
            return self.head[offset : offset + size]
        if offset < self.descriptors:
            return b"\xff" * size
        if offset < self.data:
            skip = (offset - self.descriptors) % 24
            return (self.entry * (size // 24 + 2))[skip : skip + size]
        return bytes(size)

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read_at(offset, len(view))


def test_a_terabyte_opens_in_a_moment():
    """268 million frames: bits are read and some descriptors, and no page is an object."""
    file = Terabyte()
    tracemalloc.start()
    dump = open_dump(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dump.memory.declared.total == dump.memory.present().total == 1 << 40
    assert peak < 32 << 20
    assert file.read < 100 << 20
    assert dump.memory.read((1 << 40) - PAGE, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("value", [2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1])
def test_absurd_words_in_a_real_file(tmp_path, value):
    """Offsets and sizes beyond what the kernel takes: sub-header and a descriptor."""
    placed = build_kdump_map(spec_of("zlib"))
    path = tmp_path / "dump"
    for at in [*range(4096, 4096 + 104, 4), *range(placed.descriptors + 240, placed.descriptors + 264, 4)]:
        path.write_bytes(placed.image[:at] + value.to_bytes(8, "little") + placed.image[at + 8 :])
        with InputFile.open(str(path)) as file:
            try:
                dump = open_dump(file)
            except KdumpError as error:
                assert error.hint
                continue
            present = dump.memory.present()
            for start, end in zip(present.start.tolist(), present.end.tolist(), strict=True):
                view = memoryview(bytearray(end - start))
                holes = [*dump.memory.read_present(start, view), (end - start, end - start)]
                done = 0
                for low, high in holes:
                    assert view[done:low] == own_address_words(start + done, low - done)
                    done = high
