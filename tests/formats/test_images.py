"""LiME and AVML images: every spec in ``images/``, and images damaged at thousands of places."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest

from kdump_elftool import errors
from kdump_elftool.addr import u64
from kdump_elftool.errors import KdumpError, PageAbsentError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from tests.builders.elfcore import own_address_words
from tests.builders.images import build_image, read_image_spec, snappy_frames, two_ranges
from tests.builders.streams import COMPRESS, zlib_stream
from tests.formats.test_specs import check

SPECS = sorted((Path(__file__).parent / "images").glob("*.spec"))
SEED = 20261124


@pytest.fixture
def dump_of(tmp_path):
    files = []

    def build(image: bytes, options: OpenOptions = OpenOptions()) -> Dump:
        path = tmp_path / "dump"
        path.write_bytes(image)
        files.append(InputFile.open(str(path)))
        return open_dump(files[-1], "auto", options)

    yield build
    for file in files:
        file.close()


def test_there_are_specs_and_each_expects_something():
    assert len(SPECS) >= 40
    assert not [path.name for path in SPECS if not read_image_spec(path).expect]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spec(path, dump_of):
    spec = read_image_spec(path)
    image = spec.image
    if "outer" in spec.options:
        image = {**COMPRESS, "zlib": zlib_stream}[spec.options["outer"]](image)
    options = OpenOptions(zero_excluded=["option", "zero_excluded"] in spec.expect)
    wanted = [words for words in spec.expect if words[0] != "option"]
    failures = [words for words in wanted if words[0] == "error"]
    if failures:
        (words,) = failures
        with pytest.raises(KdumpError) as caught:
            dump_of(image, options)
        assert isinstance(caught.value, getattr(errors, words[1]))
        assert caught.value.hint
        assert all(word.replace("~", " ") in caught.value.message for word in words[2:])
        return
    dump = dump_of(image, options)
    assert dump.format == spec.options["format"]
    for words in wanted:
        check(dump, words[0], words[1:])


def test_machine_is_the_users(dump_of):
    assert dump_of(two_ranges("lime"), OpenOptions(e_machine=183)).e_machine == 183


def right_bytes(dump: Dump) -> int:
    """Every byte that can be read is its own address's; returns how many there are."""
    total = 0
    present = dump.memory.present()
    for start, end in zip(present.start.tolist(), present.end.tolist(), strict=True):
        assert end - start < 1 << 20
        view = bytearray(end - start)
        holes = dump.memory.read_present(start, memoryview(view))
        whole = bytearray(own_address_words(start & ~7, end - start + 8)[start & 7 :][: end - start])
        for begin, stop in holes:
            whole[begin:stop] = bytes(stop - begin)
        assert view == whole
        total += end - start - sum(stop - begin for begin, stop in holes)
    return total


@pytest.mark.parametrize("kind", ["lime", "avml"])
def test_truncated_at_200_places(dump_of, kind):
    image = two_ranges(kind)
    total = right_bytes(dump_of(image))
    assert total == 0x42000
    random = Random(SEED)
    found = []
    print(f"seed {SEED}")
    for cut in sorted({*range(70), *(random.randrange(len(image)) for _ in range(200))}):
        try:
            dump = dump_of(image[:cut])
        except KdumpError as error:
            assert error.hint
            found.append(0)
            continue
        held = right_bytes(dump)
        found.append(held)
        missing = sum(int((lost.ranges.end - lost.ranges.start).sum()) for lost in dump.lost)
        assert held + missing == dump.memory.declared.total
        assert missing == 0 or "truncated at file offset" in dump.lost[0].why
    assert len(found) > 200
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] > total // 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lime", "avml"])
def test_bits_flipped_at_2000_places(dump_of, kind):
    """AVML's frames have checksums: what can be read is right, wherever its header says that it was.

    Of LiME only headers can be told from memory.
    """
    data = own_address_words(0x1000, 0x3000)
    image = build_image(kind, [(0x1000, data), (0x10000, own_address_words(0x10000, 0x11000))])
    headers = [at for at in range(len(image) - 32) if image[at : at + 4] in (b"EMiL", b"AVML")]
    assert len(headers) == 2
    random = Random(SEED)
    print(f"seed {SEED}")
    partial = 0
    for number in range(2000):
        bit = random.randrange(8 * len(image)) if kind == "avml" and number % 2 else (
            8 * random.choice(headers) + random.randrange(8 * 32)
        )  # fmt: skip
        damaged = bytearray(image)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            dump = dump_of(bytes(damaged))
        except KdumpError as error:
            assert error.hint
            continue
        moved = any(8 * (at + 8) <= bit < 8 * (at + 24) for at in headers)
        blocks, readable = dump.memory.gather(u64([0x1000, 0x2000, 0x10000, 0x20000]), 4096)
        if not moved:
            for block, good, paddr in zip(blocks, readable, (0x1000, 0x2000, 0x10000, 0x20000), strict=True):
                assert block.tobytes() == (own_address_words(paddr, 4096) if good else bytes(4096))
        partial += not readable.all()
    assert partial > 200


def test_a_damaged_frame_is_absent_with_a_reason(dump_of):
    image = bytearray(two_ranges("avml"))
    at = image.index(b"AVML", 40) + 32 + 10 + 200
    image[at : at + 8] = bytes(8)
    dump = dump_of(bytes(image))
    with pytest.raises(PageAbsentError, match="Snappy frame"):
        dump.memory.read(0x100000, 8)
    assert dump.memory.read(0x110000, 0x1000) == own_address_words(0x110000, 0x1000)
    assert dump.memory.read(0x1000, 0x8000) == own_address_words(0x1000, 0x8000)
    _, readable = dump.memory.gather(u64([0x10FFF8, 0x110000, 0x10FFFC]), 8)
    assert readable.tolist() == [False, True, False]


def test_ranges_without_number(dump_of, monkeypatch):
    monkeypatch.setattr("kdump_elftool.formats.lime.MOST_RANGES", 5)
    monkeypatch.setattr("kdump_elftool.formats.avml_frames.MOST_RANGES", 5)
    for kind in ("lime", "avml"):
        ranges = [(paddr, own_address_words(paddr, 0x1000)) for paddr in range(0x1000, 0x10000, 0x2000)]
        dump = dump_of(build_image(kind, ranges))
        assert dump.memory.present().total == 0x5000
        assert "more than 5 ranges" in dump.warnings[0]


def test_stream_starts_anew_within_a_range(dump_of):
    """Old versions of AVML flush in the middle of a range."""
    data = own_address_words(0x1000, 0x4000)
    stream = snappy_frames(data[:0x2000]) + snappy_frames(data[0x2000:])
    image = struct.pack("<4sIQQQ", b"AVML", 2, 0x1000, 0x4FFF, 0) + stream + struct.pack("<Q", len(stream))
    dump = dump_of(image)
    assert dump.memory.read(0x1000, 0x4000) == data
    assert not dump.warnings
