"""i386: tables of 32-bit entries and of 64-bit ones (PAE), NT_PRSTATUS layout, where the kernel lies.

References: Intel SDM vol. 3 chapter 4 (32-bit paging with PSE-36, PAE paging);
arch/x86/include/asm/page_32_types.h (PAGE_OFFSET, KERNEL_IMAGE_SIZE), arch/x86/include/asm/sparsemem.h,
arch/x86/include/asm/segment.h, arch/x86/include/asm/elf.h (ELF_CORE_COPY_REGS), include/linux/elfcore.h.

The image lies in the direct map, moved or not: on its way up a kernel keeps the distance between
virtual and physical addresses.  VMCOREINFO has neither that nor how far it was moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from kdump_elftool.addr import U64, Ranges, u64
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
from kdump_elftool.elf.constants import EM_386

TOP = 1 << 32
PAGE_OFFSETS = (0xC0000000, 0x80000000, 0xB0000000, 0x40000000, 0x78000000)
"""Where the direct map may begin (choice VMSPLIT, arch/x86/Kconfig), the usual first."""
_LOWEST = min(PAGE_OFFSETS)
_HIGHEST_IMAGE = 896 << 20
"""No image lies higher in physical memory: the kernel moves itself within 512 MB, kexec within the direct
map of the usual split."""
IMAGE_SIZE = 64 << 20

_PRESENT, _PSE = 1 << 0, 1 << 7
_ADDRESS = 0x000FFFFFFFFFF000
_RESERVED = 0x7FF << 52
"""Only 64-bit mode ignores these; here the processor takes no entry with one of them."""

NARROW = (Level("pgd", 22, 10, 4), Level("pte", 12, 10, 4))
WIDE = (Level("pgd", 30, 2), Level("pmd", 21, 9), Level("pte", 12, 9))


def decode_narrow(entries: U64, level: Level, raw: U64) -> Entries:
    """Decode a column of 32-bit entries; bits 13 to 20 of a 4 MB page are the address's above 4 GB."""
    del raw
    present = (entries & np.uint64(_PRESENT)) != 0
    page = entries & np.uint64(0xFFFFF000)
    if level.name == "pte":
        return Entries(table=np.zeros(len(entries), dtype=np.bool_), leaf=present, paddr=page)
    large = (entries & np.uint64(_PSE)) != 0
    high = (entries >> np.uint64(13) & np.uint64(0xFF)) << np.uint64(32)
    paddr = np.where(large, (entries & np.uint64(0xFFC00000)) | high, page)
    return Entries(table=present & ~large, leaf=present & large, paddr=paddr)


def decode_narrow_one(entry: int, level: Level, raw: int) -> Entry:
    """Decode one entry; the plain twin of :func:`decode_narrow`."""
    del raw
    if not entry & _PRESENT:
        return Entry("none", 0)
    if level.name == "pte":
        return Entry("leaf", entry & 0xFFFFF000)
    if entry & _PSE:
        return Entry("leaf", (entry & 0xFFC00000) | (entry >> 13 & 0xFF) << 32)
    return Entry("table", entry & 0xFFFFF000)


def decode_wide(entries: U64, level: Level, raw: U64) -> Entries:
    """Decode a column of 64-bit entries."""
    del raw
    present = ((entries & np.uint64(_PRESENT)) != 0) & ((entries & np.uint64(_RESERVED)) == 0)
    leaf = present & (level.name == "pte")
    if level.name == "pmd":
        leaf = present & ((entries & np.uint64(_PSE)) != 0)
    # in a large leaf, address bits below its size hold the PAT bit or must be zero
    mask = np.where(leaf, np.uint64(_ADDRESS & ~(level.span - 1)), np.uint64(_ADDRESS))
    return Entries(table=present & ~leaf, leaf=leaf, paddr=entries & mask)


def decode_wide_one(entry: int, level: Level, raw: int) -> Entry:
    """Decode one entry; the plain twin of :func:`decode_wide`."""
    del raw
    if not entry & _PRESENT or entry & _RESERVED:
        return Entry("none", 0)
    if level.name == "pte" or (level.name == "pmd" and entry & _PSE):
        return Entry("leaf", entry & _ADDRESS & ~(level.span - 1))
    return Entry("table", entry & _ADDRESS)


def paging_form(*, pae: bool, page_offset: int | None = None) -> PagingForm:
    """The form with or without PAE; without ``page_offset`` the kernel's half is as large as it can be."""
    split = _LOWEST if page_offset is None else page_offset
    return PagingForm(
        name="i386 PAE" if pae else "i386 2-level",
        levels=WIDE if pae else NARROW,
        decode=decode_wide if pae else decode_narrow,
        decode_one=decode_wide_one if pae else decode_narrow_one,
        physmem_bits=36 if pae else 32,
        section_size_bits=29 if pae else 26,
        kernel=Region(split, TOP),
        user=Region(0, split),
        image_distance=page_offset,
    )


