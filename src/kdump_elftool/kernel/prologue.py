"""Functions that the kernel's unwind tables leave out, by the first instructions of each.

objtool writes nothing for code that it was told to pass over (STACK_FRAME_NON_STANDARD), and
``__crash_kexec``, in which the panicking CPU of every kdump stands, is such a function.  Its prologue is
ordinary: pushes, perhaps rbp as frame pointer, room for locals.  What holds behind it is taken to hold up
to the function's end.  Reference: Intel SDM, volume 2, opcodes of PUSH, SUB, MOV, XOR, ENDBR64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Index
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.orc import Base, Kind, OrcTable
from kdump_elftool.kernel.x86_frames import HEAD

LONGEST = 96
"""Bytes that a prologue may have."""
MOST_FUNCTIONS = 4096
"""A kernel has 25 (6.1) to 110 (7.2) of them."""
_RSP, _RBP = 4, 5
_REX_R, _REX_B = 4, 1
"""Bits of the prefix by which registers from r8 on are meant."""

_MOVE = re.compile(rb"([\x40-\x4f]?)([\x89\x31\x8b\x33])([\xc0-\xff])")
"""mov, xor between registers."""
_CONSTANT = re.compile(rb"(?s)([\x40-\x4f]?)(?:\xc7([\xc0-\xc7])|([\xb8-\xbf]))....")
"""mov of a constant to a register."""
_CANARY = re.compile(rb"(?s)\x65\x48\x8b(?:[\x04\x0c\x14\x1c\x34\x3c]\x25|[\x05\x0d\x15\x1d\x35\x3d])....")
"""mov %gs:constant, or beside rip, to a register other than rsp and rbp."""
_STORE = re.compile(
    rb"(?s)[\x48\x4c]\x89(?:[\x44\x4c\x54\x5c\x64\x6c\x74\x7c]\x24.|[\x84\x8c\x94\x9c\xa4\xac\xb4\xbc]\x24....)"
)
"""mov of a register to a place above rsp."""
_START = re.compile(HEAD)
_PUSH = re.compile(rb"\x41?[\x50-\x57]")
_ROOM = re.compile(rb"(?s)\x48(?:\x83\xec(.)|\x81\xec(....))")
_FRAME_POINTER = re.compile(rb"\x48\x89\xe5|\x48\x8b\xec")


@dataclass(frozen=True)
class Step:
    """From ``offset`` within the function on the CFA is a register, rsp or rbp, and ``distance`` bytes.

    ``saved_rbp``: where it is saved, bytes from the CFA; 0: it still is the caller's.
    """

    offset: int
    register: Base
    distance: int
    saved_rbp: int


def steps_of(text: bytes) -> list[Step]:
    """What the prologue at the start of ``text`` does; empty if nothing that makes a frame was found."""
    steps = [Step(0, Base.SP, 8, 0)]
    match = _START.match(text)
    at = match.end() if match else 0
    while at < min(len(text), LONGEST):
        last = steps[-1]
        if found := _PUSH.match(text, at):
            saved = last.saved_rbp
            if found[0] == bytes([0x50 + _RBP]) and not saved:
                saved = -(last.distance + 8) if last.register == Base.SP else 0
            distance = last.distance + (8 if last.register == Base.SP else 0)
            steps.append(Step(found.end(), last.register, distance, saved))
        elif found := _ROOM.match(text, at):
            size = int.from_bytes(found[1] or found[2], "little", signed=True)
            if size < 0:
                break
            distance = last.distance + (size if last.register == Base.SP else 0)
            steps.append(Step(found.end(), last.register, distance, last.saved_rbp))
        elif (found := _FRAME_POINTER.match(text, at)) and last.saved_rbp:
            steps.append(Step(found.end(), Base.BP, last.distance, last.saved_rbp))
        else:
            found = _passed(text, at, last)
            if found is None:
                break
        at = found.end()
    return steps if len(steps) > 1 and steps[-1].distance <= np.iinfo(np.int16).max else []


def _passed(text: bytes, at: int, last: Step) -> re.Match[bytes] | None:
    """An instruction that leaves rsp, what was pushed, and rbp alone, unless that is saved and not needed."""
    if found := _MOVE.match(text, at):
        operands, of_operand = found[3][0], found[2] in (b"\x89", b"\x31")
        target = operands & 7 if of_operand else operands >> 3 & 7
        higher = _REX_B if of_operand else _REX_R
    elif found := _CONSTANT.match(text, at):
        target, higher = (found[2] or found[3])[0] & 7, _REX_B
    else:
        return _CANARY.match(text, at) or _STORE.match(text, at)
    if found[1] and found[1][0] & higher:
        return found  # r8 to r15
    free = last.saved_rbp and last.register == Base.SP
    return None if target == _RSP or (target == _RBP and not free) else found


def prologues(table: OrcTable, functions: U64, read: Callable[[int, int], bytes]) -> list[OrcTable]:
    """Tables for those of the functions (start addresses) that ``table`` says nothing of.

    ``read`` takes an address and a size, and may raise FaultError.
    """
    starts = np.unique(functions)
    ends = np.append(starts[1:], np.uint64(table.end))
    row = np.searchsorted(table.ip, starts, side="right") - 1
    inside = (row >= 0) & (starts < np.uint64(table.end))
    missing: Index = np.flatnonzero(inside & (table.kind[np.maximum(row, 0)] == Kind.UNDEFINED))
    found = []
    for index in missing[:MOST_FUNCTIONS].tolist():
        start = int(starts[index])
        following = int(row[index]) + 1
        end = min(int(ends[index]), table.end)
        if following < len(table):
            end = min(end, int(table.ip[following]))
        try:
            steps = steps_of(read(start, min(LONGEST, end - start)))
        except FaultError:
            continue
        # what the last instruction does holds from the next function on, which has rules of its own
        steps = [step for step in steps if start + step.offset < end]
        if steps:
            found.append(_table(start, end, steps, table))
    return found


def _table(start: int, end: int, steps: Sequence[Step], like: OrcTable) -> OrcTable:
    count = len(steps)
    saved = np.array([step.saved_rbp for step in steps], dtype=np.int16)
    return OrcTable(
        ip=np.array([start + step.offset for step in steps], dtype=np.uint64),
        kind=np.full(count, Kind.CALL, dtype=np.uint8),
        sp_base=np.array([step.register for step in steps], dtype=np.uint8),
        sp_offset=np.array([step.distance for step in steps], dtype=np.int16),
        bp_base=np.where(saved != 0, np.uint8(Base.PREV_SP), np.uint8(Base.UNDEFINED)),
        bp_offset=saved,
        signal=np.zeros(count, dtype=np.bool_),
        end=end,
        format=like.format,
    )
