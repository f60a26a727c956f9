"""kdump-compressed dumps in flattened streams, as makedumpfile -F and QEMU send them, cut and damaged.

Pages are compressed by zlib, whose checksum tells when a record went to a wrong place: each page is
right or absent.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kdump_elftool.formats import open_dump
from tests.builders.diskdump import build_kdump_map
from tests.builders.dumps import BytesFile
from tests.builders.flattened import END, HEADER, Record, cut_up, flatten
from tests.formats.test_kdump_damage import outcome, spec_of

SEED = 20261124
PAGES = 126
PLACED = build_kdump_map(spec_of("zlib"))
IMAGE = PLACED.image


def in_turns() -> list[Record]:
    """Header, sub-header, bitmaps; then descriptors before the pages they are of, in turns."""
    front = cut_up(IMAGE[: PLACED.descriptors], [464, 4096, 4200, PLACED.bitmaps, PLACED.bitmaps + 4096])
    # what pads a block is in no record
    records = [record for record in front if record.offset != 464]
    for first in range(0, PAGES, 10):
        last = min(first + 10, PAGES)
        begin, end = PLACED.descriptors + 24 * first, PLACED.descriptors + 24 * last
        records.append(Record(begin, IMAGE[begin:end]))
        low = PLACED.offsets[first]
        high = PLACED.offsets[last] if last < PAGES else len(IMAGE)
        records.append(Record(low, IMAGE[low:high]))
    return records


RECORDS = in_turns()


def test_whole():
    assert outcome(flatten(RECORDS), exact=True) == PAGES


def test_order_does_not_matter():
    shuffled = RECORDS[:]
    Random(SEED).shuffle(shuffled)
    assert outcome(flatten(shuffled), exact=True) == PAGES


@pytest.mark.parametrize("way", ["in turns", "shuffled"])
def test_cut_at_200_places(way):
    random = Random(SEED)
    records = RECORDS[:]
    if way == "shuffled":
        random.shuffle(records)
    image = flatten(records)
    cuts = sorted({random.randrange(len(image)) for _ in range(200)})
    counts = [outcome(image[:cut], exact=True) or 0 for cut in cuts]
    if way == "in turns":
        assert counts == sorted(counts)
        assert len(set(counts)) > 20, "more and more of it"
    assert counts[-1] > PAGES // 2
    assert outcome(image[: -len(END)], exact=True) == PAGES


@pytest.mark.parametrize("gap", [(24 * 40, 24 * 44), (24 * 40 + 4, 24 * 43 + 20), (24 * 40 + 20, 24 * 44)])
def test_descriptors_lost(gap):
    """They cost their own pages, not those whose descriptors stand behind them."""
    low, high = (PLACED.descriptors + at for at in gap)
    image = flatten([Record(0, IMAGE[:low]), Record(high, IMAGE[high:])], end=b"")
    assert outcome(image, exact=True) == PAGES - 4
    (lost,) = [lost for lost in open_dump(BytesFile(image)).lost if "descriptor" in lost.why]
    assert f"its descriptor is missing at file offset {PLACED.descriptors + 24 * 40:#x}" in lost.why
    assert lost.ranges.total == 4 * 4096


def test_page_data_lost():
    low, high = PLACED.offsets[40], PLACED.offsets[44]
    image = flatten([Record(0, IMAGE[:low]), Record(high, IMAGE[high:])], end=b"")
    assert outcome(image, exact=True) == PAGES - 4
    memory = open_dump(BytesFile(image)).memory
    start, end = int(memory.present().start[0]), int(memory.present().end[-1])
    holes = memory.read_present(start, memoryview(bytearray(end - start)))
    why = {memory.trouble(start + hole).why for hole, _ in holes}
    assert f"missing at file offset {low:#x}" in why


def test_flipped_bits_in_record_headers():
    random = Random(SEED)
    print("seed", SEED)
    headers = np.cumsum([HEADER] + [16 + len(record.data) for record in RECORDS]).tolist()
    whole = flatten(RECORDS)
    counts: list[int | None] = []
    misplaced = 0
    for _ in range(500):
        image = bytearray(whole)
        bit = 8 * random.choice(headers) + random.randrange(128)
        image[bit // 8] ^= 1 << bit % 8
        try:
            counts.append(outcome(bytes(image), exact=True))
        except AssertionError:
            # the second bitmap a few bytes further on: as many pages, each another one
            (warning,) = open_dump(BytesFile(bytes(image))).warnings
            assert "is a record's offset damaged?" in warning
            misplaced += 1
    assert misplaced < 5
    assert any(count is None for count in counts)
    assert sum(count is not None and 0 < count < PAGES for count in counts) > 100