def _page_offsets(kernel: KernelNumbers) -> tuple[int, ...]:
    """Those with which the image lies where one can be; none if no address of it is known."""
    vaddr = kernel.symbol("_stext") or kernel.symbol("swapper_pg_dir")
    if vaddr is None or vaddr >= TOP:
        return ()
    return tuple(offset for offset in PAGE_OFFSETS if 0 <= vaddr - offset < _HIGHEST_IMAGE)


def _paging_forms(kernel: KernelNumbers) -> tuple[PagingForm, ...]:
    """CONFIG_X86_PAE=y says so (v2.6.24 on); without the line both are tried."""
    is_pae = kernel.text("CONFIG_X86_PAE") == "y"
    offsets = _page_offsets(kernel) or (None,)
    return tuple(
        paging_form(pae=pae, page_offset=offset) for pae in (is_pae, not is_pae) for offset in offsets
    )


def _image_paddrs(kernel: KernelNumbers, vaddr: int, ram: Ranges) -> tuple[int, ...]:
    """PAGE_OFFSET is printed nowhere: whatever it may be, the image is in RAM."""
    found = u64([vaddr - offset for offset in _page_offsets(kernel) if offset <= vaddr < TOP])
    return tuple((found[ram.contains(found)] if len(ram) else found).tolist())


def _image_window(kernel: KernelNumbers) -> tuple[int, int]:
    """From the beginning of the direct map on, which has the image's link address as well."""
    offsets = _page_offsets(kernel)
    if not offsets:
        return _LOWEST, TOP - 4096
    stext = kernel.symbol("_stext") or kernel.symbol("swapper_pg_dir") or 0
    return offsets[0], min(stext + IMAGE_SIZE, TOP - 4096)


_CR0_PG, _CR4_PAE = 1 << 31, 1 << 5
_USER_TABLES = 1 << 12
"""With page-table isolation a CPU in user mode uses the page behind the kernel's table
(PTI_USER_PGTABLE_BIT, arch/x86/include/asm/pgtable.h)."""


def _running_tables(
    kernel: KernelNumbers, registers: Mapping[str, int]
) -> tuple[tuple[int, PagingForm], ...]:
    """CR3 as it stands, and with page-table isolation the kernel's table; with PAE it is 32 bytes long."""
    if "cr3" not in registers or "cr4" not in registers or not registers.get("cr0", _CR0_PG) & _CR0_PG:
        return ()
    pae = bool(registers["cr4"] & _CR4_PAE)
    offsets = _page_offsets(kernel)
    form = paging_form(pae=pae)
    if len(offsets) == 1:
        form = paging_form(pae=pae, page_offset=offsets[0])
    table = registers["cr3"] & (0xFFFFFFE0 if pae else 0xFFFFF000)
    return tuple((root, form) for root in dict.fromkeys((table & ~_USER_TABLES, table)))


_KERNEL_CS, _KERNEL_DS = 0x60, 0x68
_FRAME = {"ebx": "bx", "esi": "si", "edi": "di", "ebp": "bp", "eip": "ret_addr"}
_PUSHED = 8
"""ebp and the flags, which switch_to() pushed before v4.9; the address to go on at was thread.ip."""


def _saved_context(kernel: KernelFacts, read: Read) -> SavedContext | None:
    """struct inactive_task_frame (v4.9 on, arch/x86/include/asm/switch_to.h), or what was before it."""
    del read
    thread, sp = kernel.offset("task_struct.thread"), kernel.offset("thread_struct.sp")
    if thread is None or sp is None:
        return None
    constants = (
        ("cs", _KERNEL_CS), ("ss", _KERNEL_DS), ("ds", 0x7B), ("es", 0x7B),
    )  # fmt: skip
    found = tuple(_found(kernel))
    ret_addr = dict(found).get("eip")
    if ret_addr is not None:
        return SavedContext(thread + sp, found, (("esp", ret_addr + 4),), constants)
    ip = kernel.offset("thread_struct.ip")
    if ip is None:
        return None
    return SavedContext(
        thread + sp, (("ebp", 0),), (("esp", _PUSHED),), constants, in_task=(("eip", thread + ip),)
    )


def _found(kernel: KernelFacts) -> Iterator[tuple[str, int]]:
    for name, member in _FRAME.items():
        offset = kernel.offset(f"inactive_task_frame.{member}")
        if offset is not None:
            yield name, offset


ARCH = Architecture(
    name="i386",
    e_machine=EM_386,
    byte_orders={"<": "i386"},
    page_size=4096,
    stack_size=8192,
    prstatus=PrStatusLayout(
        size=144,
        pid_offset=24,
        regs_offset=72,
        word=4,
        registers=tuple("ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()),
    ),
    stack_pointer="esp",
    instruction_pointer="eip",
    image_window=_image_window,
    paging_forms=_paging_forms,
    image_paddrs=_image_paddrs,
    image_source="less a PAGE_OFFSET",
    saved_context=_saved_context,
    thread_keys=(
        "OFFSET(thread_struct.sp)",
        "OFFSET(thread_struct.ip)",
        *(f"OFFSET(inactive_task_frame.{member})" for member in _FRAME.values()),
    ),
    running_tables=_running_tables,
    percpu_registers=("fs_base",),
)
