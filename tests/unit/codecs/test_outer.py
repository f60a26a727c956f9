"""Compressed files read by offset: every shape against the contents, damage, and bounded means."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
from random import Random

import pytest

from kdump_elftool import spool
from kdump_elftool.addr import NO_RANGES
from kdump_elftool.codecs import index, lzop, outer
from kdump_elftool.codecs.streams import STREAMS, inflate_library
from kdump_elftool.codecs.whole import Held
from kdump_elftool.errors import (
    CorruptDumpError,
    KdumpError,
    MissingCodecError,
    OutputError,
    UnsupportedError,
)
from kdump_elftool.files import InputFile
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.formats.compressed import LAYERS
from tests.builders.streams import (
    COMPRESS,
    SHAPES,
    contents,
    lz4_frame,
    lzop_file,
    xz_in_blocks,
    zlib_stream,
    zstd_frame,
)

SEED = 20261124
PLAIN = contents(3 << 19, SEED)


@pytest.fixture(scope="module", autouse=True)
def said():
    print(f"seed {SEED}")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    files = []

    def open_it(image: bytes):
        path = tmp_path / "dump"
        path.write_bytes(image)
        file = InputFile.open(str(path))
        files.append(file)
        (layer,) = (layer for layer in LAYERS if layer.probe(file.read_at(0, 512)))
        return layer.open(file, OpenOptions())

    yield open_it
    for file in files:
        file.close()


def same_everywhere(source, plain: bytes, reads: int = 60) -> None:
    assert source.size == len(plain)
    assert source.read_at(0, len(plain) + 1) == plain
    random = Random(SEED)
    for _ in range(reads):
        at = random.randrange(len(plain))
        size = random.choice([1, 8, 4096, 700_000])
        assert source.read_at(at, size) == plain[at : at + size]
    assert source.read_at(len(plain), 1) == b""


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("gap", [index.GAP, 1 << 19], ids=["in memory", "spooled"])
def test_reads_like_the_contents(opened, monkeypatch, make, gap):
    monkeypatch.setattr(index, "GAP", gap)
    monkeypatch.setattr(index, "_FIRST_SPACING", 1 << 18)
    monkeypatch.setattr(outer, "_KEPT_CHUNKS", 2)
    source = opened(make(PLAIN))
    assert not source.warnings
    same_everywhere(source, PLAIN)


@pytest.mark.parametrize("name", ["gzip", "gzip, two members", "xz, blocks", "lz4, small blocks", "lzop"])
def test_needs_no_spool(opened, monkeypatch, name):
    """Where reading can begin in the middle, it does: no temporary file however far points lie apart."""
    monkeypatch.setattr(index, "GAP", 1 << 19)
    monkeypatch.setattr(index, "_FIRST_SPACING", 1 << 18)
    monkeypatch.setattr("kdump_elftool.codecs.marks._LZ4_APART", 1 << 16)
    monkeypatch.setattr("kdump_elftool.codecs.lzop._APART", 1 << 16)
    monkeypatch.setattr(spool.Spool, "__init__", lambda *_: pytest.fail("a spool"))
    source = opened(SHAPES[name](PLAIN))
    same_everywhere(source, PLAIN)


@pytest.mark.parametrize("name", ["zstd", "xz", "bzip2", "lz4, linked"])
def test_spool_is_told_sparse_and_gone(opened, monkeypatch, caplog, tmp_path, name):
    monkeypatch.setattr(index, "GAP", 1 << 19)
    plain = bytes(8 << 20) + PLAIN
    source = opened(SHAPES[name](plain))
    assert name.split(",")[0] in caplog.text
    assert str(tmp_path) in caplog.text
    assert os.listdir(tmp_path) == ["dump"]
    status = os.fstat(source._index.spool.fd)
    assert status.st_size == len(plain)
    assert status.st_blocks * 512 < len(plain) - (7 << 20)
    assert status.st_mode & 0o777 == 0o600
    same_everywhere(source, plain)


def test_spool_leaves_room_on_the_disk(opened, monkeypatch):
    monkeypatch.setattr(index, "GAP", 1 << 19)
    monkeypatch.setattr(spool, "_room", lambda fd: (1 << 20, 1 << 30))
    with pytest.raises(OutputError, match="1048576 are free, 67108864 stay so") as caught:
        opened(lzma.compress(PLAIN))
    assert "TMPDIR" in caught.value.hint


def test_few_points_however_long(opened, monkeypatch):
    monkeypatch.setattr(index, "_FIRST_SPACING", 1 << 14)
    monkeypatch.setattr(index, "_OUTPUT", 1 << 12)
    monkeypatch.setattr(index, "_MOST_STATES", 16)
    monkeypatch.setattr("kdump_elftool.codecs.run.STEP", 1 << 10)
    source = opened(gzip.compress(PLAIN, 1))
    assert 8 <= len(source._index.points) <= 17
    same_everywhere(source, PLAIN)


def test_points_are_dropped_around_a_spool(opened, monkeypatch):
    """Small members, one large one, small members: the large one stays in the spool."""
    monkeypatch.setattr(index, "_FIRST_SPACING", 1 << 12)
    monkeypatch.setattr(index, "_MOST_POINTS", 8)
    monkeypatch.setattr(index, "GAP", 1 << 19)
    pieces = [PLAIN[at : at + 8192] for at in range(0, 1 << 18, 8192)] + [PLAIN]
    pieces += [PLAIN[at : at + 8192] for at in range(0, 1 << 18, 8192)]
    source = opened(b"".join(map(COMPRESS["zstd"], pieces)))
    assert len(source._index.points) < 20
    same_everywhere(source, b"".join(pieces))


def test_standard_library_is_enough_for_gzip(opened, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "zlib_ng", None)
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    assert inflate_library().__name__ == "zlib"
    same_everywhere(opened(gzip.compress(PLAIN, 1)), PLAIN)


@pytest.mark.parametrize(
    "name,modules,package",
    [
        ("zstd", ("compression.zstd", "backports.zstd"), "backports.zstd"),
        ("lz4", ("lz4.frame",), "lz4"),
        ("lzop", ("lzallright",), "lzallright"),
    ],
)
def test_missing_package_is_named(opened, monkeypatch, name, modules, package):
    import sys

    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingCodecError, match=package) as caught:
        opened(COMPRESS[name](PLAIN))
    assert "pip install" in caught.value.hint


def test_zlib_is_taken_for_lime_only(opened):
    image = b"EMiL" + PLAIN
    same_everywhere(opened(zlib_stream(image)), image)
    assert not [layer for layer in LAYERS if layer.probe(zlib_stream(PLAIN)[:512])]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESS)
def test_a_bomb_takes_little_memory(opened, monkeypatch, name):
    """Hundreds of megabytes of zeros in a small file: decoded in bounded pieces and kept nowhere."""
    import tracemalloc

    size = 64 << 20 if name in ("bzip2", "xz") else 400 << 20
    image = COMPRESS[name](bytes(size))
    assert len(image) < size // 150
    monkeypatch.setattr(index, "GAP", 1 << 22)
    tracemalloc.start()
    source = opened(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.size == size
    assert peak < 30 << 20
    assert source.read_at(size - 5, 9) == bytes(5)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESS)
def test_truncated_at_200_places(opened, name):
    """What was compressed before the cut can be read, and the cut is told."""
    plain = PLAIN[: 1 << 19]
    image = COMPRESS[name](plain)
    random = Random(SEED)
    found = []
    for cut in sorted({random.randrange(1, len(image)) for _ in range(220)}):
        try:
            source = opened(image[:cut])
        except (KdumpError, ValueError):  # ValueError: too short for any magic number
            found.append(0)
            continue
        assert "early" in source.warnings[0] or "ends within" in source.warnings[0]
        assert source.read_at(0, len(plain)) == plain[: source.size]
        found.append(source.size)
    assert len(found) >= 200
    assert found == sorted(found)
    # one block of bzip2 holds all of this, one of lzop half
    assert found[-1] >= len(plain) // 2 or name == "bzip2"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESS)
def test_bits_flipped_at_2000_places(opened, name, monkeypatch):
    """Right contents, or less of them, or an error; wrong ones never without a warning, and from gzip
    alone, which has nothing but a checksum at the end of a member."""
    plain = PLAIN[: 3 << 13]
    image = COMPRESS[name](plain) + COMPRESS[name](plain)
    random = Random(SEED)
    partial = wrong = 0
    for _ in range(2000):
        bit = random.randrange(8 * len(image))
        damaged = bytearray(image)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            source = opened(bytes(damaged))
        except (KdumpError, ValueError):
            continue
        got = source.read_at(0, 3 * len(plain))
        assert len(got) == source.size
        if got != (plain + plain)[: source.size]:
            wrong += 1
        partial += got != plain + plain
        assert got == plain + plain or source.warnings
    assert partial > 300  # the first of two members is whole
    assert wrong == 0 or name == "gzip"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESS)
def test_damage_costs_what_lies_behind_it(opened, name):
    """Noise in the middle: all before it but a margin is there, and right."""
    tail = contents(3 << 19, SEED + 1)
    plain = PLAIN + Random(SEED).randbytes(6 << 20) + tail
    image = bytearray(COMPRESS[name](plain))
    middle = len(image) - len(COMPRESS[name](tail)) // 2
    image[middle : middle + 100_000] = Random(1).randbytes(100_000)
    source = opened(bytes(image))
    assert "damaged" in source.warnings[0]
    assert "partly wrong" in source.warnings[0]
    assert 1 << 20 < source.size < len(plain) - len(tail) // 4
    assert source.read_at(0, len(plain)) == plain[: source.size]


@pytest.mark.parametrize("name", COMPRESS)
def test_garbage_behind_the_end(opened, name):
    source = opened(COMPRESS[name](PLAIN) + b"some text behind the stream")
    same_everywhere(source, PLAIN, 5)
    assert "27 bytes behind" in source.warnings[0]


@pytest.mark.parametrize(
    "stream", [stream for stream in STREAMS if stream.magics], ids=lambda stream: stream.name
)
def test_magic_alone(opened, stream):
    for extra in (b"", b"\0", bytes(100), b"\xff" * 100):
        with pytest.raises(CorruptDumpError):
            opened(stream.magics[0] + extra)


def test_dictionary_that_takes_too_much(opened, monkeypatch):
    monkeypatch.setattr("kdump_elftool.codecs.streams._MEMORY_LIMIT", 1 << 20)
    with pytest.raises(KdumpError, match="memory"):
        opened(lzma.compress(PLAIN))


def test_xz_index_that_lies(opened, monkeypatch):
    """Blocks that are not where the index puts them: an error, or right contents; never others."""
    import zlib

    monkeypatch.setattr(index, "_FIRST_SPACING", 1 << 16)
    image = bytearray(xz_in_blocks(PLAIN[: 1 << 19], PLAIN[1 << 19 : 1 << 20], PLAIN[1 << 20 :]))
    size = (struct.unpack_from("<I", image, len(image) - 8)[0] + 1) * 4
    start = len(image) - 12 - size
    for at in range(start + 1, start + size - 4):
        damaged = bytearray(image)
        damaged[at] ^= 4
        struct.pack_into("<I", damaged, start + size - 4, zlib.crc32(damaged[start : start + size - 4]))
        try:
            source = opened(bytes(damaged))
            for where in (1 << 20, 1 << 19, 0):
                got = source.read_at(where, 1 << 18)
                assert got == PLAIN[where : where + len(got)]
        except CorruptDumpError:
            continue


def test_more_than_any_machine_has(opened, monkeypatch):
    monkeypatch.setattr(index, "MOST", 1 << 20)
    with pytest.raises(UnsupportedError, match="holds more than"):
        opened(gzip.compress(PLAIN, 1))


def test_lz4_blocks_far_too_many(opened, monkeypatch):
    monkeypatch.setattr("kdump_elftool.codecs.marks._LZ4_STEPS", 5)
    monkeypatch.setattr(index, "_FIRST_SPACING", 1 << 16)
    same_everywhere(opened(lz4_frame(PLAIN, block_size=4)), PLAIN)


def test_many_bad_members_are_a_few_warnings(opened):
    bad = gzip.compress(b"", 1, mtime=0)[:-8] + b"\xff" * 8
    source = opened(gzip.compress(PLAIN, 1) + bad * 8000)
    same_everywhere(source, PLAIN, 5)
    assert len(source.warnings) == 4
    assert all("checksum" in text for text in source.warnings[:3])
    assert "7997 more members" in source.warnings[3]


class OnPartition:
    """An image at the beginning of a partition: a terabyte of zeros behind it, ``tail`` at the very end."""

    path, warnings, missing, size = "dump", (), NO_RANGES, 1 << 40

    def __init__(self, image: bytes, tail: bytes = b"") -> None:
        self.image, self.tail, self.reads, self.bytes = image, tail, 0, 0

    def read_at(self, offset: int, size: int, /) -> bytes:
        size = min(size, self.size - offset)
        self.reads += 1
        self.bytes += size
        assert self.reads < 2000, "zeros in small pieces"
        assert self.bytes < 200 << 20, "far into the partition"
        data = self.image[offset : offset + size].ljust(size, b"\0")
        return data[: size - len(self.tail)] + self.tail if offset + size == self.size else data

    def read_into(self, offset: int, view: memoryview, /) -> None:
        view[:] = self.read_at(offset, len(view))


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("tail", [b"", b"old"])
def test_zeros_behind_a_stream_are_not_gone_through(name, tail):
    """Only what the last bytes of the partition show is told to be there."""
    (layer,) = (layer for layer in LAYERS if layer.probe(COMPRESS[name](PLAIN)[:512]))
    source = layer.open(OnPartition(COMPRESS[name](PLAIN), tail), OpenOptions())
    assert source.read_at(0, len(PLAIN) + 1) == PLAIN
    assert ["no part of it" in text for text in source.warnings] == [True] * bool(tail)


@pytest.mark.parametrize("name", ["xz", "zstd"])
def test_members_with_much_padding_in_between(opened, name):
    make = COMPRESS[name]
    source = opened(make(PLAIN) + bytes((3 << 20) + 16) + make(PLAIN) + bytes(4) + make(PLAIN))
    assert not source.warnings
    same_everywhere(source, PLAIN * 3, 5)


@pytest.mark.parametrize("size", [0, 4])
def test_skippable_frames_without_end(size):
    """Eight bytes each: a file may have any number of them."""
    many = OnPartition(zstd_frame(PLAIN) + (struct.pack("<II", 0x184D2A51, size) + bytes(size)) * 3000)
    (layer,) = (layer for layer in LAYERS if layer.probe(many.image[:512]))
    source = layer.open(many, OpenOptions())
    assert source.read_at(0, len(PLAIN) + 1) == PLAIN
    assert "no part of it" in source.warnings[0]


@pytest.mark.parametrize("name", COMPRESS)
def test_nothing_is_behind_the_end(opened, name):
    """Formats look where the next header should be: that is the end of the file, not an error."""
    source = opened(COMPRESS[name](PLAIN[:1000]))
    assert [source.read_at(at, 32) for at in (1000, 1001, 1 << 40)] == [b""] * 3
    with pytest.raises(CorruptDumpError, match="nothing behind"):
        source.read_into(1001, memoryview(bytearray(1)))


def test_a_file_that_changes(opened, tmp_path):
    source = opened(gzip.compress(PLAIN, 1))
    (tmp_path / "dump").write_bytes(gzip.compress(Random(1).randbytes(len(PLAIN) // 2)))
    with pytest.raises(KdumpError, match=r"cannot be now|longer when"):
        source.read_at(len(PLAIN) - 100_000, 100_000)


@pytest.mark.parametrize(
    "at,new,why",
    [
        (9 + 6, b"\x80", "not supported"),  # the method
        (9 + 10, b"\x08", "not supported"),  # a filter
        (9 + 20, b"\1", "wrong checksum"),  # the time
        (38, b"\0\x10\0\1", "that holds 0x100001"),
        (38 + 4, b"\0\4\0\1", "block of 0x40001"),
        (38 + 4, bytes(4), "block of 0x0"),
    ],
)
def test_lzop_headers_that_lie(opened, at, new, why):
    image = bytearray(lzop_file(PLAIN))
    image[at : at + len(new)] = new
    with pytest.raises(CorruptDumpError, match=why):
        opened(bytes(image))


def test_lzop_block_that_is_wrong(opened):
    """What is before it counts, whether it does not decode or only fails its checksum."""
    image = lzop_file(PLAIN * 4)
    for at, value in ((len(image) - 200, 0), (len(image) // 2, image[len(image) // 2] ^ 1)):
        damaged = bytearray(image)
        damaged[at] = value if damaged[at] != value else 1
        source = opened(bytes(damaged))
        assert "damaged" in source.warnings[0]
        assert source.read_at(0, source.size) == (PLAIN * 4)[: source.size]
        assert source.size > len(PLAIN)


def test_lzop_files_in_a_row_are_not_read_again_and_again():
    """Each may be a few bytes long."""
    read = []

    class Counted(Held):
        def read_at(self, offset: int, size: int, /) -> bytes:
            data = super().read_at(offset, size)
            read.append(len(data))
            return data

    image = lzop_file(PLAIN[:100]) * 1000 + lzop_file(PLAIN, block=1 << 16, name=b"n" * 255)
    assert list(lzop.blocks(Counted("dump", image)))
    assert sum(read) < 10 * len(image)
