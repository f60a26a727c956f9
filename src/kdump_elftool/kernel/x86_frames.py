"""Frames of x86 code that keeps a frame pointer, by its prologues: CONFIG_UNWINDER_FRAME_POINTER.

That is the default of 32-bit kernels.  A function begins with ``push %ebp`` and ``mov %esp, %ebp``, behind
ftrace's call or what that was made into.  Of one that begins in another way the caller's record is what is
known.  The assembly that enters the kernel has struct pt_regs at the stack pointer wherever it calls C.

References: arch/x86/include/asm/frame.h, arch/x86/entry/entry_32.S and entry_64.S; Intel SDM, volume 2: PUSH,
MOV, CALL, NOP, ENDBR32.
"""

from __future__ import annotations

import re

import numpy as np

from kdump_elftool.addr import U64, u64
from kdump_elftool.kernel.code_frames import Base, CodeFrames, merged, starts_within

HEAD = (
    rb"(?s)(?:\xf3\x0f\x1e[\xfa\xfb]|\x66\x0f\x1f\x00|\x0f\x1f\x40\xd6)?"
    rb"(?:\xe8....|\x0f\x1f\x44\x00\x00|\x3e\x8d\x74\x26\x00|\x66\x66\x66\x66\x90)?"
)
"""endbr, or what seals it; a call of ftrace, or what does nothing on this CPU (asm/nops.h of v5.10)."""
_START = {4: re.compile(HEAD + rb"\x55(\x89\xe5)"), 8: re.compile(HEAD + rb"\x55(\x48\x89\xe5)")}
"""push and mov, by the size of a word."""
_MOST_FUNCTIONS = 1 << 20
_FEWEST = 0.2
"""Functions with a frame pointer to those without: code that keeps one has more of the former."""


def x86_frames(
    code: bytes, vaddr: int, functions: U64, entry: tuple[int, int] | None, word: int
) -> CodeFrames:
    """Rows for the instructions ``code``, which lie at ``vaddr``, of a machine with words of 4 or 8 bytes.

    They describe nothing if few functions keep a frame pointer: then the register is used for something else.

    ``functions`` are the addresses at which functions begin; ``entry`` is where the assembly is that enters
    the kernel, [start, end).
    """
    begin = starts_within(functions, vaddr, vaddr + len(code))[:_MOST_FUNCTIONS]
    low, high = entry or (0, 0)
    enters = (begin >= np.uint64(low)) & (begin < np.uint64(high))
    with_frame, pushed, sets = [], [], []
    for start in begin[~enters].tolist():
        found = _START[word].match(code, start - vaddr)
        if found:
            with_frame.append(start)
            pushed.append(vaddr + found.start(1))
            sets.append(vaddr + found.end())
    others = np.setdiff1d(begin[~enters], u64(with_frame))
    if len(with_frame) < _FEWEST * len(others):
        return CodeFrames.of(begin, Base.UNDEFINED)
    return merged(
        [
            CodeFrames.of(others, Base.FP, 2 * word, 2 * word),
            CodeFrames.of(begin[enters], Base.REGISTERS),
            CodeFrames.of(u64(with_frame), Base.SP, word),
            CodeFrames.of(u64(pushed), Base.SP, 2 * word, 2 * word),
            CodeFrames.of(u64(sets), Base.FP, 2 * word, 2 * word),
        ]
    )
