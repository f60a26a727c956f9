"""arm64: tables of 4, 16 and 64 KB pages, NT_PRSTATUS layout, where the image lies.

The processor has two roots: TTBR1 for the kernel's addresses, those at the top, and TTBR0 for a
process'.  References: Arm Architecture Reference Manual, VMSAv8-64 translation table descriptors;
arch/arm64/include/asm/{pgtable-hwdef,memory,processor}.h, arch/arm64/kernel/vmcore_info.c,
arch/arm64/include/uapi/asm/ptrace.h (struct user_pt_regs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache, partial

import numpy as np

from kdump_elftool.addr import MASK64, U64, Ranges, align_down
from kdump_elftool.arch.base import (
    NO_REGION,
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
    page_size_of,
)
from kdump_elftool.elf.constants import EM_AARCH64, NT_ARM_PAC_MASK
from kdump_elftool.elf.notes import Note

_VALID, _TABLE = 1 << 0, 1 << 1
_SHIFTS = {4096: 12, 16384: 14, 65536: 16}
_NAMES = {1: ("pte",), 2: ("pgd", "pte"), 3: ("pgd", "pmd", "pte"), 4: ("pgd", "pud", "pmd", "pte")}
_FIVE = ("pgd", "p4d", "pud", "pmd", "pte")
_WIDE = 52
"""Address bits with which 4 and 16 KB pages have descriptors of another form (FEAT_LPA2)."""
_COMMON = {12: (48, 39, 52), 14: (47, 48, 36, 52), 16: (48, 42, 52)}
"""Address bits that a kernel can be built for, most likely first (arch/arm64/Kconfig)."""

_HEAD = 1 << 16
"""The image begins with a head of at most this size, before _stext, at a multiple of it."""
_IMAGE_SIZE = 1 << 28
_ANYWHERE = (MASK64 + 1 - (1 << 47), MASK64 & ~0xFFF)
"""With 48 bits the upper half of the kernel's addresses; with fewer all of them."""

_HWCAP_PACA = 1 << 30
_PSTATE = 5
"""PSR_MODE_EL1h: the kernel's own mode."""
_REGISTERS = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
_SAVED = {f"x{number}": f"x{number}" for number in range(19, 29)} | {"x29": "fp", "sp": "sp", "pc": "pc"}


def _address_parts(page_shift: int, va_bits: int) -> tuple[int, tuple[int, int, int] | None]:
    """Mask of an address' bits in a descriptor, and of further ones with how far they move up: mask, shift.

    64 KB pages: OA[51:48] in bits 15:12, which a kernel without them leaves 0 (FEAT_LPA); 4 and 16 KB
    pages with 52-bit addresses: OA[51:50] in bits 9:8, which are the shareability otherwise (FEAT_LPA2).
    """
    top = 50 if va_bits == _WIDE and page_shift != _SHIFTS[65536] else 48
    mask = (1 << top) - (1 << page_shift)
    if page_shift == _SHIFTS[65536]:
        return mask, (0xF000, 36, 52)
    return mask, (0x300, 42, 52) if top == 50 else None


def _has_blocks(level: Level, page_shift: int, va_bits: int) -> bool:
    """Whether an entry of this level may map memory itself, beside those of the lowest.

    2 MB and 1 GB with pages of 4 KB, 32 MB with 16 KB, 512 MB with 64 KB; one level more with 52 bits.
    """
    above = (level.shift - page_shift) // (page_shift - 3)
    most = 2 if page_shift == _SHIFTS[4096] else 1
    return 0 < above <= most + (va_bits == _WIDE)


