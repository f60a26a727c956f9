"""Frames of i386 code that keeps a frame pointer (CONFIG_FRAME_POINTER, the default there), by its prologues.

A function begins with ``push %ebp`` and ``mov %esp, %ebp``, behind ftrace's call or what that was made into.
Of one that begins in another way the caller's record is what is known.  The assembly that enters the
kernel has struct pt_regs at the stack pointer wherever it calls C.

References: arch/x86/include/asm/frame.h, arch/x86/entry/entry_32.S; Intel SDM, volume 2: PUSH, MOV, CALL,
NOP, ENDBR32.
"""

from __future__ import annotations

import re

import numpy as np

from kdump_elftool.addr import U64, u64
from kdump_elftool.kernel.code_frames import Base, CodeFrames, merged, starts_within

_WORD = 4
_START = re.compile(
    rb"(?s)(?:\xf3\x0f\x1e\xfb)?(?:\xe8....|\x0f\x1f\x44\x00\x00|\x3e\x8d\x74\x26\x00|\x66\x66\x66\x66\x90)?\x55\x89\xe5"
)
"""endbr32; a call of ftrace, or five bytes that do nothing; push and mov."""
_MOST_FUNCTIONS = 1 << 20


def i386_frames(code: bytes, vaddr: int, functions: U64, entry: tuple[int, int] | None) -> CodeFrames:
    """Rows for the instructions ``code``, which lie at ``vaddr``.

    ``functions`` are the addresses at which functions begin; ``entry`` is where the assembly is that enters
    the kernel, [start, end).
    """
    begin = starts_within(functions, vaddr, vaddr + len(code))[:_MOST_FUNCTIONS]
    low, high = entry or (0, 0)
    enters = (begin >= np.uint64(low)) & (begin < np.uint64(high))
    with_frame, pushed, sets = [], [], []
    for start in begin[~enters].tolist():
        found = _START.match(code, start - vaddr)
        if found:
            with_frame.append(start)
            pushed.append(vaddr + found.end() - 2)
            sets.append(vaddr + found.end())
    others = np.setdiff1d(begin[~enters], u64(with_frame))
    return merged(
        [
            CodeFrames.of(others, Base.FP, 2 * _WORD, 2 * _WORD),
            CodeFrames.of(begin[enters], Base.REGISTERS),
            CodeFrames.of(u64(with_frame), Base.SP, _WORD),
            CodeFrames.of(u64(pushed), Base.SP, 2 * _WORD, 2 * _WORD),
            CodeFrames.of(u64(sets), Base.FP, 2 * _WORD, 2 * _WORD),
        ]
    )
