"""Frames by frame pointers, and what prologues say, as call-frame information.

Of the other registers that a function preserves nothing is known once it has pushed something
(DW_CFA_undefined), which is better than a wrong value.  A frame of registers (struct pt_regs) is described
whole, its caller is one that was interrupted; its CFA is where it ends.

References: DWARF for the Arm 64-bit Architecture (AADWARF64), 4.1 (register numbers, 32 is pc), 4.3
(DW_CFA_AARCH64_negate_ra_state); System V psABIs, "DWARF Register Number Mapping"; struct pt_regs in
arch/arm64/include/uapi/asm/ptrace.h, arch/x86/include/asm/ptrace.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Index
from kdump_elftool.dwarf.entries import uleb
from kdump_elftool.dwarf.frames import Cie, Descriptions, Pool, debug_frame, sleb

UNDEFINED, SP, FP, REGISTERS, REGISTERS_FP = range(5)
"""What an offset counts from (``kernel.code_frames.Base``)."""
MOST_RULES = 1 << 14
_LONGEST = 64
"""Rows of one description: gdb goes through them from the first on."""
_DEF_CFA, _SAME_VALUE, _UNDEFINED, _OFFSET, _OFFSET_EXTENDED = 0x0C, 0x08, 0x07, 0x80, 0x05
_DEF_CFA_EXPRESSION, _BREG = 0x0F, 0x70
_SIGNED_RETURNS = 0x2D


class FrameColumns(Protocol):
    """Rows sorted by ``ip``, each valid up to the next one's (``kernel.code_frames.CodeFrames``)."""

    @property
    def ip(self) -> U64: ...
    @property
    def base(self) -> npt.NDArray[np.uint8]: ...
    @property
    def offset(self) -> npt.NDArray[np.int32]: ...
    @property
    def record(self) -> npt.NDArray[np.int32]: ...


