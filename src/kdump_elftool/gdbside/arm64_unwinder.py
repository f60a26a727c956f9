"""Frames of arm64 kernels that sign their return addresses, for gdbs that can't read these.

gdb before 14 clears the bits of a signature by the mask of NT_ARM_PAC_MASK (aarch64_frame_unmask_lr in
gdb/aarch64-tdep.c), where a kernel's address wants them set: a backtrace ends behind its first frame.
Later ones still do without call frames where the code itself is not in the core, such as that for
initialisation, which the kernel has freed (aarch64_stub_unwind_sniffer()): they take the function for one
that has saved nothing, and what x30 holds, with its signature, for the caller.
"""

from __future__ import annotations

import struct
from typing import Any

import gdb
from gdb.unwinder import Unwinder, register_unwinder

from kdump_elftool.gdbside.arm64_frames import (
    PRESERVED,
    Caller,
    Here,
    PtRegs,
    by_record,
    by_row,
    end,
    is_kernel,
    without_signature,
)
from kdump_elftool.gdbside.frame_files import FrameFiles

NAME = "kdump-elftool-arm64"
MASK64 = (1 << 64) - 1
FIXED_IN = 14
"""binutils-gdb commit 6d0020873deb ("[aarch64] Enable pointer authentication support for aarch64 bare
metal/kernel mode addresses"), of February 2023."""
MASKS = ("pauth_dmask", "pauth_cmask")


def mis_unwinds(version: str) -> bool:
    """Whether a gdb that calls itself so clears the upper bits of a kernel's signed return address.

    By the version, as no feature tells: registers, notes and commands are the same before and after, and
    an unwinder cannot ask gdb how it would have unwound the same frame.
    """
    major = version.split(".", maxsplit=1)[0]
    return major.isdigit() and int(major) < FIXED_IN


class FrameId:
    """What create_unwind_info() wants; gdb.unwinder has one of its own from gdb 14 only."""

    def __init__(self, sp: Any, pc: Any) -> None:
        self.sp = sp
        self.pc = pc


class Arm64Unwinder(Unwinder):  # type: ignore[misc]
    """Unwinds what has its pc in the kernel's half of addresses, when the core says that it signs.

    With ``code_in_core`` also functions whose code is there, which later gdbs do themselves.
    """

    def __init__(self, *, code_in_core: bool) -> None:
        super().__init__(NAME)
        self._files = FrameFiles()
        self._code_in_core = code_in_core

    def __call__(self, pending: Any) -> Any | None:
        """None leaves a frame to gdb."""
        if pending.architecture().name() != "aarch64":
            return None
        mask = _register(pending, "pauth_cmask")
        if not mask:
            return None
        known = {name: _register(pending, name) for name in PRESERVED}
        registers = {name: value for name, value in known.items() if value is not None}
        if not {"pc", "x29", "x30"} <= registers.keys():
            return None
        pc = registers["pc"]
        if (pc, registers["x29"], registers["x30"]) == (0, 0, 0):
            # the end, made here; without a caller of its own gdb would call it odd
            return _info(pending, end(registers.get("sp", 0)), pc)
        mine = is_kernel(pc, mask) and (self._code_in_core or _words(pc & ~7, 1) is None)
        caller = self._caller(registers, mask) if mine else None
        return None if caller is None else _info(pending, caller, pc - (registers["x30"] == pc))

    def _caller(self, registers: dict[str, int], mask: int) -> Caller | None:
        # a caller is handed on with its pc in x30, and a sleeping task has its pc there as well
        # gdb's own unwinders leave its signature in x30
        called = without_signature(registers["x30"], mask) == registers["pc"]
        here = Here(registers, mask, called)
        row = self._files.row(registers["pc"] - here.called)
        found = None if row is None else by_row(here, row, _words)
        return by_record(here, _words, _start, _pt_regs()) if found is None else found


def _info(pending: Any, caller: Caller, pc: int) -> Any:
    """What gdb wants to hear of a frame: registers that are not named here it shows as not saved.

    The masks are handed on, as by them the next frame is known to be one of these.  gdb takes the address
    in a frame's id for the value of DW_OP_call_frame_cfa.
    """
    number = pending.read_register("x29").type
    start = _start(pc)
    frame_id = FrameId(_value(caller.frame, number), _value(pc if start is None else start, number))
    info = pending.create_unwind_info(frame_id)
    for name, value in caller.registers.items():
        info.add_saved_register(name, _value(value, number))
    for name in MASKS:
        info.add_saved_register(name, pending.read_register(name))
    return info


def _value(number: int, register_type: Any) -> Any:
    return gdb.Value(number & MASK64).cast(register_type)


def _pt_regs() -> PtRegs | None:
    """By the kernel's own types; None without them."""
    try:
        (record,) = (each for each in gdb.lookup_type("struct pt_regs").fields() if each.name == "stackframe")
        is_struct = record.type.strip_typedefs().code == gdb.TYPE_CODE_STRUCT
        return PtRegs(
            record.bitpos // 8, is_struct and any(each.name == "type" for each in record.type.fields())
        )
    except (gdb.error, ValueError):
        return None


def _start(pc: int) -> int | None:
    """Start of the function at pc, inlined ones not counted; None without debugging information."""
    try:
        block = gdb.block_for_pc(pc)
    except RuntimeError:  # nothing is known of the code there
        block = None
    found = None
    while block is not None and not block.is_static and not block.is_global:
        found = block.start
        block = block.superblock
    return found


def _register(pending: Any, name: str) -> int | None:
    """A register's value; None when the frame or the architecture has none."""
    try:
        return int(pending.read_register(name)) & MASK64
    except (ValueError, gdb.error):
        return None


def _words(address: int, count: int) -> tuple[int, ...] | None:
    """``count`` words at an address, None when not all are there."""
    try:
        data = gdb.selected_inferior().read_memory(address & MASK64, 8 * count)
    except (gdb.error, OverflowError):
        return None
    return struct.unpack(f"<{count}Q", bytes(data))


def register() -> None:
    """For all code in gdbs that need it, else for that which is not in the core."""
    register_unwinder(None, Arm64Unwinder(code_in_core=mis_unwinds(gdb.VERSION)), replace=True)
