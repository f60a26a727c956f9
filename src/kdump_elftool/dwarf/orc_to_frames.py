"""ORC tables as call-frame information: the same rules in words that every debugger knows.

ORC says where the caller's stack pointer and rbp are, and no more.  A function's other callee-saved
registers are the caller's as long as nothing was pushed, and then unknown (DW_CFA_undefined), which is
better than a wrong value.  A frame of registers (struct pt_regs) is described whole; its CFA is where the
registers end, and the interrupted frame's stack pointer a rule of its own.  (Where they begin would be the
CFA of the function called next as well, and gdb tells frames apart by their CFA.)

References: arch/x86/kernel/unwind_orc.c (unwind_next_frame()), arch/x86/include/asm/ptrace.h (struct
pt_regs); System V psABI for x86-64, 3.6.2 "DWARF Register Number Mapping".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index
from kdump_elftool.dwarf.entries import uleb
from kdump_elftool.dwarf.frames import EMPTY, Cie, Descriptions, Pool, debug_frame, sleb

U8 = npt.NDArray[np.uint8]

UNDEFINED, END, CALL, REGS, REGS_PARTIAL = range(5)
"""Kinds of frames: ORC_TYPE_* of Linux v6.4."""
PREV_SP, BP, BP_INDIRECT, SP_INDIRECT = 1, 4, 8, 9
"""What an offset counts from: ORC_REG_* of Linux v6.4."""
_RBX, _RBP, _RSP, _RIP = 3, 6, 7, 16
_CALLEE_SAVED = (_RBX, 12, 13, 14, 15)
_DWARF_OF = {2: 1, 3: 5, 4: _RBP, 5: _RSP, 6: 10, 7: 13, 8: _RBP, 9: _RSP, 10: 0}
"""DX, DI, BP, SP, R10, R13, BP and SP indirect, AX (v7.1)."""
_PT_REGS = (15, 14, 13, 12, _RBP, _RBX, 11, 10, 9, 8, 0, 2, 1, 4, 5)
"""Words of struct pt_regs from its start; orig_ax and the frame of the CPU follow."""
_WORD = 8
_SIZE = {CALL: 0, REGS: 21 * _WORD, REGS_PARTIAL: 5 * _WORD}
"""Bytes from where ORC points to the CFA."""

_DEF_CFA, _SAME_VALUE, _UNDEFINED, _OFFSET_SF = 0x0C, 0x08, 0x07, 0x11
_CFA_EXPRESSION, _EXPRESSION = 0x0F, 0x10
_OFFSET, _RESTORE = 0x80, 0xC0
_BREG, _DEREF, _CONSTS, _PLUS = 0x70, 0x06, 0x11, 0x22

MOST_RULES = 1 << 16
"""Different rows that are believed: 402 in Debian's 6.1."""
_LONGEST, _LONGEST_FUNCTION = 256, 1024
"""Rows of a description: a debugger goes through them from the first on."""
_PADDING = 32
"""Bytes without frame that are padding if a function goes on behind them: nothing returns to there."""


class OrcColumns(Protocol):
    """Rows sorted by ``ip``, each valid up to the next one's; numbers as above (``kernel.orc.OrcTable``)."""

    @property
    def ip(self) -> U64: ...
    @property
    def kind(self) -> U8: ...
    @property
    def sp_base(self) -> U8: ...
    @property
    def sp_offset(self) -> npt.NDArray[np.int16]: ...
    @property
    def bp_base(self) -> U8: ...
    @property
    def bp_offset(self) -> npt.NDArray[np.int16]: ...
    @property
    def signal(self) -> Bools: ...
    @property
    def end(self) -> int: ...


