"""Callers of arm64 functions on stacks made of numbers."""

from __future__ import annotations

import pytest

from kdump_elftool.gdbside.arm64_frames import (
    Caller,
    Here,
    PtRegs,
    by_record,
    by_row,
    end,
    is_kernel,
    without_signature,
)
from kdump_elftool.gdbside.call_frames import Row

MASK = 0xFFFF << 48
TEXT = 0xFFFFC08067AC0000
STACK = 0xFFFF80000804B000
SIGNED = 0x02C1C08067AC0500
RETURNS = 0xFFFFC08067AC0500
REGS = PtRegs(0x130, has_type=False)
TYPED = PtRegs(0x130, has_type=True)


def memory(**words: int):
    """Words by their offset from STACK, as ``at_10=...`` in hex."""
    known = {STACK + int(name.removeprefix("at_"), 16): value for name, value in words.items()}

    def read(address: int, count: int) -> tuple[int, ...] | None:
        wanted = [address + 8 * index for index in range(count)]
        return tuple(known[at] for at in wanted) if known.keys() >= set(wanted) else None

    return read


def here(called: bool = True, **registers: int) -> Here:
    pc = registers.pop("pc", TEXT)
    given = {"pc": pc, "x29": STACK, "x30": pc if called else SIGNED, "sp": STACK, **registers}
    return Here(given, MASK, called)


def start(address: int) -> int | None:
    """Functions of 256 bytes."""
    return address & ~0xFF


@pytest.mark.parametrize("mask", [MASK, 0xFF7F << 48, 0xFFF0 << 48])
def test_signatures_are_taken_off(mask):
    """Masks with and without bit 55, and of 52 address bits."""
    address = RETURNS | 0x000F << 48
    for signature in (0, 0xFFFF << 48, 0x1234 << 48, 1 << 63):
        signed = address & ~mask | signature & mask | 1 << 55
        assert without_signature(signed, mask) == address
    assert is_kernel(address, mask)
    assert not is_kernel(address & ~(1 << 60), mask)


def test_addresses_of_processes_stay():
    assert without_signature(0x4006DC, MASK) == 0x4006DC
    assert not is_kernel(0x4006DC, MASK)


def test_a_row_gives_all_registers_of_the_caller():
    words = memory(at_0=STACK + 0x100, at_8=SIGNED, at_10=19)
    row = Row(31, 0x20, {29: -0x20, 30: -0x18, 19: -0x10})
    registers = {
        "x29": STACK + 0x100,
        "x30": RETURNS,
        "pc": RETURNS,
        "sp": STACK + 0x20,
        "x19": 19,
        "x20": 20,
    }
    assert by_row(here(x19=1, x20=20), row, words) == Caller(registers, STACK + 0x20)
    without_sp = Here({"pc": TEXT, "x29": STACK, "x30": TEXT, "x20": 20}, MASK, True)
    assert by_row(without_sp, row, words) == Caller(registers, STACK + 0x20)


def test_a_leaf_returns_by_x30():
    found = by_row(here(called=False, sp=STACK + 8), Row(31, 0x10, {}), memory())
    assert found == Caller({"pc": RETURNS, "x30": RETURNS, "x29": STACK, "sp": STACK + 0x18}, STACK + 0x18)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row(31, 0x30, {29: -0x20, 30: -0x18}), "sp and x29 don't agree"),
        (Row(31, 0x20, {29: -0x20, 30: -0x18, 19: 0x40}), "memory that is not there"),
        (Row(31, 0x20, {29: -0x20, 30: -0x10}), "a return address of a process"),
        (Row(5, 0x20, {}), "a register that is not known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_is_contradicted_gives_nothing(row, why):
    assert by_row(here(), row, memory(at_0=STACK + 0x100, at_8=SIGNED, at_10=0x4006DC)) is None


def test_records_give_what_they_hold():
    words = memory(at_0=STACK + 0x100, at_8=SIGNED)
    found = by_record(here(), words, start, None)
    assert found == Caller({"pc": RETURNS, "x30": RETURNS, "x29": STACK + 0x100}, STACK)


@pytest.mark.parametrize("pc", [TEXT + 16, TEXT + 0x100], ids=["inside", "behind a call at its end"])
def test_the_function_itself_says_where_its_frame_begins(pc):
    """stp x29, x30, [sp, #-32]!, before pc."""
    stack = memory(at_0=STACK + 0x100, at_8=SIGNED)

    def words(address: int, count: int) -> tuple[int, ...] | None:
        return (0xA9BE7BFD << 32 | 0xD503233F,) * count if address == TEXT else stack(address, count)

    found = by_record(here(pc=pc), words, start, None)
    registers = {"pc": RETURNS, "x30": RETURNS, "x29": STACK + 0x100, "sp": STACK + 32}
    assert found == Caller(registers, STACK + 32)


@pytest.mark.parametrize("words", [memory(), memory(at_0=0, at_8=0), memory(at_0=STACK, at_8=0x4006DC)])
def test_the_chain_ends(words):
    assert by_record(here(), words, start, None) == end(STACK)
    assert end(STACK).registers["pc"] == 0


def test_a_function_without_a_record_returns_by_x30():
    """At its first instruction: x29 is the caller's."""
    words = memory(at_0=STACK + 0x100, at_8=SIGNED + 0x1000)
    found = by_record(here(called=False), words, start, None)
    assert found == Caller({"pc": RETURNS, "x30": RETURNS, "x29": STACK, "sp": STACK}, STACK)


@pytest.mark.parametrize("x30", [SIGNED, TEXT + 0x40], ids=["before its first call", "after it"])
def test_a_function_that_has_its_record(x30):
    words = memory(at_0=STACK + 0x100, at_8=SIGNED)
    found = by_record(here(called=False, x30=x30), words, start, None)
    assert found is not None
    assert found.registers["x29"] == STACK + 0x100


def test_nothing_is_known_without_a_return_address():
    assert by_record(here(called=False, x30=0), memory(), start, None) is None


def exception(record: tuple[int, int], kind: int = 0):
    """struct pt_regs at STACK, its record in it: x0 is 0x100, x1 0x101, ..."""
    words = {f"at_{8 * number:x}": 0x100 + number for number in range(34)}
    words |= {"at_e8": STACK + 0x300, "at_100": TEXT + 0x2000}
    words |= {"at_130": record[0], "at_138": record[1], "at_140": kind}
    return memory(**words)


@pytest.mark.parametrize(
    ("record", "kind", "regs"),
    [((0, 0), 2, TYPED), ((STACK + 0x300, TEXT + 0x2000), 0, REGS)],
    ids=["6.13 and later", "before"],
)
def test_an_exception_saved_everything(record, kind, regs):
    found = by_record(here(x29=STACK + 0x130), exception(record, kind), start, regs)
    assert found is not None
    wanted = {f"x{number}": 0x100 + number for number in range(31)}
    wanted |= {"x29": STACK + 0x300, "sp": 0x11F, "pc": TEXT + 0x2000}
    assert found == Caller(wanted, STACK + 0x130)


@pytest.mark.parametrize(("kind", "regs"), [(1, TYPED), (2, REGS), (0, TYPED)])
def test_a_process_entry_ends_the_chain(kind, regs):
    found = by_record(here(x29=STACK + 0x130), exception((0, 0), kind), start, regs)
    assert found == end(STACK + 0x130)


def test_other_records_are_no_exceptions():
    found = by_record(here(x29=STACK + 0x130), exception((STACK + 0x300, SIGNED)), start, REGS)
    assert found is not None
    assert found.registers == {"pc": RETURNS, "x30": RETURNS, "x29": STACK + 0x300}
