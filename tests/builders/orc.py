"""ORC tables in every form, from text.

A line is an address, what the frame is and where things are::

    0x1000 call sp+8                 the caller's stack pointer is rsp + 8, rbp its own
    0x1004 call bp+16 rbp=cfa-16     it counts from rbp, which is saved 16 below it
    0x1008 call (sp)+8               rsp points to the old stack pointer
    0x100c call (bp-8) rbp=bp-16     a saved stack pointer at rbp - 8, rbp itself at rbp - 16
    0x1010 regs sp+0 signal          struct pt_regs at rsp; an interrupt
    0x1014 iret di-8 signal          the frame of the CPU at rdi - 8
    0x1018 end                       the outermost frame
    0x101c undefined                 nothing is known

The forms are those of arch/x86/include/asm/orc_types.h: v4.14 (end: v4.18), v6.3, v6.4 and v7.1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

OLD_REGISTERS = {
    "": 0,
    "cfa": 1,
    "dx": 2,
    "di": 3,
    "bp": 4,
    "sp": 5,
    "r10": 6,
    "r13": 7,
    "(bp)": 8,
    "(sp)": 9,
}
OLD_REGISTERS["ax"] = 10  # where the support of clang's choice was carried back to
NEW_REGISTERS = {"": 0, "ax": 1, "dx": 2, "sp": 3, "bp": 4, "di": 5, "r10": 6, "r13": 7, "cfa": 8}
NEW_REGISTERS |= {"(sp)": 9, "(bp)": 10}
FORMS = ("v4.14", "v6.3", "v6.4", "v7.1")
HEADERS = {
    "v6.3": "db84aed4103b31dd51e017f8f79783ca985c2c51",
    "v6.4": "fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24",
    "v7.1": "137c36ad7627c4dd55932176bb0ecdbd5041fc82",
}
_KINDS = ("call", "regs", "iret")
_PLACE = re.compile(r"(\(sp\)|\(bp|\w+?)([+-]\d+)\)?$")


@dataclass(frozen=True)
class Row:
    """One entry; ``sp`` and ``rbp`` are register names, "" for none."""

    ip: int
    kind: str
    sp: str = ""
    sp_offset: int = 0
    rbp: str = ""
    rbp_offset: int = 0
    signal: bool = False

    def flags(self, form: str) -> int:
        """The last 16 bits of struct orc_entry."""
        registers = NEW_REGISTERS if form == "v7.1" else OLD_REGISTERS
        bits = registers[self.sp] | registers[self.rbp] << 4
        frame = _KINDS.index(self.kind) if self.kind in _KINDS else 0
        if form in ("v6.4", "v7.1"):
            number = {"undefined": 0, "end": 1}.get(self.kind, 2 + frame)
            return bits | number << 8 | self.signal << 11
        end = self.kind == "end"
        return bits | frame << 8 | (end << 10 if form == "v4.14" else self.signal << 10 | end << 11)


def parse(text: str) -> list[Row]:
    """The rows that a text describes."""
    rows = []
    for line in text.strip().splitlines():
        words = line.split()
        signal = words[-1] == "signal"
        ip, kind, *places = words[:-1] if signal else words
        sp = rbp = ("", 0)
        for place in places:
            of_rbp = place.startswith("rbp=")
            match = _PLACE.match(place.removeprefix("rbp="))
            assert match is not None, line
            register = {"(bp": "(bp)"}.get(match[1], match[1])
            if of_rbp:
                rbp = register, int(match[2])
            else:
                sp = register, int(match[2])
        rows.append(Row(int(ip, 16), kind, *sp, *rbp, signal))
    return rows


def pack(rows: Sequence[Row], form: str, ip_vaddr: int) -> tuple[bytes, bytes]:
    """.orc_unwind_ip, which lies at ``ip_vaddr``, and .orc_unwind."""
    distances = [row.ip - (ip_vaddr + 4 * number) for number, row in enumerate(rows)]
    entries = [struct.pack("<hhH", row.sp_offset, row.rbp_offset, row.flags(form)) for row in rows]
    return struct.pack(f"<{len(rows)}i", *distances), b"".join(entries)
