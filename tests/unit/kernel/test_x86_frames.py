"""Frames by prologues of x86 functions with a frame pointer, 32 and 64 bits."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel.code_frames import Base
from kdump_elftool.kernel.x86_frames import x86_frames

AT = 0xC1000000
SP, FP, REGISTERS = Base.SP, Base.FP, Base.REGISTERS
MOVE = {4: b"\x89\xe5", 8: b"\x48\x89\xe5"}
HEADS = {
    "nothing": b"",
    "ftrace": b"\x0f\x1f\x44\x00\x00",
    "ftrace of i386": b"\x3e\x8d\x74\x26\x00",
    "ftrace, called": b"\xe8\x12\x34\x56\x78",
    "endbr": b"\xf3\x0f\x1e\xfa",
    "endbr and ftrace": b"\xf3\x0f\x1e\xfa\xe8\n\n\n\n",
}


def rows(code: bytes, *starts: int, entry: tuple[int, int] | None = None, word: int = 4) -> list[tuple]:
    where = None if entry is None else (AT + entry[0], AT + entry[1])
    found = x86_frames(code, AT, u64([AT + start for start in starts]), where, word)
    columns = (found.ip - np.uint64(AT), found.base, found.offset, found.record)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("word", MOVE)
@pytest.mark.parametrize("head", HEADS)
def test_a_frame_pointer(head: str, word: int) -> None:
    code = HEADS[head] + b"\x55" + MOVE[word] + b"\x83\xec\x10\xc9\xc3"
    pushed = len(HEADS[head]) + 1
    assert rows(code, 0, word=word) == [
        (0, SP, word, 0),
        (pushed, SP, 2 * word, 2 * word),
        (pushed + len(MOVE[word]), FP, 2 * word, 2 * word),
    ]


def test_others() -> None:
    """A function without a frame pointer, the entry, one with, one that is cut off."""
    parts = (b"\x31\xc0\xc3", b"\x89\xe0\xe8\0\0\0\0", b"\x55\x89\xe5\xc9\xc3")
    code = b"".join(part.ljust(16, b"\x90") for part in parts) + b"\x55"
    assert rows(code, 0, 16, 32, 48, entry=(16, 32)) == [
        (0, FP, 8, 8),
        (16, REGISTERS, 0, 0),
        (32, SP, 4, 0),
        (33, SP, 8, 8),
        (35, FP, 8, 8),
        (48, FP, 8, 8),
    ]


def test_code_that_keeps_no_frame_pointer() -> None:
    """Where one function in a hundred happens to begin like one that does."""
    functions = [b"\x31\xc0\xc3".ljust(16, b"\x90")] * 99 + [b"\x55\x89\xe5\xc9\xc3".ljust(16, b"\x90")]
    found = rows(b"".join(functions), *range(0, 1600, 16))
    assert {base for _, base, _, _ in found} == {Base.UNDEFINED}
    assert {base for _, base, _, _ in rows(b"", 0)} == {Base.UNDEFINED}
