"""Call frames of a vmlinux that lies where it was linked: what drgn lacks to unwind a kernel's stacks.

drgn reads the ORC tables of a dump itself, but they leave functions out; ``__crash_kexec``, in which the CPU
stands that dumped, is one.  With no frame for that it goes on by rbp, which is not a frame pointer there, and
loses callers or all of the stack.  A kernel without ORC gets all of its frames.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from kdump_elftool.addr import MASK64, U64, Ranges, u64
from kdump_elftool.dwarf.code_to_frames import code_to_frames
from kdump_elftool.dwarf.orc_to_frames import orc_to_frames
from kdump_elftool.elf.constants import EM_X86_64
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.frames import FrameFile, functions_of
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.pointer_frames import pointer_frames
from kdump_elftool.kernel.code_frames import within
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.orc import OrcTable, joined, read_kernel_orc
from kdump_elftool.kernel.prologue import prologues

log = logging.getLogger(__name__)


def link_frames(
    dump: Dump, kernel: Kernel, known: Knowledge, symbols: Kallsyms, offset: int
) -> FrameFile | None:
    """The section .debug_frame for the kernel moved down by ``offset``; None if nothing is to be described.

    Modules are not in it: drgn takes their tables out of the dump, too.
    """
    window = kernel.identity.image_window
    table = None
    if kernel.arch.e_machine == EM_X86_64 and kernel.arch.bits == 64:
        table = read_kernel_orc(kernel.virtual(dump), known, window)
    try:
        if table is not None:
            left_out = prologues(table, functions_of(symbols), kernel.virtual(dump).read)
            return orc_leaves_out(left_out, offset)
        return _by_pointers(dump, kernel, known, symbols, offset)
    except ValueError as error:
        log.warning("frames: %s", error)
        return None


def orc_leaves_out(tables: list[OrcTable], offset: int = 0) -> FrameFile | None:
    """For what :func:`kernel.prologue.prologues` found.  Raises ValueError like ``orc_to_frames``."""
    if not tables:
        return None
    table = joined(tables)
    starts = u64([table.ip[0] for table in tables])
    moved = replace(table, ip=_lower(table.ip, offset), end=table.end - offset & MASK64)
    return FrameFile(orc_to_frames(moved, functions=_lower(starts, offset)), len(table), ())


def _by_pointers(
    dump: Dump, kernel: Kernel, known: Knowledge, symbols: Kallsyms, offset: int
) -> FrameFile | None:
    found = pointer_frames(dump, kernel, known, symbols)
    if found is None:
        return None
    frames, machine = found
    low, high = kernel.identity.image_window
    frames = within(frames, Ranges(u64([low]), u64([high])))
    frames = replace(frames, ip=_lower(frames.ip, offset))
    return FrameFile(code_to_frames(frames, machine, dump.kind.order), len(frames), ())


def _lower(address: U64, offset: int) -> U64:
    return address - np.uint64(offset & MASK64)
