"""Call-frame information of a vmlinux: where a function's caller left its registers.

gdb does not hand its own knowledge to an unwinder, so that the section .debug_frame is read here: 64-bit,
little endian, linked.  Reference: DWARF 5, 6.4 "Call Frame Information"; the one operation beyond it is of
"DWARF for the Arm 64-bit Architecture (AArch64)", 4.3.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

_CIE_ID = 0xFFFFFFFF
_DEEPEST = 16


class Row(NamedTuple):
    """What holds at one pc: CFA = register + offset, and registers saved at an offset from the CFA."""

    register: int
    offset: int
    saved: dict[int, int]


class CallFrames:
    """Every function that a .debug_frame describes, found by its address in the file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        found = sorted(_functions(data))
        self._starts = [start for start, _, _, _ in found]
        self._functions = found

    def row(self, pc: int) -> Row | None:
        """What holds at an address; None where nothing is known of it or that in terms not known here."""
        index = bisect_right(self._starts, pc) - 1
        if index < 0:
            return None
        start, end, cie, program = self._functions[index]
        if pc >= end:
            return None
        try:
            return _Run(self._data, cie).row(start, pc, program)
        except (IndexError, ValueError, struct.error):
            return None


def _functions(data: bytes) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """(start, end, offset of the CIE, its own operations) of each; what follows nonsense is not seen."""
    at = 0
    while at + 8 <= len(data):
        length, cie = struct.unpack_from("<II", data, at)
        if length < 4 or length >= 0xFFFFFFF0 or at + 4 + length > len(data):
            return
        if cie != _CIE_ID and length >= 20 and cie < len(data):
            start, size = struct.unpack_from("<QQ", data, at + 8)
            yield start, start + size, cie, (at + 24, at + 4 + length)
        at += 4 + length


class _Run:
    """One function's operations carried out up to a pc."""

    def __init__(self, data: bytes, cie: int) -> None:
        self.data = data
        length, _, version = struct.unpack_from("<IIB", data, cie)
        text_end = data.index(b"\0", cie + 9)
        if data[cie + 9 : text_end]:
            raise ValueError("augmented")
        self.at = text_end + (3 if version >= 4 else 1)
        self.code, self.factor = self.unsigned(), self.signed()
        self.unsigned()  # the return address is x30
        self.register = self.offset = 0
        self.saved: dict[int, int] = {}
        self.initial: dict[int, int] = {}
        self.stack: list[tuple[int, int, dict[int, int]]] = []
        self.first = (self.at, cie + 4 + length)

    def row(self, start: int, pc: int, program: tuple[int, int]) -> Row:
        self.run(self.first, 0, 0)
        self.initial = dict(self.saved)
        self.run(program, start, pc)
        return Row(self.register, self.offset, dict(self.saved))

    def run(self, program: tuple[int, int], location: int, pc: int) -> None:
        """Carry out the operations of the rows up to that of pc."""
        self.at, end = program
        while self.at < end:
            byte = self.data[self.at]
            self.at += 1
            kind, low = byte & 0xC0, byte & 0x3F
            if kind == 0x40:
                location += low * self.code
            elif kind == 0 and low in (2, 3, 4):
                location += self.fixed(1 << (low - 2)) * self.code
            else:
                self.rule(kind, low)
            if location > pc:
                return

    def rule(self, kind: int, low: int) -> None:
        """One operation that is no advance."""
        if kind == 0x80:
            self.saved[low] = self.unsigned() * self.factor
        elif kind == 0xC0:
            self.restore(low)
        elif low in _FEW:
            _FEW[low](self)
        else:
            raise ValueError(f"operation 0x{low:x}")

    def restore(self, register: int) -> None:
        if register in self.initial:
            self.saved[register] = self.initial[register]
        else:
            self.saved.pop(register, None)

    def save(self, register: int, factored: int) -> None:
        self.saved[register] = factored * self.factor

    def remember(self) -> None:
        if len(self.stack) == _DEEPEST:
            raise ValueError("too deep")
        self.stack.append((self.register, self.offset, dict(self.saved)))

    def recall(self) -> None:
        self.register, self.offset, self.saved = self.stack.pop()

    def cfa(self, register: int | None, offset: int | None) -> None:
        self.register = self.register if register is None else register
        self.offset = self.offset if offset is None else offset

    def fixed(self, size: int) -> int:
        value = int.from_bytes(self.data[self.at : self.at + size], "little")
        self.at += size
        return value

    def unsigned(self) -> int:
        """A ULEB128."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("endless number")

    def signed(self) -> int:
        """An SLEB128."""
        before = self.at
        value = self.unsigned()
        bits = 7 * (self.at - before)
        return value - (1 << bits) if value >> (bits - 1) else value


_FEW: dict[int, Any] = {
    0x00: lambda _run: None,  # DW_CFA_nop
    0x05: lambda run: run.save(run.unsigned(), run.unsigned()),  # DW_CFA_offset_extended
    0x06: lambda run: run.restore(run.unsigned()),  # DW_CFA_restore_extended
    0x08: lambda run: run.saved.pop(run.unsigned(), None),  # DW_CFA_same_value
    0x0A: lambda run: run.remember(),  # DW_CFA_remember_state
    0x0B: lambda run: run.recall(),  # DW_CFA_restore_state
    0x0C: lambda run: run.cfa(run.unsigned(), run.unsigned()),  # DW_CFA_def_cfa
    0x0D: lambda run: run.cfa(run.unsigned(), None),  # DW_CFA_def_cfa_register
    0x0E: lambda run: run.cfa(None, run.unsigned()),  # DW_CFA_def_cfa_offset
    0x11: lambda run: run.save(run.unsigned(), run.signed()),  # DW_CFA_offset_extended_sf
    0x2D: lambda _run: None,  # DW_CFA_AARCH64_negate_ra_state: what is signed shows by its bits
}
"""The operations that compilers use, by number, and no others: their functions have no row."""