@dataclass(frozen=True)
class FrameMachine:
    """Numbers of a machine's registers in DWARF.

    ``word`` is the size of an address; ``sp``, ``fp``, ``returns`` are registers, ``preserved`` the others
    that a function leaves as they were.  ``entry`` is the distance from sp to the CFA where a function
    begins; where that is 0 the return address is in ``returns`` there, else on the stack.  ``registers`` has
    the register that each word of struct pt_regs is of, -1 for none.  ``always`` are operations that hold
    everywhere.
    """

    word: int
    sp: int
    fp: int
    returns: int
    preserved: tuple[int, ...]
    entry: int
    registers: tuple[int, ...]
    always: bytes = b""

    def at(self, register: int, distance: int) -> bytes:
        """The register is saved so many bytes below the CFA."""
        factored = uleb(distance // self.word)
        if register < 0x40:
            return bytes([_OFFSET | register]) + factored
        return bytes([_OFFSET_EXTENDED]) + uleb(register) + factored

    @property
    def cies(self) -> tuple[Cie, Cie]:
        """Of functions, and of frames of registers."""
        link = self.at(self.returns, self.word) if self.entry else bytes([_SAME_VALUE, self.returns])
        begin = bytes([_DEF_CFA, self.sp]) + uleb(self.entry) + bytes([_SAME_VALUE, self.fp]) + link
        size = len(self.registers) * self.word
        saved = b"".join(
            self.at(register, size - place * self.word)
            for place, register in enumerate(self.registers)
            if register >= 0
        )
        return (
            Cie(self.returns, begin + self.always, data_alignment=-self.word),
            Cie(self.returns, bytes([_DEF_CFA, self.sp]) + uleb(size) + saved, True, -self.word),
        )

    def rule(self, base: int, offset: int, record: int) -> bytes:
        """All that a row says."""
        if base in (REGISTERS, REGISTERS_FP):
            return self.cfa(
                self.fp if base == REGISTERS_FP else self.sp, offset + len(self.registers) * self.word
            )
        rule = self.cfa(self.fp if base == FP else self.sp, offset)
        changed = record or offset != self.entry
        rule += b"".join(bytes([_UNDEFINED if changed else _SAME_VALUE, other]) for other in self.preserved)
        if not record:
            link = b"" if self.entry else bytes([_SAME_VALUE, self.returns])
            return rule + bytes([_SAME_VALUE, self.fp]) + link
        link = b"" if self.entry else self.at(self.returns, record - self.word)
        return rule + self.at(self.fp, record) + link

    def cfa(self, register: int, offset: int) -> bytes:
        """Register plus offset."""
        if offset >= 0:
            return bytes([_DEF_CFA, register]) + uleb(offset)
        where = bytes([_BREG + register]) + sleb(offset)
        return bytes([_DEF_CFA_EXPRESSION]) + uleb(len(where)) + where


ARM64 = FrameMachine(
    word=8,
    sp=31,
    fp=29,
    returns=30,
    preserved=tuple(range(19, 29)),
    entry=0,
    registers=tuple(range(33)),
    always=bytes([_SIGNED_RETURNS]),
)
"""Every return address is said to be signed: of one that is not, bits are set that are set anyway."""
I386 = FrameMachine(
    word=4,
    sp=4,
    fp=5,
    returns=8,
    preserved=(3, 6, 7),
    entry=4,
    registers=(3, 1, 2, 6, 7, 5, 0, -1, -1, -1, -1, -1, 8, -1, 9, 4, -1),
)
X86_64 = FrameMachine(
    word=8,
    sp=7,
    fp=6,
    returns=16,
    preserved=(3, 12, 13, 14, 15),
    entry=8,
    registers=(15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5, -1, 16, -1, -1, 7, -1),
)


def code_to_frames(frames: FrameColumns, machine: FrameMachine, order: str = "<") -> bytes:
    """.debug_frame for all rows that describe a frame.

    Raises ValueError for more different rows than a kernel has.
    """
    pool = Pool()
    size: U64 = np.append(frames.ip[1:], frames.ip[-1:]) - frames.ip
    rows = np.flatnonzero((frames.base != UNDEFINED) & (size.view(np.int64) > 0))
    key = np.stack([frames.base[rows], frames.offset[rows], frames.record[rows]], axis=1).astype(np.int64)
    unique, rule = np.unique(key, axis=0, return_inverse=True)
    if len(unique) > MOST_RULES:
        raise ValueError(f"{len(unique)} different frames")
    pieces = pool.add_all(machine.rule(*each) for each in unique.tolist())[rule.reshape(-1)]
    is_registers = frames.base[rows] >= REGISTERS
    follows = _follows(rows, is_registers, frames, machine)
    before = np.where(follows, size[np.maximum(rows - 1, 0)], np.uint64(0))
    programs = np.stack([_advances(before, pool, order), pieces], axis=1)
    first = np.flatnonzero(~follows)
    last = np.append(first[1:], len(rows))[: len(first)] - 1
    start = frames.ip[rows[first]]
    found = Descriptions(
        start=start,
        size=frames.ip[rows[last]] + size[rows[last]] - start,
        cie=is_registers[first].astype(np.intp),
        first=first * programs.shape[1],
        piece=programs.reshape(-1),
    )
    return debug_frame(machine.cies, found, pool, order, machine.word)


def _follows(
    rows: Index, is_registers: npt.NDArray[np.bool_], frames: FrameColumns, machine: FrameMachine
) -> npt.NDArray[np.bool_]:
    """Which rows go on with the description of the one before: where a function begins, a new one does."""
    follows = np.zeros(len(rows), dtype=np.bool_)
    entry = (frames.base[rows] == SP) & (frames.offset[rows] == machine.entry) & (frames.record[rows] == 0)
    follows[1:] = (np.diff(rows) == 1) & (is_registers[1:] == is_registers[:-1]) & ~entry[1:]
    at = np.arange(len(rows))
    run = at - np.maximum.accumulate(np.where(follows, 0, at)) if len(rows) else at
    cut: npt.NDArray[np.bool_] = follows & (run % _LONGEST != 0)
    return cut


def _advances(distance: U64, pool: Pool, order: str) -> Index:
    """The pieces that go so many bytes further on."""
    steps, step = np.unique(distance, return_inverse=True)
    if len(steps) > MOST_RULES:
        raise ValueError(f"{len(steps)} different distances")
    return pool.add_all(_advance(value, order) for value in steps.tolist())[step.reshape(-1)]


def _advance(distance: int, order: str) -> bytes:
    if distance < 64:
        return bytes([0x40 | distance]) if distance else b""
    byte_order = "little" if order == "<" else "big"
    for operation, size in ((2, 1), (3, 2), (4, 4)):
        if distance < 1 << (8 * size):
            return bytes([operation]) + distance.to_bytes(size, byte_order)  # type: ignore[arg-type]
    raise ValueError(f"code of {distance} bytes without a change")
