"""Line tables of DWARF 2 to 5 with opcodes of every kind, in either byte order.

Independent of the package under test: only ``struct`` and the standard, DWARF 5, 6.2.4 and 6.2.5 (DWARF 4 the
same, without the descriptions of names).
"""

from __future__ import annotations

import random
import struct

from tests.builders.dwarf import sleb, uleb

LENGTHS = bytes([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
"""Operands of the standard opcodes 1 to 12."""
TRAP = bytes([9, 0, 9, 2]) + uleb(8 << 21 | 0x1234)
"""fixed_advance_pc and advance_pc, whose bytes look like the beginning of a set_address."""


def extended(opcode: int, data: bytes = b"") -> bytes:
    return b"\0" + uleb(1 + len(data)) + bytes([opcode]) + data


def set_address(address: int, order: str, word: int) -> bytes:
    return extended(2, struct.pack(f"{order}{'Q' if word == 8 else 'I'}", address))


def sequence(rng: random.Random, address: int, order: str, word: int, count: int = 40) -> bytes:
    """One address, then opcodes of every kind."""
    body = set_address(address, order, word)
    for _ in range(count):
        body += rng.choice(
            [
                bytes([rng.randrange(13, 256)]),
                b"\1",
                b"\2" + uleb(rng.randrange(1 << rng.randrange(1, 20))),
                b"\3" + sleb(rng.randrange(-(1 << 20), 1 << 20)),
                b"\4" + uleb(rng.randrange(1, 3)),
                b"\5" + uleb(rng.randrange(300)),
                rng.choice([b"\6", b"\7", b"\x08", b"\x0a", b"\x0b"]),
                b"\x09" + struct.pack(f"{order}H", rng.randrange(1 << 16)),
                b"\x0c" + uleb(rng.randrange(4)),
                extended(4, uleb(rng.randrange(300))),
                # of no standard, but passed over by its length
                extended(0x80, set_address(address, order, word) * rng.randrange(9)),
                TRAP,
            ]
        )
    return body + extended(1)


def table(
    program: bytes, version: int, order: str, word: int, *, lengths: bytes = LENGTHS, name: bytes = b"a.c"
) -> bytes:
    """A whole line table, whose names stand in it."""
    if version == 5:
        # one directory, and the file twice: 0 is the unit's own, rows begin with 1
        names = bytes([1, 1, 8, 1]) + b"/src\0" + bytes([1, 1, 8, 2]) + (name + b"\0") * 2
    else:
        names = b"\0" + name + b"\0\0\0\0" + b"\0"
    limits = bytes([1, *([1] if version >= 4 else []), 1, 0xFB, 14, len(lengths) + 1]) + lengths
    head = struct.pack(f"{order}I", len(limits + names)) + limits + names
    sizes = bytes([word, 0]) if version == 5 else b""
    body = struct.pack(f"{order}H", version) + sizes + head + program
    return struct.pack(f"{order}I", len(body)) + body
