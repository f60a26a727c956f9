"""Frames by arm64 instructions, which are GNU as's; tests/lab has whole kernels and their compilers' word."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel.arm64_frames import arm64_frames
from kdump_elftool.kernel.code_frames import Base, CodeFrames

AT = 0xFFFF800081000000
SP, FP, REGISTERS = Base.SP, Base.FP, Base.REGISTERS_FP
PUSHED = {
    0xD503233F: "paciasp",
    0xA9BD7BFD: "stp x29, x30, [sp, #-48]!",
    0x910003FD: "mov x29, sp",
    0xF9000BF3: "str x19, [sp, #16]",
    0x94000010: "bl",
    0xF9400BF3: "ldr x19, [sp, #16]",
    0xA8C37BFD: "ldp x29, x30, [sp], #48",
    0xD50323BF: "autiasp",
    0xD65F03C0: "ret",
    0x52800020: "mov w0, #1",
    0x17FFFFFA: "b",
}
IN_ROOM = {
    0xD101C3FF: "sub sp, sp, #112",
    0xA9047BFD: "stp x29, x30, [sp, #64]",
    0x910103FD: "add x29, sp, #64",
    0x94000010: "bl",
    0xA9447BFD: "ldp x29, x30, [sp, #64]",
    0x9101C3FF: "add sp, sp, #112",
    0xD65F03C0: "ret",
}
LEAF = [0xD10083FF, 0x910083FF, 0xD65F03C0]
"""sub sp, sp, #32; add sp, sp, #32; ret"""
ENTRY = [0x910003E0, 0x94000004, 0x14000004]
"""mov x0, sp; bl; b"""
THUNK = [0xD63F0260, 0xD503201F]
"""blr x19; nop"""


def rows(
    code: list[int], *starts: int, entries: tuple[int, ...] = (), registers: int | None = 280
) -> list[tuple]:
    """As (instruction, base, offset, record)."""
    where = [u64([AT + 4 * start for start in each]) for each in (starts, entries)]
    found = arm64_frames(np.array(code, dtype=np.uint32), AT, *where, registers)
    return shown(found)


def shown(found: CodeFrames) -> list[tuple]:
    columns = ((found.ip - np.uint64(AT)) // np.uint64(4), found.base, found.offset, found.record)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_a_pair_that_is_pushed() -> None:
    assert rows(list(PUSHED), 0) == [
        (0, SP, 0, 0),
        (2, SP, 48, 48),
        (3, FP, 48, 48),
        (7, SP, 0, 0),
        (9, FP, 48, 48),
    ]


def test_a_pair_within_room_for_locals() -> None:
    assert rows(list(IN_ROOM), 0) == [
        (0, SP, 0, 0),
        (1, SP, 112, 0),
        (2, SP, 112, 48),
        (3, FP, 48, 48),
        (5, SP, 112, 0),
        (6, SP, 0, 0),
    ]


def test_a_function_that_calls_no_other() -> None:
    assert rows(LEAF, 0) == [(0, SP, 0, 0), (1, SP, 32, 0), (2, SP, 0, 0)]


def test_one_that_calls_without_a_pair_is_in_the_frame_of_another() -> None:
    assert rows(THUNK, 0) == [(0, FP, 16, 16)]


def test_the_code_that_enters_the_kernel_has_all_registers() -> None:
    assert rows(ENTRY, 0, entries=(0,)) == [(0, REGISTERS, -280, 0)]
    assert rows(ENTRY, 0, entries=(0,), registers=None) == [(0, FP, 16, 16)]
    # of that name, but in C
    assert rows(list(PUSHED), 0, entries=(0,))[0] == (0, SP, 0, 0)


def test_each_function_by_itself() -> None:
    code = [*LEAF, *list(PUSHED), *THUNK]
    assert rows(code, 0, 3, 3 + len(PUSHED)) == [
        *rows(LEAF, 0),
        *[(3 + at, *rest) for at, *rest in rows(list(PUSHED), 0)],
        (3 + len(PUSHED), FP, 16, 16),
    ]


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF, 0xA9BD7BFD, 0xA8C37BFD, 0xD101C3FF, 0xD65F03C0])
def test_nonsense(word: int) -> None:
    found = rows([word] * 1000, *range(0, 1000, 7))
    assert found
    assert all(0 <= offset <= 1 << 16 for _, _, offset, _ in found)
    assert rows([]) == []
