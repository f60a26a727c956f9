"""Prologues: the assembler says where the frame is, in the same instructions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from kdump_elftool.addr import u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.orc import V6_4, Base, Kind, OrcTable, joined
from kdump_elftool.kernel.prologue import LONGEST, Step, prologues, steps_of

PUSH_RBX = "push %rbx; .cfi_def_cfa_offset 16"
PUSH_RBP = "push %rbp; .cfi_def_cfa_offset 16; .cfi_offset %rbp, -16"
ENDS = "lock cmpxchg %edx, 0x1234(%rip); push %rax"
"""What no prologue has, and what is not looked at any more."""
BODIES = {
    "5.10 and 6.1": f"""
        call other; {PUSH_RBX}; mov $1, %edx; sub $0xb0, %rsp; .cfi_def_cfa_offset 192
        mov %gs:0x28, %rax; mov %rax, 0xa8(%rsp); xor %eax, %eax; {ENDS}""",
    "5.10, where the CPU has other nops": f"""
        .byte 0x66, 0x66, 0x66, 0x66, 0x90; {PUSH_RBX}; sub $0xb0, %rsp; .cfi_def_cfa_offset 192; {ENDS}""",
    "6.12": f"""
        endbr64; call other; {PUSH_RBX}; xor %eax, %eax; mov %rdi, %rbx
        sub $0xb0, %rsp; .cfi_def_cfa_offset 192; mov %gs:0x28, %rax; {ENDS}""",
    "7.2": f"""
        nopl -42(%rax); .byte 0x0f, 0x1f, 0x44, 0, 0; sub $0xb8, %rsp; .cfi_def_cfa_offset 192
        mov $1, %edx; mov %gs:0x1234(%rip), %rax; mov %rax, 0xa8(%rsp); {ENDS}""",
    "sealed otherwise": f".byte 0x66, 0x0f, 0x1f, 0x00; call other; {PUSH_RBX}; {ENDS}",
    "frame pointer": f"""
        endbr64; call other; {PUSH_RBP}; mov %rsp, %rbp; .cfi_def_cfa %rbp, 16
        push %r15; push %r14; push %rbx; sub $0x20, %rsp; mov %rdi, %r12; {ENDS}""",
    "all callee-saved": f"""
        {PUSH_RBP}
        push %r15; .cfi_def_cfa_offset 24
        push %r14; .cfi_def_cfa_offset 32
        mov %rsi, %r14
        push %r13; .cfi_def_cfa_offset 40
        push %r12; .cfi_def_cfa_offset 48
        movq $7, %rbx
        push %rbx; .cfi_def_cfa_offset 56
        sub $16, %rsp; .cfi_def_cfa_offset 72
        mov %rbx, 8(%rsp); {ENDS}""",
    "moves between the pushes": f"""
        push %r14; .cfi_def_cfa_offset 16
        mov %ecx, %r14d
        push %r13; .cfi_def_cfa_offset 24
        mov %rdi, %r13
        push %r12; .cfi_def_cfa_offset 32
        mov $7, %r12d; xor %r13, %r12
        push %rbp; .cfi_def_cfa_offset 40; .cfi_offset %rbp, -40
        mov %rsi, %rbp; mov $1, %ebp
        {PUSH_RBX.replace("16", "48")}; {ENDS}""",
    "a frame pointer that is lost": f"""
        {PUSH_RBP}; mov %rsp, %rbp; .cfi_def_cfa %rbp, 16; mov %rsi, %rbp; push %rbx; {ENDS}""",
    "rbp in between": f"""
        {PUSH_RBX}; push %rbp; .cfi_def_cfa_offset 24; .cfi_offset %rbp, -24; mov %rsi, %rax; {ENDS}""",
}


def assembled(body: str, folder: Path) -> tuple[bytes, list[Step]]:
    """The bytes of a function, and what its call-frame information says."""
    source = f".cfi_sections .debug_frame\n.globl other\n.text\nf: .cfi_startproc\n{body}\n.cfi_endproc\n"
    built = folder / "f.o"
    done = subprocess.run(["as", "--64", "-o", built, "-"], input=source, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    with built.open("rb") as file:
        elf = ELFFile(file)
        text = elf.get_section_by_name(".text").data()
        entries = elf.get_dwarf_info().CFI_entries()
        table = next(entry for entry in entries if isinstance(entry, FDE)).get_decoded().table
    registers = {6: Base.BP, 7: Base.SP}
    return text, [
        Step(row["pc"], registers[row["cfa"].reg], row["cfa"].offset, row[6].arg if 6 in row else 0)
        for row in table
    ]


def changes(steps: list[Step]) -> list[Step]:
    """Without the steps that change nothing."""
    different = [
        0,
        *(
            i
            for i in range(1, len(steps))
            if vars(steps[i]) | {"offset": 0} != vars(steps[i - 1]) | {"offset": 0}
        ),
    ]
    return [steps[index] for index in different]


@pytest.mark.parametrize("name", BODIES)
def test_as_the_assembler_says(name: str, tmp_path: Path) -> None:
    text, wanted = assembled(BODIES[name], tmp_path)
    found = changes(steps_of(text))
    assert found == wanted
    assert len(found) > 1


@pytest.mark.parametrize(
    "body",
    [
        "mov %rdi, %rax; ret",
        "jmp other",
        "mov %rdi, %rsp; push %rax",
        "xor %ebp, %ebp; push %rax",
        "mov $1, %ebp; push %rax",
        "mov 8(%rdi), %rsp; push %rax",
        "call other; call other; push %rbx",
        "sub $-8, %rsp",
        "mov %rsp, %rbp; push %rax",
        ".rept 99; nop; .endr",
    ],
)
def test_what_makes_no_frame(body: str, tmp_path: Path) -> None:
    text, _ = assembled(body, tmp_path)
    assert steps_of(text) == []


@pytest.mark.parametrize(
    "data", [b"", b"\x53", b"\x48", b"\x48\x81\xec\0", b"\xf3\x0f\x1e", b"\x53" * 200], ids=len
)
def test_any_bytes(data: bytes) -> None:
    steps = steps_of(data)
    assert all(step.offset <= LONGEST + 8 for step in steps)
    assert not steps or steps[-1].distance <= 8 + 8 * LONGEST


# ---- beside a table --------------------------------------------------------------------------------


def table(rows: list[tuple[int, int]], end: int) -> OrcTable:
    count = len(rows)
    return OrcTable(
        ip=u64([ip for ip, _ in rows]),
        kind=np.array([kind for _, kind in rows], dtype=np.uint8),
        sp_base=np.full(count, Base.SP, dtype=np.uint8),
        sp_offset=np.full(count, 8, dtype=np.int16),
        bp_base=np.zeros(count, dtype=np.uint8),
        bp_offset=np.zeros(count, dtype=np.int16),
        signal=np.zeros(count, dtype=np.bool_),
        end=end,
        format=V6_4,
    )


def test_only_functions_without_entries() -> None:
    known = table(
        [(0x1000, Kind.CALL), (0x1100, Kind.UNDEFINED), (0x1300, Kind.CALL), (0x1400, Kind.UNDEFINED)], 0x1500
    )
    functions = u64([0x1400, 0x1000, 0x1100, 0x1100, 0x1200, 0x1300, 0x2000, 0x800])
    asked = []

    def read(vaddr: int, size: int) -> bytes:
        asked.append((vaddr, size))
        if vaddr == 0x1200:
            raise FaultError("vaddr", vaddr, "not there")
        return b"\x53" + b"\xcc" * (size - 1)

    found = prologues(known, functions, read)
    assert asked == [(0x1100, LONGEST), (0x1200, LONGEST), (0x1400, LONGEST)]
    assert [(each.ip.tolist(), each.end) for each in found] == [
        ([0x1100, 0x1101], 0x1200),
        ([0x1400, 0x1401], 0x1500),
    ]
    whole = joined([known, *found])
    assert list(zip(whole.ip.tolist(), whole.kind.tolist(), whole.sp_offset.tolist(), strict=True)) == [
        (0x1000, Kind.CALL, 8),
        (0x1100, Kind.CALL, 8),
        (0x1101, Kind.CALL, 16),
        (0x1200, Kind.UNDEFINED, 0),
        (0x1300, Kind.CALL, 8),
        (0x1400, Kind.CALL, 8),
        (0x1401, Kind.CALL, 16),
        (0x1500, Kind.UNDEFINED, 0),
    ]


def test_a_function_that_ends_within_its_prologue() -> None:
    """What its last instruction leaves behind is not the rule for the function that follows."""
    known = table([(0x1000, Kind.UNDEFINED), (0x1001, Kind.CALL)], 0x1100)
    found = prologues(known, u64([0x1000, 0x1001]), lambda vaddr, size: b"\x53" * size)
    assert [each.ip.tolist() for each in found] == [[0x1000]]
    whole = joined([known, *found])
    assert list(zip(whole.ip.tolist(), whole.sp_offset.tolist(), strict=True))[:2] == [
        (0x1000, 8),
        (0x1001, 8),
    ]
