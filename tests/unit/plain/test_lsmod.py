"""Rows of lsmod: the seed's, and those of /proc/modules."""

from __future__ import annotations

import pytest

from kdump_elftool.plain.lsmod import all_columns, seed_lines
from kdump_elftool.plain.modules import Module

HOSTILE = b"\x1b]0;x\x07\nshell id"


def module(name: bytes, vaddr: int, **others: object) -> Module:
    told = {"state": 0, "base": vaddr - 0x1000, "size": 4096, "regions": (), "references": 0, "users": ()}
    told |= {"taints": 0, "version": None, "percpu": 0, "data": b""}
    return Module(vaddr=vaddr, name=name, **{**told, **others})


MODULES = [
    module(b"ext4", 0xFFFFFFFFC0402000, size=946176, references=1),
    module(b"mbcache", 0xFFFFFFFFC0302000, references=1, users=(b"ext4",)),
    module(b"odd", 0xFFFFFFFFC0202000, references=None, users=None, state=2, taints=1 | 1 << 12),
    module(HOSTILE, 0xFFFFFFFFC0102000, users=(HOSTILE, b"y")),
]


def test_the_seeds_columns():
    assert list(seed_lines(MODULES, 8)) == [
        "Name                 Base Addr          Module Data",
        "ext4                 0xffffffffc0401000 ((struct module *) 0xffffffffc0402000)",
        "mbcache              0xffffffffc0301000 ((struct module *) 0xffffffffc0302000)",
        "odd                  0xffffffffc0201000 ((struct module *) 0xffffffffc0202000)",
        r"\x1b]0;x\x07\x0ashell id 0xffffffffc0101000 ((struct module *) 0xffffffffc0102000)",
    ]


@pytest.mark.parametrize("word", [4, 8])
def test_they_fit_a_terminal(word):
    assert max(map(len, seed_lines(MODULES[:3], word))) <= 80


def test_of_32_bits():
    (_, line) = seed_lines([module(b"ext4", 0xBF001000)], 4)
    assert line == "ext4                 0xbf000000 ((struct module *) 0xbf001000)"


def test_all_columns():
    assert list(all_columns(MODULES, 8)) == [
        "Module                   Size Refs State     Base Addr          Used by",
        "ext4                   946176    1 Live      0xffffffffc0401000 -",
        "mbcache                  4096    1 Live      0xffffffffc0301000 ext4",
        "odd                      4096    - Unloading 0xffffffffc0201000 - (PO)",
        r"\x1b]0;x\x07\x0ashell id     4096    0 Live      0xffffffffc0101000 \x1b]0;x\x07\x0ashell id,y",
    ]