def _decode(page_shift: int, va_bits: int, entries: U64, level: Level, raw: U64) -> Entries:
    """Decode a column of entries of one level."""
    del raw
    valid, table = (entries & np.uint64(_VALID)) != 0, (entries & np.uint64(_TABLE)) != 0
    if level.shift == page_shift:
        leaf, table = valid & table, np.zeros(len(entries), dtype=np.bool_)
    elif _has_blocks(level, page_shift, va_bits):
        leaf, table = valid & ~table, valid & table
    else:
        leaf, table = np.zeros(len(entries), dtype=np.bool_), valid & table
    mask, more = _address_parts(page_shift, va_bits)
    paddr = entries & np.uint64(mask)
    if more is not None:
        paddr = paddr | ((entries & np.uint64(more[0])) << np.uint64(more[1]))
    # below the size of a block there are attributes
    paddr = np.where(leaf, paddr & np.uint64(MASK64 & ~(level.span - 1)), paddr)
    return Entries(table=table, leaf=leaf, paddr=paddr)


def _decode_one(page_shift: int, va_bits: int, entry: int, level: Level, raw: int) -> Entry:
    """Decode one entry; the plain twin of :func:`_decode`."""
    del raw
    mask, more = _address_parts(page_shift, va_bits)
    paddr = entry & mask
    if more is not None:
        paddr |= (entry & more[0]) << more[1]
    is_lowest = level.shift == page_shift
    if not entry & _VALID or (is_lowest and not entry & _TABLE):
        return Entry("none", 0)
    if is_lowest:
        return Entry("leaf", paddr)
    if entry & _TABLE:
        return Entry("table", paddr)
    if _has_blocks(level, page_shift, va_bits):
        return Entry("leaf", paddr & ~(level.span - 1))
    return Entry("none", 0)


def _levels(page_shift: int, va_bits: int) -> tuple[Level, ...]:
    """Full tables from the lowest level up; the top one has what is left."""
    each = page_shift - 3
    shifts = range(page_shift, va_bits, each)
    names = _FIVE if len(shifts) == len(_FIVE) else _NAMES[len(shifts)]
    return tuple(
        Level(name, shift, min(each, va_bits - shift))
        for name, shift in zip(names, reversed(shifts), strict=True)
    )


@cache
def paging_form(page_shift: int, va_bits: int) -> PagingForm:
    """The form of the kernel's table; that of a process' own is its ``user_form``."""
    what = f"arm64 {1 << page_shift - 10} KB pages, {va_bits}-bit"
    levels = _levels(page_shift, va_bits)
    decode, decode_one = partial(_decode, page_shift, va_bits), partial(_decode_one, page_shift, va_bits)
    # arch/arm64/include/asm/sparsemem.h: CONFIG_ARM64_PA_BITS
    physmem_bits = _WIDE if va_bits == _WIDE or page_shift == _SHIFTS[65536] else 48
    top = 1 << va_bits
    # SECTION_SIZE_BITS before v5.12; later kernels say what it is
    made = partial(PagingForm, levels=levels, decode=decode, decode_one=decode_one)
    made = partial(made, physmem_bits=physmem_bits, section_size_bits=30)
    user = made(f"{what}, process", kernel=NO_REGION, user=Region(0, top))
    return made(what, kernel=Region(0, top, (1 << 64) - top), user=NO_REGION, user_form=user)


def _paging_forms(kernel: KernelNumbers) -> tuple[PagingForm, ...]:
    """PAGESIZE, NUMBER(VA_BITS) and, since v5.11, what the processor was told, NUMBER(TCR_EL1_T1SZ)."""
    shift = _SHIFTS.get(page_size_of(kernel) or 0)
    shifts = _SHIFTS.values() if shift is None else (shift,)
    forms = (paging_form(shift, bits) for shift in shifts for bits in _va_bits(kernel, shift))
    return tuple(dict.fromkeys(forms))


def _va_bits(kernel: KernelNumbers, page_shift: int) -> Iterator[int]:
    """Likely address bits, best first.

    A kernel built for 52 bits may run with 48.  With 64 KB pages its top table stays that of 52, and TTBR1
    points at the last 64 entries (offset_ttbr1 in arch/arm64/include/asm/assembler.h): as if there were
    52 address bits, all ones at the top.  With smaller pages it has a level less.
    """
    built, t1sz = kernel.number("VA_BITS"), kernel.number("TCR_EL1_T1SZ")
    told = [] if t1sz is None else [64 - t1sz]
    known = _COMMON[page_shift]
    if page_shift == _SHIFTS[65536] and built == _WIDE:
        told.insert(0, _WIDE)
    elif built is not None:
        told.append(built)
    yield from (bits for bits in told if page_shift < bits <= _WIDE)
    if not any(bits in known for bits in told) or built == _WIDE:
        yield from known


