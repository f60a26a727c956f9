"""Call frames: pyelftools reads the same, and nonsense has no row."""

from __future__ import annotations

import io
import random
import struct

import pytest
from elftools.dwarf.callframe import CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from kdump_elftool.gdbside.call_frames import CallFrames, Row

SEED = 20261124
START = 0xFFFF800008010000


def uleb(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def entry(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % 8)  # DW_CFA_nop
    return struct.pack("<I", len(body)) + body


def cie(version: int = 1, augmentation: bytes = b"", program: bytes = b"\x0c\x1f\x00") -> bytes:
    """Code by 4, data by -8, return address x30; at first the CFA is sp."""
    head = struct.pack("<IB", 0xFFFFFFFF, version) + augmentation + b"\0"
    return entry(head + (b"\x08\x00" if version >= 4 else b"") + b"\x04\x78\x1e" + program)


def fde(program: bytes, start: int = START, size: int = 0x100, at: int = 0) -> bytes:
    return entry(struct.pack("<IQQ", at, start, size) + program)


def row(program: bytes, pc: int = START + 0xFF, **how) -> Row | None:
    return CallFrames(cie(**how) + fde(program)).row(pc)


FRAME = b"\x41\x2d\x41\x0e\x20\x9d\x04\x9e\x03"
"""paciasp; stp x29, x30, [sp, #-32]!"""


@pytest.mark.parametrize("version", [1, 3, 4])
def test_a_function_with_a_frame(version):
    frames = CallFrames(cie(version) + fde(FRAME))
    assert frames.row(START) == frames.row(START + 7) == Row(31, 0, {})
    assert frames.row(START + 8) == frames.row(START + 0xFF) == Row(31, 32, {29: -32, 30: -24})
    assert frames.row(START - 1) is None
    assert frames.row(START + 0x100) is None


def test_the_way_out_is_put_back():
    """remember; x30 and x29 restored, CFA as at first; what comes behind the return as before."""
    whole = FRAME + b"\x43\x0a\xde\xdd\x0e\x00\x41\x0b"
    frames = CallFrames(cie() + fde(whole))
    assert frames.row(START + 19) == Row(31, 32, {29: -32, 30: -24})
    assert frames.row(START + 20) == Row(31, 0, {})
    assert frames.row(START + 24) == Row(31, 32, {29: -32, 30: -24})


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (b"\x0d\x1d\x0e\x10", Row(29, 16, {})),  # def_cfa_register, def_cfa_offset
        (b"\x05\x13\x04", Row(31, 0, {19: -32})),  # offset_extended
        (b"\x11\x13\x7f", Row(31, 0, {19: 8})),  # offset_extended_sf
        (b"\x93\x04\x08\x13", Row(31, 0, {})),  # same_value
        (b"\x93\x04\x06\x13", Row(31, 0, {})),  # restore_extended
        (b"\x02\x01\x0e\x08\x03\xff\xff\x0e\x10", Row(31, 8, {})),  # advance_loc1, advance_loc2 past the pc
    ],
)
def test_other_operations(program, expected):
    assert row(program) == expected


@pytest.mark.parametrize(
    "program",
    [
        b"\x0f\x02\x8f\x00",  # def_cfa_expression
        b"\x07\x13",  # undefined
        b"\x3f",
        b"\x0b",  # restore_state of nothing
        b"\x0a" * 17,
        b"\x0e" + b"\xff" * 12,
    ],
)
def test_what_is_not_known_has_no_row(program):
    assert row(program) is None


def test_augmented_and_foreign_ones_have_none():
    assert row(FRAME, augmentation=b"zR") is None
    assert CallFrames(cie() + fde(FRAME, at=5000)).row(START) is None
    assert CallFrames(cie() + fde(FRAME, at=len(cie()))).row(START) is None


@pytest.mark.parametrize("cut", [0, 3, 4, 10, 30, 50])
def test_a_section_that_ends_early(cut):
    assert CallFrames((cie() + fde(FRAME))[:cut]).row(START) is None


def test_lengths_that_lie():
    whole = bytearray(cie() + fde(FRAME))
    for length in (0, 1, 0xFFFFFFFF, 0xFFFFFFEF):
        struct.pack_into("<I", whole, len(cie()), length)
        assert CallFrames(bytes(whole)).row(START) is None


def random_program(chance: random.Random) -> bytes:
    """Operations as compilers put them."""
    out, depth = bytearray(), 0
    for _ in range(chance.randrange(30)):
        register = chance.randrange(19, 31)
        kinds = [
            bytes([0x40 + chance.randrange(1, 8)]),
            b"\x02" + bytes([chance.randrange(1, 8)]),
            bytes([0x80 + register]) + uleb(chance.randrange(200)),
            bytes([0xC0 + register]),
            b"\x0c" + uleb(chance.choice((29, 31))) + uleb(chance.randrange(500)),
            b"\x0d" + uleb(chance.choice((29, 31))),
            b"\x0e" + uleb(chance.randrange(500)),
            b"\x0a",
            b"\x0b",
        ]
        chosen = chance.choice(kinds)
        depth += (chosen == b"\x0a") - (chosen == b"\x0b")
        if depth < 0:
            depth = 0
            continue
        out += chosen
    return bytes(out)


def test_rows_are_those_of_pyelftools():
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    compared = 0
    for _ in range(300):
        data = cie(chance.choice((1, 3))) + fde(random_program(chance), size=0x1000)
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        judge = CallFrameInfo(io.BytesIO(data), len(data), 0, structs)
        table = judge.get_entries()[1].get_decoded().table
        frames = CallFrames(data)
        ends = [line["pc"] for line in table[1:]] + [START + 0x1000]
        for line, following in zip(table, ends, strict=True):
            if following == line["pc"]:
                continue
            saved = {
                key: rule.arg for key, rule in line.items() if isinstance(key, int) and rule.type == "OFFSET"
            }
            wanted = Row(line["cfa"].reg, line["cfa"].offset, saved)
            assert frames.row(line["pc"]) == frames.row(following - 1) == wanted
            compared += 1
    assert compared > 1000
