"""Banners of kernels as distributions build them, and what only begins like one."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.banner import banners, build_of, release_of
from tests.unit.kernel.kernelspace import BASE, ROOM, KernelSpace

REAL = {
    b"Linux version 6.1.0-21-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0, GNU "
    b"ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.90-1 (2024-05-03)\n": (
        b"6.1.0-21-amd64",
        b"#1 SMP PREEMPT_DYNAMIC Debian 6.1.90-1 (2024-05-03)",
    ),
    b"Linux version 5.15.0-generic (buildd@lcy02 #7) (gcc (Ubuntu 11.4.0) 11.4.0) #93-Ubuntu SMP Tue\n": (
        b"5.15.0-generic",
        b"#93-Ubuntu SMP Tue",
    ),
    b"Linux version 6.1.0 (me@here) (gcc 12) # SMP\n": (b"6.1.0", None),
}
"""uname -r and uname -v."""


@pytest.mark.parametrize("at", [0, (4 << 20) - 100, ROOM - 500])
@pytest.mark.parametrize("text", REAL)
def test_texts(at, text):
    space = KernelSpace()
    space.data[at : at + len(text)] = text
    assert set(banners(space.virtual(), (BASE, BASE + ROOM))) == {(BASE + at, text)}
    assert (release_of(text), build_of(text)) == REAL[text]


@pytest.mark.parametrize(
    "text",
    [b"Linux version %s (%s)\n", b"Linux version 6.1.0 (me)", b"Linux version 6.1\x1b (me) #1\n", b""],
)
def test_what_is_none(text):
    space = KernelSpace()
    space.data[64 : 64 + len(text)] = text
    found = dict(banners(space.virtual(), (BASE, BASE + ROOM)))
    assert [build_of(each) for each in found.values()] in ([], [None])


def test_a_memory_full_of_beginnings_ends_soon():
    space = KernelSpace()
    begin = b"Linux version x ("
    space.data[:] = (begin * (ROOM // len(begin) + 1))[:ROOM]
    text = next(iter(REAL))
    space.data[ROOM - 1000 : ROOM - 1000 + len(text) + 1] = text + b"\0"
    assert list(banners(space.virtual(), (BASE, BASE + ROOM))) == [], "behind more than any memory has"
