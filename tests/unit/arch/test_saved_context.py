"""Where x86_64 kernels keep the registers of a sleeping task, from the oldest way to the newest."""

from __future__ import annotations

import pytest

from kdump_elftool.arch.x86_64 import ARCH
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.vmcoreinfo import parse

THREAD = "OFFSET(task_struct.thread)=2048\nOFFSET(thread_struct.sp)=24\n"
FRAME = "".join(
    f"OFFSET(inactive_task_frame.{member})={8 * at}\n"
    for at, member in enumerate(("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"))
)
KERNEL = (("cs", 0x10), ("ss", 0x18))
SCHEDULE, SWITCH_TO = 0xFFFFFFFF81000000, 0xFFFFFFFF80FF0000


def nothing(vaddr: int, size: int) -> bytes:
    raise FaultError("vaddr", vaddr, "not mapped")


def context(text: str, read=nothing):
    return ARCH.saved_context(Knowledge((parse(text.encode()),)), read)


def test_inactive_task_frame():
    found = context(THREAD + FRAME)
    assert found is not None
    assert found.pointer == 2072
    assert dict(found.registers) == {
        "r15": 0, "r14": 8, "r13": 16, "r12": 24, "rbx": 32, "rbp": 40, "rip": 48,
    }  # fmt: skip
    assert found.derived == (("rsp", 56),)
    assert found.constants == KERNEL


def test_a_frame_that_begins_with_the_flags():
    """Its members say where they are; nothing is counted."""
    moved = "".join(
        f"OFFSET(inactive_task_frame.{member})={8 * at + 8}\n"
        for at, member in enumerate(("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"))
    )
    found = context(THREAD + moved)
    assert found is not None
    assert dict(found.registers)["rip"] == 56
    assert found.derived == (("rsp", 64),)


@pytest.mark.parametrize(
    ("lines", "registers", "derived"),
    [
        ("SIZE(__switch_rsp_rbp_offset)=8\n", (("rbp", 8),), (("rsp", 0),)),
        ("SIZE(__switch_rsp_rbp_offset)=1\nSIZE(context_switch_frame)=64\n", (), (("rsp", 0), ("rbp", 64))),
        ("SIZE(__switch_rsp_rbp_offset)=1\nSIZE(context_switch_frame)=1\n", (("rbp", 0),), (("rsp", 16),)),
    ],
)
def test_values_made_by_hand(lines, registers, derived):
    found = context(f"{THREAD}SYMBOL(__thread_sleep_point)={SCHEDULE + 99:x}\n{lines}")
    assert found is not None
    assert (found.registers, found.derived) == (registers, derived)
    assert found.constants == (*KERNEL, ("rip", SCHEDULE + 99))


@pytest.mark.parametrize("placeholder", ["", "SYMBOL(__thread_sleep_point)=0\n"])
@pytest.mark.parametrize("at", [0, 200, 8187])
def test_the_call_in_schedule(at, placeholder):
    """Before v4.9 and without hand-made values: the place behind the call of __switch_to."""
    text = bytearray(b"\x90" * 8192)
    text[100:105] = b"\xe8\x10\0\0\0" if at != 100 else text[100:105]  # another call
    distance = SWITCH_TO - (SCHEDULE + at + 5)
    text[at : at + 5] = b"\xe8" + (distance & 0xFFFFFFFF).to_bytes(4, "little")
    symbols = f"SYMBOL(__schedule)={SCHEDULE:x}\nSYMBOL(__switch_to)={SWITCH_TO:x}\n"
    found = context(THREAD + symbols + placeholder, lambda _vaddr, size: bytes(text[:size]))
    assert found is not None
    assert (found.registers, found.derived) == ((("rbp", 0),), (("rsp", 16),))
    assert found.constants == (*KERNEL, ("rip", SCHEDULE + at + 5))


def test_too_little_is_known():
    symbols = f"SYMBOL(__schedule)={SCHEDULE:x}\nSYMBOL(__switch_to)={SWITCH_TO:x}\n"
    assert context("") is None
    assert context(FRAME) is None
    assert context(THREAD) is None
    assert context(THREAD + symbols) is None
    assert context(THREAD + symbols, lambda _vaddr, size: b"\x90" * size) is None
