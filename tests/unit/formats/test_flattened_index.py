"""The cache of a flattened file's records: instant the second time, and never believed blindly."""

from __future__ import annotations

import os
import struct
from random import Random

import pytest

from kdump_elftool.cache import Cache
from kdump_elftool.files import InputFile
from kdump_elftool.formats import flattened, flattened_index
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.formats.flattened import open_flattened
from kdump_elftool.formats.flattened_records import scan
from tests.builders.flattened import END, Record, cut_up, flatten, rearranged

SEED = 20261124
OPTIONS = OpenOptions(use_cache=True)
CONTENT = Random(SEED).randbytes(3000)
RECORDS = [*cut_up(CONTENT, range(211, 3000, 211)), Record(100, b"later")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A file of few records that counts as large and old, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(flattened_index, "SMALLEST", 0)
    monkeypatch.setattr(flattened_index, "WORTH", 1)
    path = tmp_path / "flat"
    write(path, flatten(RECORDS))
    return path


def write(path, image: bytes, when: int = 1_000_000) -> None:
    path.write_bytes(image)
    os.utime(path, (when, when))


def entries(place) -> list[str]:
    directory = place.parent / "cache" / "kdump-elftool"
    return [name for name in os.listdir(directory) if not name.startswith(".")] if directory.exists() else []


def contents(place, options=OPTIONS) -> bytes:
    with InputFile.open(str(place)) as file:
        source = open_flattened(file, options)
        return source.read_at(0, source.size)


@pytest.fixture
def scans(monkeypatch):
    """How many times the records were looked for."""
    seen = []

    def counted(source, advance):
        seen.append(source.path)
        return scan(source, advance)

    monkeypatch.setattr(flattened, "scan", counted)
    return seen


def test_the_second_time_nothing_is_looked_for(place, scans):
    expected = rearranged(RECORDS)
    assert [contents(place), contents(place)] == [expected, expected]
    assert len(scans) == 1
    assert len(entries(place)) == 1


def test_another_content_is_looked_at_anew(place, scans):
    contents(place)
    other = [Record(0, b"x" * 5000)]
    write(place, flatten(other), 1_000_001)
    assert contents(place) == rearranged(other)
    assert len(scans) == 2


def test_another_content_behind_the_same_name_size_and_time(place, scans):
    """Somebody set the time back: the headers that are looked up tell."""
    contents(place)
    other = [*RECORDS[:-2], Record(40, RECORDS[-2].data), RECORDS[-1]]
    before = os.stat(place)
    write(place, flatten(other))
    assert (os.stat(place).st_size, os.stat(place).st_ino) == (before.st_size, before.st_ino)
    assert contents(place) == rearranged(other)
    assert len(scans) == 2


@pytest.mark.parametrize("end", [b"", END[:15], b"\1" * 16])
def test_a_stream_that_is_not_whole_is_not_remembered(place, end):
    write(place, flatten(RECORDS, end=end))
    contents(place)
    assert entries(place) == []


def test_what_has_just_been_written_is_not_remembered(place):
    os.utime(place)
    contents(place)
    assert entries(place) == []


def test_nothing_is_kept_unless_asked_for(place):
    contents(place, OpenOptions())
    assert entries(place) == []


def test_small_files_and_few_records_are_not_worth_it(place, monkeypatch):
    monkeypatch.setattr(flattened_index, "WORTH", 1000)
    contents(place)
    monkeypatch.setattr(flattened_index, "WORTH", 1)
    monkeypatch.setattr(flattened_index, "SMALLEST", 1 << 30)
    contents(place)
    assert entries(place) == []


def test_without_a_home(place, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    assert contents(place) == rearranged(RECORDS)


def test_an_entry_that_lies_is_not_believed(place):
    """Every entry is put there with a right checksum: flipped bits, cuts, absurd counts."""
    contents(place)
    (key,) = entries(place)
    random = Random(SEED)
    with Cache.open() as cache, InputFile.open(str(place)) as file:
        good = cache.get(key)
        true = scan(file)
        lies = [good[:cut] for cut in range(len(good))]
        for _ in range(1000):
            lie = bytearray(good)
            lie[random.randrange(len(lie))] ^= 1 << random.randrange(8)
            lies.append(bytes(lie))
        counts = (0, 1, len(true) - 1, len(true) + 1, 2**26, 2**32, 2**64 - 1)
        lies += [struct.pack("<Q", count) + good[8:] for count in counts]
        believed = 0
        for lie in lies:
            cache.put(key, lie)
            found = flattened_index.recall(cache, key, file)
            if found is not None:
                believed += 1
                assert found.start.tolist() == true.start.tolist()
                assert found.size.tolist() == true.size.tolist()
                assert (found.next_at, found.stop) == (true.next_at, true.stop)
        assert believed < len(lies) // 10, "bits that mean nothing to zlib"


def test_the_file_was_cut_since(place):
    contents(place)
    (key,) = entries(place)
    os.truncate(place, 4096 + 500)
    with Cache.open() as cache, InputFile.open(str(place)) as file:
        assert flattened_index.recall(cache, key, file) is None