def _image_paddrs(kernel: KernelNumbers, vaddr: int, ram: Ranges) -> tuple[int, ...]:
    """NUMBER(kimage_voffset), since v4.12, is the distance of the image from its memory."""
    del ram
    offset = kernel.number("kimage_voffset")
    return () if offset is None else ((vaddr - offset) & MASK64,)


def _image_window(kernel: KernelNumbers) -> tuple[int, int]:
    """With KASLR the image may be anywhere among the modules and vmalloc's areas."""
    stext = kernel.symbol("_stext")
    if stext is None or not 0 < stext <= MASK64 - _IMAGE_SIZE:
        return _ANYWHERE
    start = align_down(stext - 1, _HEAD)
    return start, start + _IMAGE_SIZE


def _image_numbers(form: PagingForm, vaddr: int, paddr: int) -> Mapping[str, int]:
    return {
        "VA_BITS": form.va_bits,
        "TCR_EL1_T1SZ": 64 - form.va_bits,
        "kimage_voffset": (vaddr - paddr) & MASK64,
    }


def _saved_context(kernel: KernelFacts, read: Read) -> SavedContext | None:
    """struct cpu_context in the task itself (arch/arm64/include/asm/processor.h).

    cpu_switch_to() saves its return address as ``pc``: that is x30, too.
    """
    del read
    thread, context = kernel.offset("task_struct.thread"), kernel.offset("thread_struct.cpu_context")
    found = {name: kernel.offset(f"cpu_context.{member}") for name, member in _SAVED.items()}
    registers = [(name, offset) for name, offset in found.items() if offset is not None]
    if thread is None or context is None or len(registers) < len(_SAVED):
        return None
    registers.append(("x30", dict(registers)["pc"]))
    return SavedContext(
        thread + context,
        tuple(registers),
        constants=(("pstate", _PSTATE),),
        inside=True,
        stack_pointer="sp",
    )


def _pac_mask(kernel: KernelNumbers) -> int:
    """Bits of a code address that a signature replaces; 0 when the kernel does not say that it signs any.

    NUMBER(KERNELPACMASK), since v5.8: 0 where the processor cannot sign.
    """
    return (kernel.number("KERNELPACMASK") or 0) & MASK64


def _thread_notes(kernel: KernelNumbers) -> tuple[Note, ...]:
    """struct user_pac_mask (arch/arm64/include/uapi/asm/ptrace.h), by which gdb reads return addresses."""
    mask = _pac_mask(kernel)
    return (Note(b"LINUX", NT_ARM_PAC_MASK, struct.pack("<QQ", mask, mask)),) if mask else ()


def _hwcap(kernel: KernelNumbers) -> int:
    """HWCAP_PACA (arch/arm64/include/uapi/asm/hwcap.h)."""
    return _HWCAP_PACA if _pac_mask(kernel) else 0


ARCH = Architecture(
    name="arm64",
    e_machine=EM_AARCH64,
    byte_orders={"<": "arm64"},
    page_size=4096,
    stack_size=16384,
    prstatus=PrStatusLayout(size=392, pid_offset=32, regs_offset=112, word=8, registers=_REGISTERS),
    stack_pointer="sp",
    instruction_pointer="pc",
    image_window=_image_window,
    paging_forms=_paging_forms,
    image_paddrs=_image_paddrs,
    image_source="and NUMBER(kimage_voffset)",
    saved_context=_saved_context,
    thread_keys=(
        "OFFSET(thread_struct.cpu_context)",
        *(f"OFFSET(cpu_context.{member})" for member in _SAVED.values()),
    ),
    percpu_registers=("tpidr_el1", "tpidr_el2"),
    image_numbers=_image_numbers,
    thread_notes=_thread_notes,
    hwcap=_hwcap,
)
