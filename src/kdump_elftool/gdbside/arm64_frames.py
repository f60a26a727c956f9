"""Callers of arm64 kernel functions, return addresses signed or not: numbers in, numbers out.

A signature stands in the upper bits of a return address, which are all ones in a kernel's address; bit 55,
which chooses the table, it leaves alone.  What the compiler says of a function finds all registers of its
caller.  For code without that (assembly, modules) there is the chain that the kernel itself follows: x29
points at the caller's x29 and the return address.
References: arch/arm64/kernel/stacktrace.c, arch/arm64/include/asm/stacktrace/frame.h, struct pt_regs in
arch/arm64/include/asm/ptrace.h; Arm's procedure call standard AAPCS64, "The frame pointer".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kdump_elftool.gdbside.arm64_prologue import LONGEST, record_distance
from kdump_elftool.gdbside.call_frames import Row

if TYPE_CHECKING:
    from collections.abc import Callable

X29, SP = 29, 31
PRESERVED = (*(f"x{number}" for number in range(19, 31)), "sp", "pc")
"""Registers that a called function leaves as they were, and where it is."""
UPPER_HALF = 1 << 55
_META_PT_REGS = 2
_USER_PT_REGS = 34  # words of struct user_pt_regs: x0 to x30, sp, pc, pstate

if TYPE_CHECKING:
    Words = Callable[[int, int], tuple[int, ...] | None]
    """``words(address, count)`` of memory, None when not all are there."""
    Start = Callable[[int], int | None]
    """Start of the function that an address is in, None when that is not known."""


class Caller(NamedTuple):
    """Registers of the caller as far as they are known, and the frame address of the function it called."""

    registers: dict[str, int]
    frame: int


class PtRegs(NamedTuple):
    """Where struct pt_regs has its frame record, and whether that says its type (``frame_record_meta``)."""

    record: int
    has_type: bool


class Here(NamedTuple):
    """A function that stands at ``pc``; ``registers`` has pc, x29, x30 and what is known of PRESERVED.

    ``called``: it called another one and waits for it to return.  Otherwise it may have made no frame
    record yet, or none at all.
    """

    registers: dict[str, int]
    mask: int
    called: bool


def is_kernel(address: int, mask: int) -> bool:
    """Whether an address is the kernel's and has no signature."""
    return address & (mask | UPPER_HALF) == mask | UPPER_HALF


def without_signature(address: int, mask: int) -> int:
    """A return address as the processor takes it; those of processes stay as they are."""
    return address | mask if address & UPPER_HALF else address


def end(frame: int) -> Caller:
    """A caller at which gdb stops; were one of these not known it would give up the whole command."""
    return Caller({"pc": 0, "x30": 0, "x29": 0, "sp": frame + 16}, frame)


def by_row(here: Here, row: Row, words: Words) -> Caller | None:
    """The caller by what the compiler says; None when memory or registers contradict it or are missing."""
    cfa = _canonical_frame(here, row)
    if cfa is None:
        return None
    registers = dict(here.registers)
    for number, offset in row.saved.items():
        found = words(cfa + offset, 1)
        if found is None:
            return None
        registers[f"x{number}"] = found[0]
    returns = without_signature(registers["x30"], here.mask)
    registers.update(pc=returns, x30=returns, sp=cfa)
    return Caller(registers, cfa) if is_kernel(returns, here.mask) else None


def _canonical_frame(here: Here, row: Row) -> int | None:
    """The CFA, which is the caller's sp.

    In a function that called another one x29 points at the pair of x29 and x30 that it saved, which tells
    the same without sp.
    """
    base = here.registers.get("sp" if row.register == SP else f"x{row.register}")
    cfa = None if base is None else base + row.offset
    if here.called and X29 in row.saved:
        by_record = here.registers["x29"] - row.saved[X29]
        return by_record if cfa in (None, by_record) else None
    return cfa


def by_record(here: Here, words: Words, start: Start, regs: PtRegs | None) -> Caller | None:
    """The caller by the chain of records; None when there is none to be found.

    Its other registers are not known then, unless an exception came between: that saved everything.
    """
    x29, x30, mask = here.registers["x29"], here.registers["x30"], here.mask
    record = words(x29, 2)
    if not here.called and not _has_record(here, record, start):
        returns = without_signature(x30, mask)
        if not is_kernel(returns, mask):
            return None
        sp = here.registers["sp"]
        return Caller({"pc": returns, "x30": returns, "x29": x29, "sp": sp}, sp)
    if record is None:
        return end(x29)
    interrupted = None if regs is None else _interrupted(x29, record, words, regs)
    if interrupted is not None:
        return Caller(interrupted, x29)
    returns = without_signature(record[1], mask)
    if not is_kernel(returns, mask):
        return end(x29)
    registers = {"pc": returns, "x30": returns, "x29": record[0]}
    distance = _distance(here, words, start)
    if distance is None:
        return Caller(registers, x29)
    return Caller({**registers, "sp": x29 + distance}, x29 + distance)


def _distance(here: Here, words: Words, start: Start) -> int | None:
    """From the record to the CFA, by the function's own code."""
    # a call that does not return may be a function's last instruction
    pc = here.registers["pc"]
    first = start(pc - here.called)
    if first is None or first >= pc:
        return None
    found = words(first, min(pc - first, LONGEST) // 8)
    halves = [half for word in found or () for half in (word & 0xFFFFFFFF, word >> 32)]
    return record_distance(halves)


def _has_record(here: Here, record: tuple[int, ...] | None, start: Start) -> bool:
    """Whether the record at x29 is that of the function at pc, whose x30 may be of any call.

    It is when the record has the same return address, or when x30 is of a call that the function made.
    """
    returns = without_signature(here.registers["x30"], here.mask)
    if record is not None and returns == without_signature(record[1], here.mask):
        return True
    own = start(here.registers["pc"])
    return own is not None and own == start(returns - 1)


def _interrupted(x29: int, record: tuple[int, ...], words: Words, regs: PtRegs) -> dict[str, int] | None:
    """All registers of the kernel's code that an exception interrupted, if the record is in its pt_regs.

    Linux commit c2c6b27b5aa1 ("arm64: stacktrace: unwind exception boundaries"), v6.13: the record is
    empty, and its type says so.  Before, it repeats x29 and pc of the pt_regs around it.
    """
    saved = words(x29 - regs.record, _USER_PT_REGS)
    kind = words(x29 + 16, 1) if regs.has_type else None
    if saved is None:
        return None
    typed = record == (0, 0) and kind == (_META_PT_REGS,)
    if not typed and (record != (saved[29], saved[32]) or record == (0, 0)):
        return None
    return {**{f"x{number}": saved[number] for number in range(31)}, "sp": saved[31], "pc": saved[32]}
