"""How far above its frame record an arm64 function's frame begins, read from its first instructions.

For code whose call frames are not at hand, modules above all.  Reference: Arm Architecture Reference
Manual, C6.2: STP, STR (immediate), SUB (immediate).
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 4096
"""Bytes of a function that are worth looking at: a compiler may save registers only behind a first test."""
_STP_BELOW_SP, _STP_AT_SP, _PAIR = 0xA98003E0, 0xA90003E0, 0x7BFD  # x29, x30, at sp


def record_distance(code: Iterable[int]) -> int | None:
    """Bytes from the pair of x29 and x30 that a function saves to its CFA; None when that does not show."""
    used = 0
    for word in code:
        if word & 0xFFC003E0 == _STP_BELOW_SP:
            used -= _signed(word >> 15, 7) * 8
            if word & 0x7FFF == _PAIR:
                return used
        elif word & 0xFFC003E0 == _STP_AT_SP and word & 0x7FFF == _PAIR:
            distance = used - _signed(word >> 15, 7) * 8
            return distance if distance >= 16 else None
        elif word & 0xFFE00FE0 == 0xF8000FE0:  # str x, [sp, #-n]!
            used -= _signed(word >> 12, 9)
        elif word & 0xFF8003FF == 0xD10003FF:  # sub sp, sp, #n
            used += (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
        elif word & 0x1F == 31 and word & 0xFFE003FF == 0xCB2003FF:  # sub sp, sp, x
            return None
    return None


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
