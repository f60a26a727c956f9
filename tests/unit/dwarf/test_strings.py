"""Names compared by their hashes: equal ones and no others are the same."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from kdump_elftool.dwarf.strings import Lookup, Names, ends

WORDS = [b"", b"a", b"aa", b"ab", b"ba", b"aaa", b"init_task", b"init_tasl", b"\xff", b"a" * 500]


@pytest.mark.parametrize("at_once", [1 << 20, 600, 7])
def test_equal_names_have_equal_hashes(monkeypatch, at_once):
    """In whatever pieces they are computed, and wherever in a text the names are."""
    monkeypatch.setattr("kdump_elftool.dwarf.strings._AT_ONCE", at_once)
    rows = [*range(len(WORDS)), *reversed(range(len(WORDS)))]
    hashes = Names.of([WORDS[row] for row in rows]).hashes()
    text = b"\0".join(WORDS)
    begin = np.cumsum([0, *(len(word) + 1 for word in WORDS[:-1])])
    inside = Names.terminated(text, ends(text), begin).hashes()
    assert len(set(hashes.tolist())) == len(WORDS)
    assert hashes.tolist() == [*inside.tolist(), *inside[::-1].tolist()]


@pytest.mark.parametrize("at_once", [1 << 20, 600, 7])
def test_names_packed_anew(monkeypatch, at_once):
    monkeypatch.setattr("kdump_elftool.elf.symfile._AT_ONCE", at_once)
    text, places = Names.of(WORDS).take(np.array([6, 0, 9, 1, 1])).packed()
    assert text == b"\0".join([WORDS[6], WORDS[0], WORDS[9], WORDS[1], WORDS[1]]) + b"\0"
    assert places.tolist() == [0, 10, 11, 512, 514]
    assert Names.of([]).packed()[0] == b""


def test_what_is_before_a_dot():
    names = Names.of([b"panic", b"f.cold", b".Lone", b"g.isra.0.cold", b"h.", b""])
    rows, stems = names.stems()
    assert rows.tolist() == [1, 3, 4]
    assert [stems[row] for row in range(len(stems))] == [b"f", b"g", b"h"]


def test_many_names_in_one_place_take_no_more_room(monkeypatch):
    """A string section without NULs, and every record's name is its start."""
    monkeypatch.setattr("kdump_elftool.dwarf.strings._AT_ONCE", 1 << 16)
    text = b"x" * (1 << 16)
    names = Names.terminated(text, ends(text), np.zeros(1 << 12, dtype=np.intp))
    tracemalloc.start()
    hashes = names.hashes()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20, "2 million letters of 8 bytes each are more"
    assert len(np.unique(hashes)) == 1
    assert Lookup.of(names).first(hashes[:1])[1].tolist() == [1 << 12]
