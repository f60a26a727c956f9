"""arm: short and long (LPAE) table descriptors, NT_PRSTATUS layout, where the kernel lies.

References: ARM Architecture Reference Manual, ARMv7-A and ARMv7-R edition (DDI 0406C), B3.5 (short-descriptor
format) and B3.6 (long-descriptor format); arch/arm/include/asm/memory.h (PAGE_OFFSET, modules),
arch/arm/kernel/head.S (PHYS_OFFSET, PG_DIR_SIZE), arch/arm/include/asm/sparsemem.h,
arch/arm/include/asm/thread_info.h (struct cpu_context_save), include/linux/elfcore.h.

Linux sees its first level in pairs of 1 MB; the processor reads 4096 entries, and so does this.
The first levels of the kernel and of a process map the whole address space: a process's has a copy of
the kernel's entries.
"""

from __future__ import annotations

import numpy as np

from kdump_elftool.addr import U64, Ranges, align_down
from kdump_elftool.arch.base import (
    Architecture,
    Entries,
    Entry,
    KernelFacts,
    KernelNumbers,
    Level,
    PagingForm,
    PrStatusLayout,
    Read,
    Region,
    SavedContext,
)
from kdump_elftool.elf.constants import EM_ARM

TOP = 1 << 32
VECTORS = TOP - (64 << 10)
PAGE_OFFSETS = (0xC0000000, 0xB0000000, 0x80000000, 0x40000000)
"""Where the direct map, and the image in it, may begin (choice VMSPLIT, arch/arm/Kconfig)."""
IMAGE_SIZE = 64 << 20
"""No image is larger; modules must be in reach of its text with branches of 32 MB."""
_BELOW = 512 << 20
"""Modules (16 MB) and KASAN's shadow (1/8 of what is above) lie below the direct map."""

_FAULT, _TABLE, _LARGE_PAGE = 0, 1, 1
_SUPER = 1 << 18
_SUPER_SIZE, _LARGE_SIZE = 1 << 24, 1 << 16

SECTION = Level("pgd", 20, 12, 4)
SMALL = Level("pte", 12, 8, 4)


def decode_short(entries: U64, level: Level, raw: U64) -> Entries:
    """Decode a column of 32-bit descriptors; supersections and large pages stand 16 times in their table."""
    kind = entries & np.uint64(3)
    if level.name == "pte":
        large = kind == _LARGE_PAGE
        base = _masked(entries, 32, _LARGE_SIZE) | (raw & np.uint64(_LARGE_SIZE - level.span))
        paddr = np.where(large, base, _masked(entries, 32, level.span))
        return Entries(table=np.zeros(len(entries), dtype=np.bool_), leaf=kind != _FAULT, paddr=paddr)
    table = kind == _TABLE
    # bit 1 set is a section, with or without PXN in bit 0
    leaf = kind > np.uint64(_TABLE)
    wide = (entries & np.uint64(0xF << 20)) << np.uint64(12) | (entries & np.uint64(0xF << 5)) << np.uint64(
        31
    )
    base = _masked(entries, 32, _SUPER_SIZE) | wide | (raw & np.uint64(_SUPER_SIZE - level.span))
    section = np.where((entries & np.uint64(_SUPER)) != 0, base, _masked(entries, 32, level.span))
    return Entries(
        table=table, leaf=leaf, paddr=np.where(table, _masked(entries, 32, SMALL.table_size), section)
    )


def decode_short_one(entry: int, level: Level, raw: int) -> Entry:
    """Decode one entry; the plain twin of :func:`decode_short`."""
    kind = entry & 3
    if kind == _FAULT:
        return Entry("none", 0)
    if level.name == "pte":
        if kind == _LARGE_PAGE:
            return Entry(
                "leaf", align_down(entry, _LARGE_SIZE) + raw % _LARGE_SIZE // level.span * level.span
            )
        return Entry("leaf", align_down(entry, level.span))
    if kind == _TABLE:
        return Entry("table", align_down(entry, SMALL.table_size))
    if entry & _SUPER:
        wide = (entry >> 20 & 15) << 32 | (entry >> 5 & 15) << 36
        return Entry(
            "leaf", wide | align_down(entry, _SUPER_SIZE) + raw % _SUPER_SIZE // level.span * level.span
        )
    return Entry("leaf", align_down(entry, level.span))


def decode_long(entries: U64, level: Level, raw: U64) -> Entries:
    """Decode a column of 64-bit descriptors; in the last level bit 1 clear is no block but reserved."""
    del raw
    valid, low = (entries & np.uint64(1)) != 0, (entries & np.uint64(2)) != 0
    if level.name == "pte":
        table, leaf = np.zeros(len(entries), dtype=np.bool_), valid & low
    else:
        table, leaf = valid & low, valid & ~low
    return Entries(
        table, leaf, np.where(leaf, _masked(entries, 40, level.span), _masked(entries, 40, 1 << 12))
    )


def decode_long_one(entry: int, level: Level, raw: int) -> Entry:
    """Decode one entry; the plain twin of :func:`decode_long`."""
    del raw
    last = level.name == "pte"
    if not entry & 1 or (last and not entry & 2):
        return Entry("none", 0)
    address = entry & ((1 << 40) - 1)
    if last or not entry & 2:
        return Entry("leaf", align_down(address, level.span))
    return Entry("table", align_down(address, 1 << 12))


