"""Prologues as compilers write them, encoded by hand."""

from __future__ import annotations

import pytest

from kdump_elftool.gdbside.arm64_prologue import record_distance

PACIASP, MOV_X29_SP, RET = 0xD503233F, 0x910003FD, 0xD65F03C0
STP_32 = 0xA9BE7BFD  # stp x29, x30, [sp, #-32]!
STP_AT_16 = 0xA9017BFD  # stp x29, x30, [sp, #16]
SUB_64 = 0xD10103FF  # sub sp, sp, #64
SUB_4096 = 0xD14007FF  # sub sp, sp, #1, lsl #12
SUB_REGISTER = 0xCB3063FF  # sub sp, sp, x16
STP_X19_16 = 0xA9BF53F3  # stp x19, x20, [sp, #-16]!
STR_X19_16 = 0xF81F0FF3  # str x19, [sp, #-16]!
STP_X19_AT_16 = 0xA90153F3  # stp x19, x20, [sp, #16]


@pytest.mark.parametrize(
    ("code", "distance"),
    [
        ([PACIASP, STP_32, MOV_X29_SP, STP_X19_AT_16], 32),
        ([PACIASP, SUB_64, STP_AT_16], 48),
        ([PACIASP, SUB_4096, SUB_64, STP_AT_16], 4096 + 48),
        ([STP_X19_16, STP_32], 48),
        ([STR_X19_16, STP_32], 48),
        ([SUB_64, STP_X19_AT_16, STP_AT_16, SUB_64], 48),
        ([STP_AT_16], None),
        ([SUB_REGISTER, STP_AT_16], None),
        ([PACIASP, RET], None),
        ([], None),
    ],
)
def test_distance(code, distance):
    assert record_distance(code) == distance
