"""Runs of set bits, against a plain loop."""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import diskdump_bitmaps
from kdump_elftool.formats.diskdump_bitmaps import read_runs

SEED = 20261124


def plain(data: bytes, nr_bits: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for bit in range(min(nr_bits, 8 * len(data))):
        if data[bit // 8] >> bit % 8 & 1:
            if runs and runs[-1][1] == bit:
                runs[-1] = (runs[-1][0], bit + 1)
            else:
                runs.append((bit, bit + 1))
    return runs


@pytest.mark.parametrize("step", [1, 3, 64, 1 << 20])
def test_equals_a_plain_loop(tmp_path, monkeypatch, step):
    monkeypatch.setattr(diskdump_bitmaps, "_STEP", step)
    random = Random(SEED)
    maps = [b"", b"\0" * 9, b"\xff" * 9, b"\x80\1", b"\1\x80", b"\0\xff\0", b"\xfe\xff\x7f"]
    maps += [random.randbytes(random.randrange(1, 40)) for _ in range(30)]
    maps += [bytes(random.choice((0, 255, 255, 0, 15)) for _ in range(60)) for _ in range(20)]
    for number, data in enumerate(maps):
        path = tmp_path / str(number)
        path.write_bytes(b"before" + data)
        with InputFile.open(str(path)) as file:
            for nr_bits in {0, 1, 7, 8, 9, 8 * len(data), max(8 * len(data) - 3, 0), 8 * len(data) + 100}:
                runs = read_runs(file, 6, nr_bits)
                found = list(zip(runs.start.tolist(), runs.end.tolist(), strict=True))
                assert found == plain(data, nr_bits), (data.hex(), nr_bits)


def test_a_made_up_bitmap_is_refused_before_it_takes_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(diskdump_bitmaps, "_MOST_EDGES", 1000)
    path = tmp_path / "map"
    path.write_bytes(b"\x55" * 1000)
    with InputFile.open(str(path)) as file, pytest.raises(CorruptDumpError, match="pieces"):
        read_runs(file, 0, 8000)
