"""Flattened dumps that were cut or damaged anywhere: what is there is right, or something is said.

Every 8-byte word of the memory in them is its own physical address, so a byte in a wrong place shows.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from kdump_elftool.errors import FormatError
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from tests.builders.dumps import BytesFile
from tests.builders.elfcore import CoreSpec, SegmentSpec, build_core, own_address_words
from tests.builders.flattened import HEADER, Record, cut_up, even, flatten
from tests.builders.notes import x86_64_prstatus

SEED = 20261124
RANGES = ((0x1000, 0x23000), (0x100000, 0x10000), (0x1234000, 0x4000))
CORE = build_core(
    CoreSpec([SegmentSpec(at, own_address_words(at, size)) for at, size in RANGES], [x86_64_prstatus(1, {})])
)
TOTAL = sum(size for _, size in RANGES)


def layouts() -> dict[str, list[Record]]:
    """The same dump in different records."""
    random = Random(SEED)
    odd = cut_up(CORE, [random.randrange(1, len(CORE)) for _ in range(90)])
    shuffled = odd[:]
    random.shuffle(shuffled)
    # as makedumpfile -E -F: ELF header, program headers, data in one size, the notes at last
    front = cut_up(CORE[:0x1000], [64, 64 + 4 * 56])
    bulk = [Record(0x1000 + r.offset, r.data) for r in even(CORE[0x1000:], 8192)]
    return {"makedumpfile": [front[0], *bulk, front[1], front[2]], "odd": odd, "shuffled": shuffled,
            "pages": even(CORE, 4096), "one": [Record(0, CORE)]}  # fmt: skip


LAYOUTS = layouts()


def opened(image: bytes) -> Dump | None:
    """The dump, or None when it is refused by a clear error."""
    try:
        return open_dump(BytesFile(image))
    except FormatError as error:
        assert error.message
        assert error.hint
        return None


def wrong_bytes(dump: Dump) -> int:
    """Bytes that are there and are not what they should be."""
    wrong = 0
    for start, size in zip(
        dump.memory.extents.start.tolist(), dump.memory.extents.size.tolist(), strict=True
    ):
        size = min(size, 1 << 22)  # a damaged header may say anything about zeros
        found = np.frombuffer(dump.memory.read(start, size), dtype=np.uint8)
        wrong += int(np.count_nonzero(found != np.frombuffer(own_address_words(start, size), dtype=np.uint8)))
    return wrong


def present(dump: Dump) -> int:
    return dump.memory.present().total


@pytest.mark.parametrize("name", LAYOUTS)
def test_whole(name):
    dump = opened(flatten(LAYOUTS[name]))
    assert (present(dump), wrong_bytes(dump), dump.lost, dump.warnings) == (TOTAL, 0, (), ())
    assert [note.name for note in dump.notes] == [b"CORE"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_cut_at_200_places(name):
    image = flatten(LAYOUTS[name])
    random = Random(SEED)
    borders = np.cumsum([HEADER] + [16 + len(record.data) for record in LAYOUTS[name]]).tolist()
    places = {random.choice(borders) + random.randrange(-20, 20) for _ in range(60)}
    places |= {random.randrange(len(image)) for _ in range(200)}
    places |= {*range(len(image) - 17, len(image)), 0, 1, 16, 32, HEADER - 1, HEADER, HEADER + 16}
    shares = []
    for cut in sorted(place for place in places if 0 <= place < len(image))[-220:]:
        dump = opened(image[:cut])
        if dump is None:
            shares.append(0)
            continue
        assert wrong_bytes(dump) == 0, hex(cut)
        assert dump.warnings
        shares.append(present(dump))
        assert shares[-1] == TOTAL or dump.lost
    assert len(shares) >= 200
    assert max(shares) == TOTAL, "without the end mark alone nothing is lost"
    if name != "makedumpfile":  # the program headers come near the end there
        assert len(set(shares)) > (1 if name == "shuffled" else 50)


def test_2000_bit_flips():
    """A flipped bit in a record's header never puts a byte to a wrong place without a word."""
    random = Random(SEED)
    print("seed", SEED)
    seen: Counter[str] = Counter()
    for turn in range(2000):
        records = LAYOUTS[("makedumpfile", "odd", "shuffled", "pages")[turn % 4]]
        image = bytearray(flatten(records))
        headers = np.cumsum([HEADER] + [16 + len(record.data) for record in records]).tolist()
        bit = 8 * random.choice(headers) + random.randrange(128)
        if turn % 10 == 0:
            bit = random.randrange(HEADER * 8) if turn % 20 else random.randrange(256)
        image[bit // 8] ^= 1 << bit % 8
        dump = opened(bytes(image))
        if dump is None:
            seen["refused"] += 1
            continue
        wrong = wrong_bytes(dump)
        kind = "right" if not wrong else "wrong"
        kind += ", said" if dump.warnings or dump.lost else ", silent"
        if wrong and kind.endswith("silent"):
            print(hex(bit // 8), bit % 8, wrong, turn % 4)
        seen[kind] += 1
    print(dict(seen))
    assert seen["wrong, silent"] == 0
    # an offset that is wrong but possible: the record's own place is zeros, as makedumpfile -R has it
    assert seen["wrong, said"] < 1000
    assert seen["right, said"] > 500


def test_2000_bit_flips_anywhere():
    """No exception but errors that say what is wrong, and bounded work."""
    random = Random(SEED + 1)
    print("seed", SEED + 1)
    image = bytearray(flatten(LAYOUTS["makedumpfile"]))
    for _ in range(2000):
        bit = random.randrange(8 * len(image))
        image[bit // 8] ^= 1 << bit % 8
        dump = opened(bytes(image))
        if dump is not None:
            dump.memory.read(int(dump.memory.extents.start[0]), 64)
        image[bit // 8] ^= 1 << bit % 8
