"""Pages of a migration stream against the plain reference: one record after the other, by its head alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from unittest import mock

import pytest

from kdump_elftool.errors import CorruptDumpError, UnsupportedError
from kdump_elftool.formats import migration_pages, migration_structs
from kdump_elftool.formats.migration_pages import Ram
from kdump_elftool.formats.migration_structs import Cursor, StreamEnds
from tests.builders.dumps import BytesFile
from tests.builders.migration import CONTINUE, DATA, EOS, ZERO, block_list, page

PAGE = 4096
SIZE = 200 * PAGE
LIST = block_list({"pc.ram": SIZE})
BODY = b"\x28\x22" * (PAGE // 2)
"""All of it looks like flags."""


def plain(image: bytes) -> tuple[dict[int, int | None], int | None]:
    """Where each page of the records behind the list is last; the offset of the first that is none."""
    at, found = len(LIST), {}
    while at + 8 <= len(image):
        head = int.from_bytes(image[at : at + 8], "big")
        flags = head % PAGE
        if flags == EOS:
            return found, None
        body = at + 8 if flags & CONTINUE else at + 8 + len(b"\6pc.ram")
        if flags & ~CONTINUE not in (ZERO, DATA) or head - flags >= SIZE:
            return found, at
        end = body + (PAGE if flags & DATA else 1)
        if end > len(image):
            return found, None
        if flags & ZERO and image[body]:
            return found, body
        found[head - flags] = body if flags & DATA else None
        at = end
    return found, None


def read(image: bytes) -> tuple[dict[int, int | None], int | None]:
    cursor = Cursor(BytesFile(image))
    ram = Ram(frozenset)
    try:
        ram.read_section(cursor)
    except StreamEnds:
        pass
    except (CorruptDumpError, UnsupportedError) as error:
        return {}, error.file_offset
    found: dict[int, int | None] = {}
    columns = (column.tolist() for column in ram.columns("pc.ram"))
    for start, size, position in zip(*columns, strict=True):
        for offset in range(0, size, PAGE):
            found[start + offset] = None if position == (1 << 64) - 1 else position + offset
    return found, None


def mixture(random: Random, zeros: float, count: int) -> list[bytes]:
    kinds = [random.random() < zeros for _ in range(count)]
    offsets = random.sample(range(0, SIZE, PAGE), 40)
    rows = []
    for number, kind in enumerate(kinds):
        offset = random.choice(offsets) if random.random() < 0.5 else number % 200 * PAGE
        rows.append(page(offset, None if kind else BODY, None if number else "pc.ram"))
    return rows


@contextmanager
def small(random: Random) -> Iterator[None]:
    """Windows, batches and first looks that end within what is read here."""
    with ExitStack() as changes:
        for module, name, values in (
            (migration_structs, "_WINDOW", [300, 4994, 70_001, 16 << 20]),
            (migration_structs, "_FIRST_WINDOW", [64, 4994, 1 << 16]),
            (migration_pages, "_MOST_MIXED", [1, 7, 50, 1 << 16]),
            (migration_pages, "_PATTERN_LOOK", [16, 64]),
            (migration_pages, "_WITHOUT_PATTERN", [1, 3, 16]),
            (migration_pages, "_BATCH", [1, 60, 8192]),
        ):
            changes.enter_context(mock.patch.object(module, name, random.choice(values)))
        yield


ZEROS = [0.02, 0.25, 0.5, 0.75, 0.95, 1]
CUTS = [-1, 0, 1, 7, 8, 9, 2000]
SEED = 20261129


@pytest.mark.parametrize("seed", range(40))
def test_random_mixtures_and_cuts(seed):
    random = Random(SEED + seed)
    rows = mixture(random, random.choice(ZEROS), random.randrange(20, 150))
    image = LIST + b"".join(rows) + struct.pack(">Q", EOS)
    last = random.randrange(1, len(rows) + 1)
    near = len(LIST) + len(b"".join(rows[:last]))
    for end in (len(image), *(near + cut for cut in CUTS)):
        pages, bad = plain(image[:end])
        assert bad is None
        with small(random):
            assert read(image[:end]) == (pages, None)


@pytest.mark.parametrize("what", ["flags", "offset", "fill"])
@pytest.mark.parametrize("seed", range(40))
def test_the_first_wrong_record_is_named(seed, what):
    random = Random(SEED + seed)
    rows = mixture(random, random.choice(ZEROS), random.randrange(2, 150))
    wrong = random.randrange(1, len(rows))
    if what == "fill":
        rows[wrong] = page(0, None)[:-1] + b"\7"
    else:
        (head,) = struct.unpack_from(">Q", rows[wrong])
        bad = head ^ random.choice([1, 0x80, 0x100, 0x800]) if what == "flags" else head + SIZE
        rows[wrong] = struct.pack(">Q", bad) + rows[wrong][8:]
    image = LIST + b"".join(rows) + struct.pack(">Q", EOS)
    at = plain(image)[1]
    assert at is not None
    with small(random):
        assert read(image) == ({}, at)
