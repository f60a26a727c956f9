"""Mapped memory placed where the file holds it, against a plain page-by-page account."""

from __future__ import annotations

import random

import numpy as np

from kdump_elftool.elf.layout import Memory
from kdump_elftool.jobs.in_place import place
from kdump_elftool.memory.extents import Extents, normalise

PAGE = 4096


def u64(values) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def memory(*pieces: tuple[int, int, int]) -> Memory:
    columns = [u64(column) for column in zip(*pieces, strict=True)]
    return Memory(*columns, np.arange(len(pieces), dtype=np.intp))


def rows(placed) -> list[tuple[int, ...]]:
    columns = (placed.vaddr, placed.paddr, placed.size, placed.file_offset, placed.rank)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_pieces_are_cut_where_the_file_is_not_contiguous():
    extents = Extents(u64([0x1000, 0x4000]), u64([0x3000, 0x2000]), u64([0x9004, 0x2004]))
    assert rows(place(memory((0xF000, 0x2000, 0x3000)), extents)) == [
        (0xF000, 0x2000, 0x2000, 0xA004, 0),
        (0x11000, 0x4000, 0x1000, 0x2004, 0),
    ]


def test_aliases_share_their_place():
    extents = Extents(u64([0]), u64([0x8000]), u64([0x1000]))
    placed = rows(place(memory((0x10000, 0x2000, 0x1000), (0x20000, 0x2000, 0x1000)), extents))
    assert [row[3] for row in placed] == [0x3000, 0x3000]


def test_every_page_of_random_maps():
    chance = random.Random(20261122)
    for _ in range(200):
        offset, start, where = 0x40, 0, []
        for _ in range(chance.randrange(1, 12)):
            start += chance.randrange(0, 3) * PAGE
            size = chance.randrange(1, 6) * PAGE
            where.append((start, size, offset))
            start += size
            offset += size + chance.choice([0, 0, 0x14A])
        chance.shuffle(where)
        extents = normalise(*(u64(column) for column in zip(*where, strict=True)))
        truth = {
            paddr + done: position + done for paddr, size, position in where for done in range(0, size, PAGE)
        }
        vaddr, pieces = 1 << 40, []
        for _ in range(chance.randrange(1, 8)):
            first = last = chance.choice(sorted(truth))
            while last + PAGE in truth and chance.random() < 0.8:
                last += PAGE
            size = last + PAGE - first
            pieces.append((vaddr, first, size))
            vaddr += size + chance.randrange(0, 2) * PAGE
        expected = {va + done: truth[pa + done] for va, pa, size in pieces for done in range(0, size, PAGE)}
        got = {
            va + done: position + done
            for va, _, size, position, _ in rows(place(memory(*pieces), extents))
            for done in range(0, size, PAGE)
        }
        assert got == expected
