"""Frames of arm64 code, by its instructions: the compiler's prologue saves x29 and x30 as one pair.

A function that calls another one begins with ``stp x29, x30, [sp, #-n]!`` or with ``sub sp, sp, #n`` and
``stp x29, x30, [sp, #m]``, and sets x29 to the place of the pair.  Before, the caller's address is in
x30; where the pair was read again it is there once more, up to the return.  Code that calls without a pair of
its own (assembly) has a frame record all the same: x29 is that of whoever came before.  The code that enters
the kernel by an exception has saved all registers, and x29 points at the record in struct pt_regs.

References: arch/arm64/kernel/entry.S (kernel_entry, entry_handler), arch/arm64/kernel/stacktrace.c; Arm's
procedure call standard AAPCS64, "The frame pointer"; Arm Architecture Reference Manual, C6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index
from kdump_elftool.kernel.code_frames import Base, CodeFrames, first_in_each, merged, starts_within

U32 = npt.NDArray[np.uint32]

RECORD = 16
"""Bytes of the pair."""
_PAIR = 0x7BFD  # x29, x30, at sp
_STP_BEFORE, _STP, _LDP_AFTER, _LDP = 0xA9800000, 0xA9000000, 0xA8C00000, 0xA9400000
_LARGEST_FRAME = 1 << 16


@dataclass(frozen=True)
class _Prologues:
    """For each function: where its pair is saved (-1: nowhere), bytes from the pair to the CFA, from sp to
    the CFA behind that, and where x29 is set (-1: nowhere)."""

    saves: Index
    record: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int64]
    sets: Index


def arm64_frames(code: U32, vaddr: int, functions: U64, entries: U64, registers: int | None) -> CodeFrames:
    """Rows for the instructions ``code``, which lie at ``vaddr``.

    ``functions`` are the addresses at which functions begin, ``entries`` those of them that handle an
    exception; ``registers`` is how far the frame record lies within struct pt_regs.
    """
    end = vaddr + 4 * len(code)
    begin = starts_within(functions, vaddr, end)
    start: Index = ((begin - np.uint64(vaddr)) // np.uint64(4)).astype(np.intp)
    stop = np.append(start[1:], len(code))
    found = _prologues(code, start, stop)
    has = found.saves >= 0
    calls = first_in_each(np.flatnonzero(_is_call(code)), start, stop) >= 0
    special = np.isin(begin, entries) & ~has

    def at(index: Index) -> U64:
        return np.uint64(vaddr) + index.astype(np.uint64) * np.uint64(4)

    plain = has | ~calls
    sets = has & (found.sets >= 0)
    rows = [
        *_epilogues(code, start, found, at),
        *_passed_by(code, start, stop, found, at),
        _lowered(code, start, stop, np.where(has, found.saves, np.where(calls, start, stop)), at),
        CodeFrames.of(at(start[~plain]), Base.FP, RECORD, RECORD),
        CodeFrames.of(at(start[plain]), Base.SP),
        _rows(at(found.saves[has] + 1), Base.SP, found.frame[has], found.record[has]),
        _rows(at(found.sets[sets] + 1), Base.FP, found.record[sets], found.record[sets]),
    ]
    if registers is not None:
        rows.append(CodeFrames.of(at(start[special]), Base.REGISTERS_FP, -registers))
    frames = merged(rows)
    return frames.take(frames.ip < np.uint64(end))


def _rows(ip: U64, base: Base, offset: npt.NDArray[np.int64], record: npt.NDArray[np.int64]) -> CodeFrames:
    base_column = np.full(len(ip), base, dtype=np.uint8)
    return CodeFrames(ip, base_column, offset.astype(np.int32), record.astype(np.int32))


def _prologues(code: U32, start: Index, stop: Index) -> _Prologues:
    pair = code & np.uint32(0x7FFF) == np.uint32(_PAIR)
    operation = code & np.uint32(0xFFC00000)
    before, inside = pair & (operation == np.uint32(_STP_BEFORE)), pair & (operation == np.uint32(_STP))
    saves = first_in_each(np.flatnonzero(before | inside), start, stop)
    has = saves >= 0
    at = np.maximum(saves, 0)
    imm = _signed(code[at] >> np.uint32(15), 7) * 8 if len(code) else np.zeros(len(at), dtype=np.int64)
    room = _room(code, start, at)
    pushed = before[at] if len(code) else np.zeros(len(at), dtype=np.bool_)
    # with a push the pair is at the new sp, else at an offset within the room that was made
    frame = np.where(pushed, room - imm, room)
    record = np.where(pushed, frame, room - imm)
    good = (
        has & (record >= RECORD) & (record <= _LARGEST_FRAME) & (frame >= record) & (frame <= _LARGEST_FRAME)
    )
    sets = first_in_each(np.flatnonzero(code & np.uint32(0xFF8003FF) == np.uint32(0x910003FD)), at + 1, stop)
    return _Prologues(np.where(good, saves, -1), record, frame, np.where(good, sets, -1))


def _steps(code: U32) -> tuple[Index, npt.NDArray[np.int64]]:
    """Instructions that move sp by a constant, in order, and by how many bytes they lower it."""
    moves = np.flatnonzero(code & np.uint32(0xBF8003FF) == np.uint32(0x910003FF))  # add, sub sp, sp, #n
    pushes = np.flatnonzero(code & np.uint32(0xFFE00FE0) == np.uint32(0xF8000FE0))  # str x, [sp, #-n]!
    shift = np.where(code[moves] >> np.uint32(22) & np.uint32(1), 12, 0)
    size = (code[moves] >> np.uint32(10) & np.uint32(0xFFF)).astype(np.int64) << shift
    size = np.where(code[moves] >> np.uint32(30) & np.uint32(1), size, -size)
    where = np.concatenate([moves, pushes])
    order = np.argsort(where, kind="stable")
    sizes = np.concatenate([size, -_signed(code[pushes] >> np.uint32(12), 9)])
    return where[order], sizes[order]


def _room(code: U32, start: Index, at: Index) -> npt.NDArray[np.int64]:
    """Bytes by which sp was lowered from each ``start`` to before ``at``."""
    where, size = _steps(code)
    total = np.concatenate([[0], np.cumsum(size)])
    room: npt.NDArray[np.int64] = total[np.searchsorted(where, at)] - total[np.searchsorted(where, start)]
    return room


def _lowered(code: U32, start: Index, stop: Index, until: Index, at: Callable[[Index], U64]) -> CodeFrames:
    """Where sp was moved before the pair is saved, or anywhere in a function that calls no other one."""
    where, size = _steps(code)
    total = np.concatenate([[0], np.cumsum(size)])
    owner = np.searchsorted(start, where, side="right") - 1
    mine = (owner >= 0) & (where < until[owner]) & (where + 1 < stop[owner])
    row, owner = np.flatnonzero(mine), owner[mine]
    room = total[row + 1] - total[np.searchsorted(where, start[owner])]
    good = (room >= 0) & (room <= _LARGEST_FRAME)
    return _rows(at(where[row][good] + 1), Base.SP, room[good], np.zeros(int(good.sum()), dtype=np.int64))


def _epilogues(code: U32, start: Index, found: _Prologues, at: Callable[[Index], U64]) -> list[CodeFrames]:
    """Behind the instruction that reads the pair again x30 has the caller's address; behind the return, or
    the jump to another function, other parts of the function may follow."""
    pair = code & np.uint32(0x7FFF) == np.uint32(_PAIR)
    operation = code & np.uint32(0xFFC00000)
    after, inside = pair & (operation == np.uint32(_LDP_AFTER)), pair & (operation == np.uint32(_LDP))
    loads, leaves = np.flatnonzero(after | inside), np.flatnonzero(_is_end(code))
    owner = np.searchsorted(start, loads, side="right") - 1
    known = (owner >= 0) & (found.sets[owner] >= 0) & (loads > found.sets[owner])
    known &= loads < leaves[-1] if len(leaves) else False
    loads, owner = loads[known], owner[known]
    ends = leaves[np.searchsorted(leaves, loads)] if len(loads) else loads
    record = found.record[owner]
    frame = np.where(after[loads], 0, record + _signed(code[loads] >> np.uint32(15), 7) * 8)
    raises = np.flatnonzero(code & np.uint32(0xFF8003FF) == np.uint32(0x910003FF))  # add sp, sp, #n
    popped = np.where(after[loads], -1, first_in_each(raises, loads, ends))
    return [
        _rows(at(ends + 1), Base.FP, record, record),
        _rows(at(loads + 1), Base.SP, frame, np.zeros(len(loads), dtype=np.int64)),
        CodeFrames.of(at(popped[popped >= 0] + 1), Base.SP),
    ]


def _passed_by(
    code: U32, start: Index, stop: Index, found: _Prologues, at: Callable[[Index], U64]
) -> list[CodeFrames]:
    """Behind a branch that passes the prologue by there is no pair, up to the next end.

    Where that code calls another function it has a prologue of its own, which is not looked for.
    """
    where, target = _branches(code)
    owner = np.searchsorted(start, where, side="right") - 1
    known = (owner >= 0) & (found.sets[owner] >= 0) & (where < found.saves[owner])
    known &= (target > found.sets[owner]) & (target < stop[owner])
    where, target, owner = where[known], target[known], owner[known]
    ends = first_in_each(np.flatnonzero(_is_end(code)), target, stop[owner])
    calls = first_in_each(np.flatnonzero(_is_call(code)), target, ends + 1)
    leaf = (ends >= 0) & (calls < 0)
    where, target, owner, ends = where[leaf], target[leaf], owner[leaf], ends[leaf]
    room, record = _room(code, start[owner], where), found.record[owner]
    good = (room >= 0) & (room <= _LARGEST_FRAME)
    return [
        _rows(at(ends[good] + 1), Base.FP, record[good], record[good]),
        _rows(at(target[good]), Base.SP, room[good], np.zeros(int(good.sum()), dtype=np.int64)),
    ]


def _branches(code: U32) -> tuple[Index, Index]:
    """Conditional branches, in order, and where they lead: B.cond, CBZ, CBNZ, TBZ, TBNZ."""
    by_test = code & np.uint32(0x7E000000) == np.uint32(0x36000000)
    others = (code & np.uint32(0xFF000010) == np.uint32(0x54000000)) | (
        code & np.uint32(0x7E000000) == np.uint32(0x34000000)
    )
    where = np.flatnonzero(by_test | others)
    near, far = _signed(code[where] >> np.uint32(5), 14), _signed(code[where] >> np.uint32(5), 19)
    return where, where + np.where(by_test[where], near, far).astype(np.intp)


def _is_call(code: U32) -> Bools:
    """BL, BLR (also with authentication)."""
    is_call: Bools = (code & np.uint32(0xFC000000) == np.uint32(0x94000000)) | (
        code & np.uint32(0xFEFFF000) == np.uint32(0xD63F0000)
    )
    return is_call


def _is_end(code: U32) -> Bools:
    """RET, BR (also with authentication), B."""
    is_end: Bools = (code & np.uint32(0xFC000000) == np.uint32(0x14000000)) | np.isin(
        code & np.uint32(0xFEFFF000), np.array([0xD65F0000, 0xD61F0000], dtype=np.uint32)
    )
    return is_end


def _signed(value: U32, bits: int) -> npt.NDArray[np.int64]:
    low = (value & np.uint32((1 << bits) - 1)).astype(np.int64)
    signed: npt.NDArray[np.int64] = low - (low >> (bits - 1) << bits)
    return signed
