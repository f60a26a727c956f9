"""Two plain unwinders of one step: by ORC as the kernel does it, by call frames as DWARF says.

Memory is a dict of words by address, registers a dict by DWARF number; what is not known is None.
References: arch/x86/kernel/unwind_orc.c (unwind_next_frame()); DWARF 5, 2.5 and 6.4.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from tests.builders.orc import Row

MASK = (1 << 64) - 1
RBX, RBP, RSP, RIP = 3, 6, 7, 16
NUMBERS = {"ax": 0, "dx": 1, "di": 5, "bp": 6, "sp": 7, "r10": 10, "r13": 13}
CALLEE_SAVED = (RBX, 12, 13, 14, 15)
PT_REGS = (15, 14, 13, 12, RBP, RBX, 11, 10, 9, 8, 0, 2, 1, 4, 5)
"""Words of struct pt_regs; orig_ax is the next."""

Registers = Mapping[int, int]
Memory = Mapping[int, int]


@dataclass(frozen=True)
class Caller:
    """``registers`` of the caller that are known; ``signal``: it was interrupted."""

    registers: dict[int, int]
    signal: bool


def by_orc(row: Row, registers: Registers, memory: Memory) -> Caller | None:
    """One step; None where there is no caller.  What ORC does not know of is left out."""
    if row.kind in ("undefined", "end"):
        return None
    sp = _base(row, registers, memory)
    known: dict[int, int] = {}
    if row.kind == "call":
        known = {RIP: memory[_at(sp - 8)], RSP: sp}
        if row.sp == "sp" and row.sp_offset == 8 and not row.rbp:
            known |= {number: registers[number] for number in CALLEE_SAVED}
    elif row.kind == "regs":
        known = {number: memory[_at(sp + 8 * word)] for word, number in enumerate(PT_REGS)}
        known |= {RIP: memory[_at(sp + 128)], RSP: memory[_at(sp + 152)]}
    else:
        known = {number: registers[number] for number in (*CALLEE_SAVED, RBP)}
        known |= {RIP: memory[_at(sp)], RSP: memory[_at(sp + 24)]}
    if row.rbp == "cfa":
        known[RBP] = memory[_at(sp + row.rbp_offset)]
    elif row.rbp == "bp":
        known[RBP] = memory[_at(registers[RBP] + row.rbp_offset)]
    elif row.kind == "call":
        known[RBP] = registers[RBP]
    return Caller(known, row.signal)


def _base(row: Row, registers: Registers, memory: Memory) -> int:
    if row.sp == "(sp)" and row.kind == "call":
        return _at(memory[registers[RSP]] + row.sp_offset)
    if row.sp in ("(sp)", "(bp)"):
        return memory[_at(registers[NUMBERS[row.sp[1:3]]] + row.sp_offset)]
    return _at(registers[NUMBERS[row.sp]] + row.sp_offset)


def _at(address: int) -> int:
    return address & MASK


class CallFrames:
    """The .debug_frame of an ELF file, read by pyelftools."""

    def __init__(self, elf: bytes) -> None:
        entries = ELFFile(io.BytesIO(elf)).get_dwarf_info().CFI_entries()
        self.fdes = [entry for entry in entries if isinstance(entry, FDE)]
        self.rows = {fde.offset: fde.get_decoded().table for fde in self.fdes}

    def of(self, pc: int) -> FDE | None:
        """The description of an address."""
        found = [fde for fde in self.fdes if 0 <= pc - fde["initial_location"] < fde["address_range"]]
        assert len(found) <= 1, "descriptions overlap"
        return found[0] if found else None

    def step(self, pc: int, registers: Registers, memory: Memory) -> Caller | None:
        """One step; None where there is no caller."""
        fde = self.of(pc)
        if fde is None:
            return None
        row = [row for row in self.rows[fde.offset] if row["pc"] <= pc][-1]
        cfa = row["cfa"]
        if cfa.expr is None:
            value = _at(registers[cfa.reg] + cfa.offset)
        else:
            value = evaluate(cfa.expr, [], registers, memory)
        known = dict(registers) | {RSP: value}
        del known[RIP]
        for number, rule in row.items():
            if not isinstance(number, int):
                continue
            known.pop(number, None)
            if rule.type == "SAME_VALUE":
                known[number] = registers[number]
            elif rule.type == "OFFSET":
                known[number] = memory[_at(value + rule.arg)]
            elif rule.type == "EXPRESSION":
                known[number] = memory[evaluate(rule.arg, [value], registers, memory)]
            else:
                assert rule.type == "UNDEFINED", rule.type
        return Caller(known, b"S" in fde.cie["augmentation"]) if RIP in known else None


def evaluate(code: Sequence[int], stack: list[int], registers: Registers, memory: Memory) -> int:
    """A DWARF expression of the operations that frames need."""
    stack, at = list(stack), 0

    def signed() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = code[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if byte & 0x40 else value

    while at < len(code):
        operation = code[at]
        at += 1
        if 0x70 <= operation <= 0x8F:  # DW_OP_breg
            stack.append(_at(registers[operation - 0x70] + signed()))
        elif operation == 0x06:  # DW_OP_deref
            stack.append(memory[stack.pop()])
        elif operation == 0x11:  # DW_OP_consts
            stack.append(signed())
        elif operation == 0x22:  # DW_OP_plus
            stack.append(_at(stack.pop() + stack.pop()))
        else:
            raise AssertionError(f"operation {operation:#x}")
    return stack[-1]