def _masked(entries: U64, top: int, size: int) -> U64:
    """The address bits of entries: below ``top``, above those within ``size`` bytes."""
    return entries & np.uint64((1 << top) - size)


def _form(name: str, kernel: KernelNumbers) -> PagingForm:
    """``short`` or ``LPAE``.  The kernel's half is what its image, if known, says; else everything."""
    offset = _page_offset(kernel)
    split = 0 if offset is None else offset - _BELOW
    is_short = name == "short"
    return PagingForm(
        name=f"arm {name}",
        levels=(SECTION, SMALL)
        if is_short
        else (Level("pgd", 30, 2), Level("pmd", 21, 9), Level("pte", 12, 9)),
        decode=decode_short if is_short else decode_long,
        decode_one=decode_short_one if is_short else decode_long_one,
        physmem_bits=36,
        section_size_bits=28,
        kernel=Region(split, TOP),
        user=Region(0, split),
        byte_order="",
    )


def _paging_forms(kernel: KernelNumbers) -> tuple[PagingForm, ...]:
    """CONFIG_ARM_LPAE=y decides where VMCOREINFO has it; a kernel without the line may still be one."""
    names = ("LPAE", "short") if kernel.text("CONFIG_ARM_LPAE") == "y" else ("short", "LPAE")
    return tuple(_form(name, kernel) for name in names)


def _page_offset(kernel: KernelNumbers) -> int | None:
    """PAGE_OFFSET by an address of the image, which begins at most TEXT_OFFSET behind it."""
    vaddr = kernel.symbol("swapper_pg_dir") or kernel.symbol("_stext")
    if vaddr is None or vaddr >= TOP:
        return None
    return next((offset for offset in PAGE_OFFSETS if offset <= vaddr), None)


_MOST_PLACES = 64
_STEPS = (2 << 20, 128 << 20)
"""PHYS_OFFSET is a multiple of 2 MB (v5.11 on; of 16 MB before).  Firmware may keep the first RAM for
itself: the decompressor goes by 128 MB (arch/arm/boot/compressed/head.S)."""


def _image_paddrs(kernel: KernelNumbers, vaddr: int, ram: Ranges) -> tuple[int, ...]:
    """PHYS_OFFSET is patched in at boot and printed nowhere: it is where the first RAM is.

    A dump may have lost that, and a crash kernel has its own: so all of the dump's ranges count.
    """
    offset = _page_offset(kernel)
    if offset is None or not offset <= vaddr < offset + IMAGE_SIZE:
        return ()
    starts = ram.start[:_MOST_PLACES].tolist()
    places = [align_down(start, step) for step in _STEPS for start in starts]
    return tuple(place + vaddr - offset for place in dict.fromkeys(places))


def _image_window(kernel: KernelNumbers) -> tuple[int, int]:
    offset = _page_offset(kernel)
    return (PAGE_OFFSETS[-1], VECTORS) if offset is None else (offset, offset + IMAGE_SIZE)


_SUPERVISOR = 0x13
_MEMBERS = {
    "r4": "r4", "r5": "r5", "r6": "r6", "r7": "r7", "r8": "r8", "r9": "r9", "r10": "sl", "r11": "fp",
    "sp": "sp", "pc": "pc",
}  # fmt: skip


def _saved_context(kernel: KernelFacts, read: Read) -> SavedContext | None:
    """thread_info.cpu_context, which __switch_to fills in: in task_struct (v5.16 on), or below the stack.

    With CONFIG_THREAD_INFO_IN_TASK task_struct begins with thread_info.
    """
    del read
    context = kernel.offset("thread_info.cpu_context")
    members = {name: kernel.offset(f"cpu_context_save.{member}") for name, member in _MEMBERS.items()}
    found = tuple((name, offset) for name, offset in members.items() if offset is not None)
    if context is None or members["sp"] is None or members["pc"] is None:
        return None
    constants = (("cpsr", _SUPERVISOR),)
    inside = kernel.offset("task_struct.thread_info")
    if inside is not None:
        return SavedContext(inside + context, found, (), constants, inside=True, stack_pointer="sp")
    stack = kernel.offset("task_struct.stack")
    if stack is None:
        return None
    found = tuple((name, context + offset) for name, offset in found)
    return SavedContext(stack, found, (), constants, stack_pointer="sp")


ARCH = Architecture(
    name="arm",
    e_machine=EM_ARM,
    byte_orders={"<": "arm", ">": "armeb"},
    page_size=4096,
    stack_size=8192,
    prstatus=PrStatusLayout(
        size=148,
        pid_offset=24,
        regs_offset=72,
        word=4,
        registers=(*(f"r{number}" for number in range(13)), "sp", "lr", "pc", "cpsr", "orig_r0"),
    ),
    stack_pointer="sp",
    instruction_pointer="pc",
    image_window=_image_window,
    paging_forms=_paging_forms,
    image_paddrs=_image_paddrs,
    image_source="and where the dump has RAM",
    saved_context=_saved_context,
    thread_keys=(
        "OFFSET(thread_info.cpu_context)",
        *(f"OFFSET(cpu_context_save.{member})" for member in _MEMBERS.values()),
    ),
)
