"""x86_64: 4- and 5-level paging, NT_PRSTATUS layout, the kernel's fixed address ranges.

References: Intel SDM vol. 3 chapter 4, AMD APM vol. 2 chapter 5 (entry formats);
Documentation/arch/x86/x86_64/mm.rst (ranges); arch/x86/include/asm/user_64.h,
include/linux/elfcore.h (struct elf_prstatus).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kdump_elftool.addr import MASK64, U64, Ranges
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
from kdump_elftool.elf.constants import EM_X86_64
from kdump_elftool.errors import FaultError

START_KERNEL_MAP = 0xFFFFFFFF80000000
"""Where the kernel image is mapped; vaddr - this + phys_base = paddr (__START_KERNEL_map)."""
IMAGE_SIZE = 1 << 30
"""KERNEL_IMAGE_SIZE with KASLR; modules begin behind it."""

ESPFIX = (0xFFFFFF0000000000, 0xFFFFFF8000000000)
"""The ESP fix-up area: up to 65,536 aliases of each of its pages (arch/x86/kernel/espfix_64.c)."""

_PRESENT = 1 << 0
_PSE = 1 << 7
_ADDRESS = 0x000FFFFFFFFFF000
_LARGE = ("pud", "pmd")

_PTE = Level("pte", 12, 9)
_PMD = Level("pmd", 21, 9)
_PUD = Level("pud", 30, 9)
_P4D = Level("p4d", 39, 9)
_PGD5 = Level("pgd", 48, 9)
_PGD4 = Level("pgd", 39, 9)


def decode(entries: U64, level: Level, raw: U64) -> Entries:
    """Decode a column of entries of one level."""
    del raw
    present = (entries & np.uint64(_PRESENT)) != 0
    if level.name == "pte":
        leaf = present
    elif level.name in _LARGE:
        leaf = present & ((entries & np.uint64(_PSE)) != 0)
    else:
        leaf = np.zeros(len(entries), dtype=np.bool_)
    # in a large leaf, address bits below its size hold the PAT bit or must be zero
    mask = np.where(leaf, np.uint64(_ADDRESS & ~(level.span - 1)), np.uint64(_ADDRESS))
    return Entries(table=present & ~leaf, leaf=leaf, paddr=entries & mask)


def decode_one(entry: int, level: Level, raw: int) -> Entry:
    """Decode one entry; the plain twin of :func:`decode`."""
    del raw
    if not entry & _PRESENT:
        return Entry("none", 0)
    if level.name == "pte" or (level.name in _LARGE and entry & _PSE):
        return Entry("leaf", entry & _ADDRESS & ~(level.span - 1))
    return Entry("table", entry & _ADDRESS)


def paging_form(levels: int, sme_mask: int = 0) -> PagingForm:
    """The paging form with 4 or 5 levels; ``sme_mask`` is AMD's memory encryption bit."""
    tables = (_PGD5, _P4D, _PUD, _PMD, _PTE) if levels == 5 else (_PGD4, _PUD, _PMD, _PTE)
    top = 1 << (tables[0].shift + tables[0].bits)
    return PagingForm(
        name=f"x86_64 {levels}-level",
        levels=tables,
        decode=decode,
        decode_one=decode_one,
        # arch/x86/include/asm/sparsemem.h
        physmem_bits=52 if levels == 5 else 46,
        section_size_bits=27,
        kernel=Region(top // 2, top, (1 << 64) - top),
        user=Region(0, top // 2),
        ignored_bits=sme_mask,
    )


_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
)


def _paging_forms(kernel: KernelNumbers) -> tuple[PagingForm, ...]:
    """NUMBER(pgtable_l5_enabled) decides (v4.17 on); without it 4 levels are tried before 5.

    Kernels from v4.14 on encrypt memory, and say so by NUMBER(sme_mask) since v5.0.
    """
    sme_mask = kernel.number("sme_mask")
    levels = (5, 4) if kernel.number("pgtable_l5_enabled") else (4, 5)
    silent = sme_mask is None and kernel.number("phys_base") is not None
    masks = (0, *_ENCRYPTION_BITS) if silent else ((sme_mask or 0) & MASK64,)
    return tuple(paging_form(count, mask) for mask in masks for count in levels)


def _image_paddrs(kernel: KernelNumbers, vaddr: int, ram: Ranges) -> tuple[int, ...]:
    """NUMBER(phys_base) is the value since v4.10, printed as a signed number."""
    del ram
    phys_base = kernel.number("phys_base")
    if phys_base is None or not START_KERNEL_MAP <= vaddr <= MASK64:
        return ()
    return ((vaddr - START_KERNEL_MAP + phys_base) & MASK64,)


def _image_window(kernel: KernelNumbers) -> tuple[int, int]:
    del kernel
    return START_KERNEL_MAP, START_KERNEL_MAP + IMAGE_SIZE


def _image_numbers(form: PagingForm, vaddr: int, paddr: int) -> Mapping[str, int]:
    """arch_crash_save_vmcoreinfo(), arch/x86/kernel/vmcore_info_64.c (machine_kexec_64.c until v6.8)."""
    phys_base = (paddr - (vaddr - START_KERNEL_MAP)) & MASK64
    return {
        "phys_base": phys_base - (1 << 64) if phys_base >> 63 else phys_base,
        "pgtable_l5_enabled": int(len(form.levels) == 5),
        "sme_mask": form.ignored_bits,
    }


_ENCRYPTION_BITS = (1 << 51, 1 << 47)
"""Where processors have AMD's encryption bit: the 5 bits that CPUID 0x8000001f tells in ebx."""
_CR0_PG, _CR4_PAE, _CR4_LA57 = 1 << 31, 1 << 5, 1 << 12
_USER_TABLES = 1 << 12
"""With page-table isolation a CPU in user mode uses the page behind the kernel's table
(PTI_USER_PGTABLE_BIT, arch/x86/entry/calling.h)."""


def _running_tables(
    kernel: KernelNumbers, registers: Mapping[str, int]
) -> tuple[tuple[int, PagingForm], ...]:
    """CR3 without PCID and encryption bit: the kernel's table if isolation is on, then as it stands.

    The bit is that of the kernel, or else one that no address of memory has.
    """
    if not registers.get("cr0", _CR0_PG) & _CR0_PG or "cr3" not in registers:
        return ()
    cr4 = registers.get("cr4", _CR4_PAE)
    if not cr4 & _CR4_PAE:
        return ()
    own = (bit for bit in _ENCRYPTION_BITS if registers["cr3"] & bit)
    sme_mask = (kernel.number("sme_mask") or 0) & MASK64 or next(own, 0)
    form = paging_form(5 if cr4 & _CR4_LA57 else 4, sme_mask)
    table = registers["cr3"] & _ADDRESS & ~sme_mask
    tables = dict.fromkeys((table & ~_USER_TABLES, table))
    return tuple((root, form) for root in tables)


_KERNEL_CS, _KERNEL_DS = 0x10, 0x18
_FRAME = {
    "r15": "r15", "r14": "r14", "r13": "r13", "r12": "r12", "rbx": "bx", "rbp": "bp", "rip": "ret_addr",
}  # fmt: skip
_SCHEDULE_SIZE = 8192
_PUSHED = 16
"""Flags and rbp, which switch_to() pushed before v4.9."""


def _saved_context(kernel: KernelFacts, read: Read) -> SavedContext | None:
    """struct inactive_task_frame (v4.9 on, arch/x86/include/asm/switch_to.h), or what was before it."""
    thread, sp = kernel.offset("task_struct.thread"), kernel.offset("thread_struct.sp")
    if thread is None or sp is None:
        return None
    constants = (("cs", _KERNEL_CS), ("ss", _KERNEL_DS))
    offsets = {name: kernel.offset(f"inactive_task_frame.{member}") for name, member in _FRAME.items()}
    found = tuple((name, offset) for name, offset in offsets.items() if offset is not None)
    ret_addr = offsets["rip"]
    if ret_addr is not None:
        return SavedContext(thread + sp, found, (("rsp", ret_addr + 8),), constants)
    return _hand_made(kernel, thread + sp, constants) or _old_switch(kernel, read, thread + sp, constants)


def _hand_made(
    kernel: KernelFacts, pointer: int, constants: tuple[tuple[str, int], ...]
) -> SavedContext | None:
    """The original tool's values; its gdb macros print 0 and 1 for what the user has to fill in."""
    point, frame = kernel.symbol("__thread_sleep_point"), kernel.size("context_switch_frame")
    distance = kernel.size("__switch_rsp_rbp_offset")
    if not point:
        return None
    constants = (*constants, ("rip", point))
    if distance is not None and distance != 1:
        return SavedContext(pointer, (("rbp", distance),), (("rsp", 0),), constants)
    if frame is not None and frame != 1:
        return SavedContext(pointer, (), (("rsp", 0), ("rbp", frame)), constants)
    return SavedContext(pointer, (("rbp", 0),), (("rsp", _PUSHED),), constants)


def _old_switch(
    kernel: KernelFacts, read: Read, pointer: int, constants: tuple[tuple[str, int], ...]
) -> SavedContext | None:
    """Before v4.9 every sleeping task stands behind the one call of __switch_to in __schedule."""
    schedule, switch_to = kernel.symbol("__schedule"), kernel.symbol("__switch_to")
    if schedule is None or switch_to is None:
        return None
    try:
        text = read(schedule, _SCHEDULE_SIZE)
    except FaultError:
        return None
    at = text.find(b"\xe8")
    while 0 <= at <= len(text) - 5:
        behind = schedule + at + 5
        distance = int.from_bytes(text[at + 1 : at + 5], "little", signed=True)
        if (behind + distance) & MASK64 == switch_to:
            return SavedContext(pointer, (("rbp", 0),), (("rsp", _PUSHED),), (*constants, ("rip", behind)))
        at = text.find(b"\xe8", at + 1)
    return None


ARCH = Architecture(
    name="x86_64",
    e_machine=EM_X86_64,
    byte_orders={"<": "x86_64"},
    page_size=4096,
    stack_size=16384,
    prstatus=PrStatusLayout(
        size=336, pid_offset=32, regs_offset=112, word=8, registers=tuple(_REGISTERS.split())
    ),
    stack_pointer="rsp",
    instruction_pointer="rip",
    image_window=_image_window,
    alias_ranges=(ESPFIX,),
    paging_forms=_paging_forms,
    image_paddrs=_image_paddrs,
    image_source="and NUMBER(phys_base)",
    saved_context=_saved_context,
    thread_keys=(
        "OFFSET(thread_struct.sp)",
        *(f"OFFSET(inactive_task_frame.{member})" for member in _FRAME.values()),
    ),
    running_tables=_running_tables,
    percpu_registers=("gs_base", "kernel_gs_base"),
    # swapper_pg_dir is a macro; init_level4_pgt until v4.12
    root_symbols=("init_top_pgt", "init_level4_pgt"),
    image_numbers=_image_numbers,
)
