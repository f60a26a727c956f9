"""The shape of a pelf: physical memory, each piece stored once, p_vaddr only where it is known.

A piece may have several addresses (the kernel image is mapped twice): its PT_LOADs share data.
"""

from __future__ import annotations

from kdump_elftool.addr import U64, align_up, merge_ranges
from kdump_elftool.elf.layout import (
    PAGE,
    CoreLayout,
    Storage,
    check_class,
    headers_size,
    place,
    place_in,
)
from kdump_elftool.elf.notes import chunk_size
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import FileSlice


def build_physical_layout(
    kind: ElfKind,
    e_machine: int,
    e_flags: int,
    segments: tuple[U64, U64, U64],
    notes: tuple[bytes | FileSlice, ...],
) -> CoreLayout:
    """Lay out ``segments`` (vaddr, paddr, size; header order) with all their memory stored once."""
    vaddr, paddr, size = segments
    stored = merge_ranges(paddr, paddr + size)
    stored_size = stored.end - stored.start
    notes_offset = headers_size(kind, len(vaddr) + 1)
    data_offset = align_up(notes_offset + sum(map(chunk_size, notes)), PAGE)
    stored_offset = place(stored.start, stored_size, data_offset)
    layout = CoreLayout(
        kind=kind,
        e_machine=e_machine,
        e_flags=e_flags,
        p_vaddr=vaddr,
        p_paddr=paddr,
        p_offset=place_in(stored.start, stored_offset, paddr),
        p_filesz=size,
        notes=notes,
        notes_offset=notes_offset,
        storage=Storage(stored.start, stored_size, stored_offset),
        file_size=int(stored_offset[-1] + stored_size[-1]) if len(stored) else data_offset,
        copied_bytes=0,
    )
    check_class(layout)
    return layout
