"""LiME and AVML images in flattened and compressed streams that did not arrive whole.

What is there is right, and what the ranges lack is named as lost, whether it is in the middle or at the end.
"""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.errors import CorruptDumpError, KdumpError
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from tests.builders.dumps import BytesFile
from tests.builders.elfcore import own_address_words
from tests.builders.flattened import Record, even, flatten
from tests.builders.images import build_image, header, two_ranges
from tests.builders.streams import COMPRESS
from tests.formats.test_images import right_bytes

SEED = 20261124
TOTAL = 0x42000
KINDS = ("lime", "avml")


def opened(image: bytes) -> Dump | None:
    try:
        return open_dump(BytesFile(image))
    except KdumpError as error:
        assert error.hint
        return None


def share(dump: Dump | None) -> int:
    """Bytes that can be read; they are right, and all that the ranges lack is named."""
    if dump is None:
        return 0
    held = right_bytes(dump)
    assert held == dump.memory.present().total, "nothing turns out to be missing only when it is read"
    lost = sum(part.ranges.total for part in dump.lost)
    assert held + lost == dump.memory.declared.total
    assert held == TOTAL or dump.warnings
    return held


@pytest.mark.parametrize("order", ["in turns", "backwards", "shuffled"])
@pytest.mark.parametrize("kind", KINDS)
def test_flattened_cut_at_200_places(kind, order):
    records = even(two_ranges(kind), 1024)
    random = Random(SEED)
    if order == "backwards":
        records.reverse()
    elif order == "shuffled":
        random.shuffle(records)
    image = flatten(records)
    assert share(opened(image)) == TOTAL
    cuts = sorted({random.randrange(len(image)) for _ in range(210)})
    found = [share(opened(image[:cut])) for cut in cuts]
    assert len(found) > 190
    if order == "in turns":
        assert found == sorted(found)
        assert found[-1] > TOTAL * 3 // 4
    if order == "shuffled":
        # a range of AVML is lost from the first gap on, with all that gives it a length
        assert len({held for held in found if 0 < held < TOTAL}) > (5 if kind == "lime" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_record_lost(kind):
    records = even(two_ranges(kind), 512)
    kept = []
    for number in range(len(records) - 1):
        dump = opened(flatten(records[:number] + records[number + 1 :], end=b""))
        kept.append(share(dump))
        assert number == 0 or dump is not None
        assert dump is None or any("end mark" in warning for warning in dump.warnings)
    # the beginning, and for LiME the second header too, without which nothing behind it can be told
    assert sum(held < TOTAL // 2 for held in kept) < (3 if kind == "lime" else len(kept))
    assert max(kept) >= TOTAL - (512 if kind == "lime" else 0x10000)


@pytest.mark.parametrize("kind", KINDS)
def test_beginning_lost(kind):
    (_, *rest) = even(two_ranges(kind), 512)
    with pytest.raises(CorruptDumpError, match="its beginning is missing") as caught:
        open_dump(BytesFile(flatten(rest, end=b"")))
    assert "end mark" in str(caught.value.hint)


def test_lime_header_lost():
    """It is not taken for the end of the file."""
    first = build_image("lime", [(0x1000, own_address_words(0x1000, 0x1000))])
    rest = own_address_words(0x8000, 0x1000)
    dump = opened(flatten([Record(0, first), Record(len(first) + 32, rest)], end=b""))
    assert dump is not None
    assert right_bytes(dump) == 0x1000
    assert any("missing" in warning and f"{len(first):#x}" in warning for warning in dump.warnings)


def test_avml_goes_on_behind_a_wide_gap():
    """A gap of a terabyte is stepped over, not looked through."""
    first = header("avml", 0x1000, 0x4FFF)
    second = build_image("avml", [(0x8000, own_address_words(0x8000, 0x1000))])
    dump = opened(flatten([Record(0, first), Record(1 << 40, second)], end=b""))
    assert dump is not None
    assert right_bytes(dump) == 0x1000
    assert [(lost.why, lost.ranges.total) for lost in dump.lost] == [("missing at file offset 0x20", 0x4000)]


@pytest.mark.parametrize("outer", COMPRESS)
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_and_cut(kind, outer):
    image = COMPRESS[outer](two_ranges(kind))
    random = Random(SEED)
    cuts = sorted(random.randrange(len(image)) for _ in range(40))
    found = [share(opened(image[:cut])) for cut in cuts]
    assert found == sorted(found)
    # one block holds all of this
    assert outer in ("bzip2", "lzop", "zstd") or any(0 < held < TOTAL for held in found)
    assert share(opened(image)) == TOTAL


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_in_a_flattened_stream(kind):
    """What is missing in the middle of the compressed data ends them: said with the place."""
    packed = COMPRESS["gzip"](two_ranges(kind))
    records = even(packed, 512)
    middle = len(records) // 2
    dump = opened(flatten(records[:middle] + records[middle + 1 :], end=b""))
    assert 0 < share(dump) < TOTAL
    assert dump is not None
    assert any(f"ends early, at file offset {512 * middle:#x}" in warning for warning in dump.warnings)
