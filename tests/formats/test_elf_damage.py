"""Damaged ELF cores, in process: what can be read has its reason, or there is one clear error."""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from tests.builders.dumps import BytesFile
from tests.builders.elfcore import CoreSpec, SegmentSpec, build_core, own_address_words
from tests.builders.notes import vmcoreinfo_note, x86_64_prstatus

SEED = 20261124
RANGES = ((0x1000, 0x3000), (0x100000, 0x4000), (0x1234000, 0x2000))
TOTAL = sum(size for _, size in RANGES)


def core(**kind) -> bytes:
    loads = [SegmentSpec(at, own_address_words(at, size)) for at, size in RANGES]
    return build_core(CoreSpec(loads, [x86_64_prstatus(1), vmcoreinfo_note("OSRELEASE=6.1\n")], **kind))


def share(dump: Dump) -> int:
    """Bytes that can be read; each that is declared and is not there has a reason."""
    present = dump.memory.present()
    for start, end in zip(present.start.tolist(), present.end.tolist(), strict=True):
        assert dump.memory.read_present(start, memoryview(bytearray(min(end - start, 1 << 20)))) == []
    absent = dump.memory.absent().total
    assert not absent or sum(lost.ranges.total for lost in dump.lost) >= absent
    return present.total


def outcome(image: bytes) -> int | None:
    try:
        return share(open_dump(BytesFile(image)))
    except KdumpError as error:
        assert error.hint
        assert "\n" not in error.message
        return None


def test_truncated_at_200_places():
    image = core()
    assert outcome(image) == TOTAL
    random = Random(SEED)
    cuts = sorted({*range(70), *(random.randrange(len(image)) for _ in range(210))})
    shares = [outcome(image[:cut]) or 0 for cut in cuts]
    assert len(cuts) > 200
    assert shares == sorted(shares)
    assert shares[-1] > TOTAL // 2


def test_bits_flipped_at_2000_places():
    image = core()
    first = image.index(own_address_words(0x1000, 64))
    random = Random(SEED)
    print(f"seed {SEED}")
    counts = []
    for number in range(2000):
        damaged = bytearray(image)
        bit = random.randrange(8 * (first if number % 4 else len(image)))
        damaged[bit // 8] ^= 1 << bit % 8
        counts.append(outcome(bytes(damaged)))
    assert any(count is None for count in counts)
    assert sum(count == TOTAL for count in counts) > 500


@pytest.mark.parametrize("value", [2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1])
def test_absurd_words_in_a_real_file(tmp_path, value):
    """Every word of the headers, one after the other; offsets go to the kernel here."""
    image = core()
    end = image.index(own_address_words(0x1000, 64))
    path = tmp_path / "dump"
    for at in range(16, min(end, 64 + 4 * 56), 8):
        path.write_bytes(image[:at] + value.to_bytes(8, "little") + image[at + 8 :])
        with InputFile.open(str(path)) as file:
            try:
                share(open_dump(file))
            except KdumpError as error:
                assert error.hint