def _saved(register: int, offset: int) -> bytes:
    """The register's value is in memory at CFA + offset."""
    if offset % _WORD:
        expression = _plus(offset)
        return bytes([_EXPRESSION, register]) + uleb(len(expression)) + expression
    if offset <= 0:
        return bytes([_OFFSET | register]) + uleb(-offset // _WORD)
    return bytes([_OFFSET_SF]) + uleb(register) + sleb(-offset // _WORD)


_LOST = b"".join(bytes([_UNDEFINED, register]) for register in _CALLEE_SAVED)
_KEPT = b"".join(bytes([_SAME_VALUE, register]) for register in _CALLEE_SAVED)
_ENTRY = bytes([_DEF_CFA, _RSP, _WORD])
_ALL_REGISTERS, _IRET_FRAME = (bytes([_DEF_CFA, _RSP]) + uleb(_SIZE[kind]) for kind in (REGS, REGS_PARTIAL))
_INTERRUPTED = _saved(_RIP, -5 * _WORD) + _saved(_RSP, -2 * _WORD)
"""rip, cs, rflags, rsp, ss are the last words of both."""
_SAME_RBP, _RBP_OF_REGISTERS = bytes([_SAME_VALUE, _RBP]), bytes([_RESTORE | _RBP])
_NO_CALLER = bytes([_UNDEFINED, _RIP])
_SAVED = b"".join(bytes([_RESTORE | register]) for register in (*_PT_REGS, _RSP, _RIP) if register != _RBP)
_IN_PLACE = b"".join(bytes([_SAME_VALUE, register]) for register in _PT_REGS if register != _RBP)
_FRAME_OF_CPU = _IN_PLACE + bytes([_RESTORE | _RSP, _RESTORE | _RIP])


@dataclass(frozen=True)
class _Initial:
    """What holds at the start of a description: rules for the CFA, for rbp, and for the other registers.

    ``rules`` are those in the words of a CIE, which has nothing to restore.
    """

    cfa: bytes
    rbp: bytes
    others: bytes
    rules: bytes

    def cie(self, signal: bool) -> Cie:
        return Cie(_RIP, self.cfa + self.rules, signal)


_INITIAL = (
    _Initial(_ENTRY, b"", _NO_CALLER, _NO_CALLER),
    _Initial(_ENTRY, _SAME_RBP, _KEPT, _SAME_RBP + _KEPT + _saved(_RIP, -_WORD)),
    _Initial(
        _ALL_REGISTERS,
        _RBP_OF_REGISTERS,
        _SAVED,
        b"".join(_saved(number, at * _WORD - _SIZE[REGS]) for at, number in enumerate(_PT_REGS))
        + _INTERRUPTED,
    ),
    _Initial(_IRET_FRAME, _SAME_RBP, _FRAME_OF_CPU, _SAME_RBP + _IN_PLACE + _INTERRUPTED),
)
CIES = tuple(initial.cie(signal) for signal in (False, True) for initial in _INITIAL)
"""By kind (from END on), and again for frames whose caller was interrupted."""
_OF_REGISTERS, _INTERRUPTING = REGS - END, len(_INITIAL)
"""Which of them are of frames of registers; how far those of interrupted callers are from the others."""


@dataclass(frozen=True)
class _Rules:
    """What the different rows say: pieces for CFA, rbp and callee-saved registers, and the CIE of each.

    ``entry``: nothing was pushed yet.
    """

    pieces: tuple[Index, Index, Index]
    cie: Index
    entry: Bools


@dataclass(frozen=True)
class _Rows:
    """Rows as above, with one at every function's start: where they begin, the bytes up to the next one,
    which of the different rows it is, whether it describes a frame; which start a function, if that is known.
    """

    ip: U64
    delta: U64
    rule: Index
    described: Bools
    starts: Bools | None


def orc_to_frames(
    orc: OrcColumns,
    *,
    functions: U64 | None = None,
    entry_text: tuple[int, int] | None = None,
    switch_is_signal: bool = False,
) -> bytes:
    """.debug_frame for all rows that describe a frame.

    ``functions``: where they begin, in any order.  Each then has a description of its own, and one only (lldb
    looks for no other); without, descriptions begin where a row could be a function's first one.
    ``entry_text`` is the code that enters the kernel, [start, end): nothing calls from there where the stack
    ends, as ``ret_from_fork``, which is elsewhere, calls the function of a thread.
    With ``switch_is_signal`` code that goes on on another stack is marked like an interrupt: gdb ends a
    backtrace at a caller whose stack lies below that of the function it called, except there.
    Raises ValueError for more different rows than a kernel has.
    """
    pool = Pool()
    unique, row = _different(orc)
    rules = _rules(unique, pool, switch_is_signal)
    found = _by_function(orc, row, functions)
    rows = np.flatnonzero(found.described & (found.delta.view(np.int64) > 0))
    rule = found.rule[rows]
    cie = _cies(found, rows, rules.cie[rule], entry_text)
    follows = _follows(rows, cie, rules.entry[rule], found.starts)
    first = np.flatnonzero(~follows)
    programs = _programs(rows, rule, rules, cie, _steps(rows, follows, found.delta), pool)
    ends = np.append(first[1:], len(rows))[: len(first)] - 1
    start = found.ip[rows[first]]
    descriptions = Descriptions(
        start=start,
        size=found.ip[rows[ends]] + found.delta[rows[ends]] - start,
        cie=cie[first],
        first=first * programs.shape[1],
        piece=programs.reshape(-1),
    )
    return debug_frame(CIES, descriptions, pool)


def _by_function(orc: OrcColumns, rule: Index, functions: U64 | None) -> _Rows:
    """A row at the start of each function, and none for the padding within it.

    objtool writes no entry for a function that begins with what held at the end of the one before.
    """
    ip, end, starts = orc.ip, np.uint64(orc.end), None
    source = np.arange(len(ip))
    if functions is not None and len(ip):
        functions = np.unique(functions[(functions >= ip[0]) & (functions < end)])
        at = np.searchsorted(ip, functions, side="right") - 1
        missing = ip[at] != functions
        source = np.insert(source, at[missing] + 1, at[missing])
        ip = np.insert(ip, at[missing] + 1, functions[missing])
        starts = np.isin(ip, functions)
    delta: U64 = np.append(ip[1:], end) - ip
    described, rule = orc.kind[source] != UNDEFINED, rule[source]
    if starts is not None and len(ip) > 2:
        inner = ~described[1:-1] & described[:-2] & described[2:] & ~starts[1:-1] & ~starts[2:]
        padding = np.flatnonzero(inner & (delta[1:-1] < np.uint64(_PADDING))) + 1
        described[padding], rule[padding] = True, rule[padding - 1]
    return _Rows(ip, delta, rule, described, starts)


def _cies(found: _Rows, rows: Index, cie: Index, entry_text: tuple[int, int] | None) -> Index:
    """The CIE of each row's description: functions that have frames of registers and no calls share one.

    ``cie`` are those that the rows have by themselves.  Where such a function has ends of the stack too, its
    description has the mark of an interrupt in the entry text, where no frame ends, and not elsewhere: gdb
    shows no name of a frame that has it.
    """
    if found.starts is None:
        return cie
    function, kind, marked = np.cumsum(found.starts)[rows], cie % len(_INITIAL), cie >= _INTERRUPTING
    count = int(function[-1]) + 1 if len(function) else 0

    def some(mask: Bools) -> Bools:
        return np.bincount(function[mask], minlength=count) > 0

    ends, calls, whole, parts = (some(kind == number) for number in range(len(_INITIAL)))
    mixed = ~calls & ~some((kind >= _OF_REGISTERS) & ~marked) & (1 * ends + whole + parts > 1)
    low, high = entry_text or (0, 0)
    ip = found.ip[rows]
    entry = some((ip >= np.uint64(low)) & (ip < np.uint64(high)))
    interrupting, other = mixed & (entry | ~ends), mixed & ends & ~entry & (entry_text is not None)
    shared = np.where(interrupting, _OF_REGISTERS + _INTERRUPTING, np.where(other, _OF_REGISTERS, -1))[
        function
    ]
    return np.where(shared < 0, cie, shared)


def _follows(rows: Index, cie: Index, entry: Bools, starts: Bools | None) -> Bools:
    """Which rows go on with the description of the one before: a function's entry begins a new one."""
    follows = np.zeros(len(rows), dtype=np.bool_)
    begins = entry[1:] & ~entry[:-1] if starts is None else starts[rows[1:]]
    follows[1:] = (np.diff(rows) == 1) & (cie[1:] == cie[:-1]) & ~begins
    at = np.arange(len(rows))
    run = at - np.maximum.accumulate(np.where(follows, 0, at)) if len(rows) else at
    cut: Bools = follows & (run % (_LONGEST if starts is None else _LONGEST_FUNCTION) != 0)
    return cut


def _steps(rows: Index, follows: Bools, delta: U64) -> U64:
    """How far each row is from the one before in the same description; 0 where one begins."""
    steps: U64 = np.where(follows, delta[rows - 1], np.uint64(0))
    return steps


def _programs(
    rows: Index, rule: Index, rules: _Rules, cie: Index, before: U64, pool: Pool
) -> npt.NDArray[np.intp]:
    """Four pieces a row, most of them empty: how far from the last row, and what changes there."""
    steps, step = np.unique(before, return_inverse=True)
    if len(steps) > MOST_RULES:
        raise ValueError(f"{len(steps)} different distances between entries")
    programs = np.empty((len(rows), 4), dtype=np.intp)
    programs[:, 0] = pool.add_all(_advance(value) for value in steps.tolist())[step]
    for column, name in enumerate(("cfa", "rbp", "others")):
        initial = pool.add_all(getattr(initial, name) for initial in _INITIAL)
        piece = rules.pieces[column][rule]
        held = initial[cie % len(_INITIAL)]
        held[1:] = np.where(before[1:] > 0, piece[:-1], held[1:])
        programs[:, column + 1] = np.where(piece == held, EMPTY, piece)
    return programs


def _advance(distance: int) -> bytes:
    """The next row begins that many bytes further on."""
    if distance < 64:
        return bytes([0x40 | distance]) if distance else b""
    for operation, size in ((2, 1), (3, 2), (4, 4)):
        if distance < 1 << (8 * size):
            return bytes([operation]) + distance.to_bytes(size, "little")
    raise ValueError(f"code of {distance} bytes without an entry")


def _different(orc: OrcColumns) -> tuple[npt.NDArray[np.int64], Index]:
    """The different rows as numbers, and which of them each row is."""
    key = orc.kind.astype(np.int64) << 41 | orc.sp_base.astype(np.int64) << 37
    key |= orc.bp_base.astype(np.int64) << 33 | orc.signal.astype(np.int64) << 32
    key |= orc.sp_offset.view(np.uint16).astype(np.int64) << 16 | orc.bp_offset.view(np.uint16)
    unique, row = np.unique(np.where(orc.kind == UNDEFINED, 0, key), return_inverse=True)
    if len(unique) > MOST_RULES:
        raise ValueError(f"{len(unique)} different unwind entries")
    return unique, row.astype(np.intp).reshape(-1)


def _rules(unique: npt.NDArray[np.int64], pool: Pool, switch_is_signal: bool) -> _Rules:
    rows = []
    for key in unique.tolist():
        kind, sp_base, bp_base = key >> 41, key >> 37 & 0xF, key >> 33 & 0xF
        signal = bool(key >> 32 & 1) or (switch_is_signal and kind == CALL and sp_base == SP_INDIRECT)
        cie = max(kind - END, 0) + (len(_INITIAL) if signal else 0)
        if kind <= END:
            rows.append((pool.add(_ENTRY), EMPTY, pool.add(_NO_CALLER), cie, False))
            continue
        cfa, rbp = _cfa(kind, sp_base, _signed(key >> 16)), _rbp(kind, bp_base, _signed(key))
        entry = kind == CALL and cfa == _ENTRY and rbp == _SAME_RBP
        others = _INITIAL[kind - END].others if kind != CALL or entry else _LOST
        rows.append((pool.add(cfa), pool.add(rbp), pool.add(others), cie, entry))
    table = np.array(rows, dtype=np.intp).reshape(-1, 5)
    return _Rules((table[:, 0], table[:, 1], table[:, 2]), table[:, 3], table[:, 4].astype(np.bool_))


def _signed(bits: int) -> int:
    """The low 16 of them."""
    return ((bits & 0xFFFF) ^ 0x8000) - 0x8000


def _cfa(kind: int, base: int, offset: int) -> bytes:
    register, size = _DWARF_OF[base], _SIZE[kind]
    if base == SP_INDIRECT and kind == CALL:
        # since v5.12, when calls began to use it: what rsp points to, and then the offset
        rule = bytes([_BREG + register]) + sleb(0) + bytes([_DEREF]) + _plus(offset)
    elif base in (BP_INDIRECT, SP_INDIRECT):
        rule = bytes([_BREG + register]) + sleb(offset) + bytes([_DEREF]) + (_plus(size) if size else b"")
    elif offset + size < 0:
        rule = bytes([_BREG + register]) + sleb(offset + size)
    else:
        return bytes([_DEF_CFA]) + uleb(register) + uleb(offset + size)
    return bytes([_CFA_EXPRESSION]) + uleb(len(rule)) + rule


def _plus(offset: int) -> bytes:
    return bytes([_CONSTS]) + sleb(offset) + bytes([_PLUS])


def _rbp(kind: int, base: int, offset: int) -> bytes:
    if base == PREV_SP:
        return _saved(_RBP, offset - _SIZE[kind])
    if base == BP:
        where = bytes([_BREG + _RBP]) + sleb(offset)
        return bytes([_EXPRESSION, _RBP]) + uleb(len(where)) + where
    return _RBP_OF_REGISTERS if kind == REGS else _SAME_RBP
