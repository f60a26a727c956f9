"""/proc/kcore, a running kernel's memory as an ELF core, and copies of it.

Its PT_LOADs are areas of virtual addresses: the direct map of RAM, the kernel's text, and whole areas of
vmalloc, modules and struct page, of which most is not there.  The first two have physical addresses since
v4.11 (commit 464920104bf7), the others all ones; before, all have 0.  Their place in the file follows from
the virtual address, so the file seems to have 128 TB.  Notes: an empty NT_PRSTATUS, NT_PRPSINFO,
NT_TASKSTRUCT, VMCOREINFO since v4.19.

Reference: fs/proc/kcore.c of v4.4, v4.14, v6.1; arch/x86/include/asm/page_64_types.h.
"""

from __future__ import annotations

import numpy as np

from kdump_elftool.addr import Bools
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.reader import ElfHeader, Segments
from kdump_elftool.errors import UnsupportedError
from kdump_elftool.files import ByteSource

_DIRECT_MAP = (0xFFFF880000000000, 0xFFFFFFFF80000000)
"""Lowest start of x86_64's before v4.11, and the kernel's text above all."""
_STEP = 1 << 30
"""Where it is put by CONFIG_RANDOMIZE_MEMORY."""
_VMALLOC = 1 << 44
"""No piece of RAM is as large as the area that follows the direct map, 32 TB."""


def place(
    file: ByteSource, header: ElfHeader, loads: Segments, notes: tuple[Note, ...]
) -> tuple[Segments, tuple[Note, ...], bool]:
    """PT_LOADs with physical addresses, notes that say something, and whether this is /proc/kcore.

    Of any other core all of them.  Raises UnsupportedError.
    """
    nowhere = loads.p_paddr == np.uint64((1 << header.kind.bits) - 1)
    if nowhere.any():
        return _rows(loads, ~nowhere), _said(notes), True
    in_kernel = loads.p_vaddr >> np.uint64(header.kind.bits - 1) == 1
    if len(loads) > 1 and in_kernel.all() and not loads.p_paddr.any():
        return _by_direct_map(file, header, loads), _said(notes), True
    return loads, notes, False


def _by_direct_map(file: ByteSource, header: ElfHeader, loads: Segments) -> Segments:
    low, high = (np.uint64(edge) for edge in _DIRECT_MAP)
    inside = (loads.p_vaddr >= low) & (loads.p_vaddr < high)
    areas = loads.p_vaddr[inside & (loads.p_memsz >= np.uint64(_VMALLOC))]
    if len(areas):
        inside &= loads.p_vaddr < areas.min()
    if header.e_machine != c.EM_X86_64 or not inside.any():
        raise UnsupportedError(
            file.path,
            "its program headers have no physical addresses",
            hint="/proc/kcore of kernels before v4.11 has none; only that of x86_64 is read without",
        )
    found = _rows(loads, inside)
    base = found.p_vaddr.min() // np.uint64(_STEP) * np.uint64(_STEP)
    columns = {name: getattr(found, name) for name in Segments.__dataclass_fields__}
    return Segments(**{**columns, "p_paddr": found.p_vaddr - base})


def _rows(loads: Segments, keep: Bools) -> Segments:
    return Segments(*(getattr(loads, name)[keep] for name in Segments.__dataclass_fields__))


def _said(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    """Without the registers of nothing."""

    def is_empty(note: Note) -> bool:
        return note.type == c.NT_PRSTATUS and isinstance(note.desc, bytes) and not any(note.desc)

    return tuple(note for note in notes if not is_empty(note))
