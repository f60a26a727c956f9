"""mips, 32 and 64 bits: windows without tables, the kernel's own page tables, NT_PRSTATUS layouts.

The processor has no page tables: a TLB that Linux fills from tables of its own form.  Entries of all levels
but the last are kernel addresses of the next one, in windows that need no table; empty ones lead to tables
that map nothing (invalid_pte_table and the like), which are read as what they are.  Where a page's number
begins in an entry depends on the build (pages' size, execute-inhibit bits, huge pages): the vmlinux tells.

References: MIPS64 Architecture For Programmers vol. III, "Virtual Memory" (segments);
arch/mips/include/asm/addrspace.h, mach-generic/spaces.h (windows), pgtable-bits.h, pgtable-32.h,
pgtable-64.h (tables), include/uapi/asm/reg.h (EF_*), arch/mips/kernel/asm-offsets.c and r4k_switch.S
(registers of sleeping tasks), include/linux/elfcore.h (struct elf_prstatus).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kdump_elftool.addr import U64, Bools, Ranges
from kdump_elftool.arch.base import (
    NO_REGION,
    Architecture,
    Entries,
    Entry,
    Fixed,
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
from kdump_elftool.arch.walker import Window, walk
from kdump_elftool.elf.constants import EM_MIPS
from kdump_elftool.memory.physical import PhysicalMemory

_MB512 = 512 << 20
KSEG0, KSEG1, KSEG2 = 0x80000000, 0xA0000000, 0xC0000000
"""Cached and uncached windows to the lowest 512 MB; from KSEG2 on tables map."""
_SIGN = 0xFFFFFFFF00000000
"""The same windows for 64-bit kernels (CKSEG0, CKSEG1, CKSSEG) are sign-extended."""
XKPHYS, XKSEG = 0x8000000000000000, 0xC000000000000000
_CACHE_CODES = (2, 3, 5)
"""Of XKPHYS: uncached, cached, cached coherently; PAGE_OFFSET is one of the three."""
_XKPHYS_SIZE = 1 << 59
_PHYSMEM_BITS, _SECTION_SIZE_BITS = 48, 28
"""MAX_PHYSMEM_BITS and SECTION_SIZE_BITS, arch/mips/include/asm/sparsemem.h."""


_FEWEST = 16
"""Entries by which a form is judged."""
_MOSTLY = 0.8


@dataclass(frozen=True)
class Bits:
    """How entries are made: where the page's number begins, which bits say that there is a page.

    ``huge`` marks a page in the level above the last; 0 where it is not known which bit does.
    """

    page_shift: int
    pfn_shift: int
    present: int
    huge: int
    word: int

    def decode(self, entries: U64, level: Level, raw: U64) -> Entries:
        """Decode a column of entries of one level."""
        del raw
        number = (entries >> np.uint64(self.pfn_shift)) << np.uint64(self.page_shift)
        page = number & np.uint64((1 << _PHYSMEM_BITS) - level.span)
        present = (entries & np.uint64(self.present)) != 0
        if level.name == "pte":
            return Entries(np.zeros(len(entries), dtype=np.bool_), present, page)
        below = (entries & np.uint64((1 << self.page_shift) - 1)) != 0
        leaf = present & below & (level.name == "pmd")
        if self.huge:
            leaf &= (entries & np.uint64(self.huge)) != 0
        table, paddr = self._pointers(entries)
        table &= ~below
        return Entries(table, leaf, np.where(leaf, page, paddr))

    def _pointers(self, entries: U64) -> tuple[Bools, U64]:
        """Which entries are addresses in a window, and where those lead."""
        sign = _SIGN if self.word == 8 else 0
        low = (entries >= np.uint64(sign + KSEG0)) & (entries < np.uint64(sign + KSEG2))
        paddr = entries & np.uint64(_MB512 - 1)
        if self.word == 4:
            return low, paddr
        wide = (entries >> np.uint64(62)) == np.uint64(2)
        return low | wide, np.where(wide, entries & np.uint64((1 << _PHYSMEM_BITS) - 1), paddr)

    def decode_one(self, entry: int, level: Level, raw: int) -> Entry:
        """Decode one entry; the plain twin of :meth:`decode`."""
        del raw
        page = entry >> self.pfn_shift << self.page_shift & ((1 << _PHYSMEM_BITS) - level.span)
        if level.name == "pte":
            return Entry("leaf", page) if entry & self.present else Entry("none", 0)
        if entry % (1 << self.page_shift):
            is_huge = level.name == "pmd" and entry & self.present and (entry & self.huge or not self.huge)
            return Entry("leaf", page) if is_huge else Entry("none", 0)
        paddr = _fixed_paddr(entry, self.word)
        return Entry("none", 0) if paddr is None else Entry("table", paddr)

    def fits(self, form: PagingForm, memory: PhysicalMemory, root: int) -> int:
        """How many pages of RAM the kernel's tables map, if their entries look like this form's.

        Below the page's number are three bits of the cache's mode, the same for nearly all, then dirty,
        valid and global, of which the kernel's own pages have the last two.  The number's lowest bit is no
        constant.
        """
        columns = [np.zeros(0, dtype=np.uint64)]

        def noted(entries: U64, level: Level, raw: U64) -> Entries:
            if level.name == "pte":
                columns.append(entries)
            return self.decode(entries, level, raw)

        walk(memory, replace(form, decode=noted, fixed=()), root, Window(*form.kernel_span))
        entries = np.concatenate(columns)
        entries = entries[(entries & np.uint64(self.present)) != 0]
        entries = entries[memory.declared.contains(self.decode(entries, form.levels[-1], entries).paddr)]
        if len(entries) < _FEWEST:
            return 0
        flags = entries >> np.uint64(self.pfn_shift - (self.page_shift - 12) - 6)
        modes = np.bincount((flags >> np.uint64(3) & np.uint64(7)).astype(np.intp))
        odd = (entries >> np.uint64(self.pfn_shift) & np.uint64(1)).mean()
        valid = ((flags & np.uint64(3)) == np.uint64(3)).mean()
        likely = valid >= _MOSTLY and modes.max() >= _MOSTLY * len(entries) and 0.1 < odd < 0.9
        return len(entries) if likely else 0


def _fixed_paddr(vaddr: int, word: int) -> int | None:
    """Where a window has an address; None outside."""
    if word == 8 and vaddr >> 62 == 2:
        return vaddr & ((1 << _PHYSMEM_BITS) - 1)
    low = vaddr - (_SIGN if word == 8 else 0)
    return low % _MB512 if KSEG0 <= low < KSEG2 else None


_WINDOWS = {
    4: (Fixed(KSEG0, 0, _MB512), Fixed(KSEG1, 0, _MB512)),
    8: (
        *(Fixed(XKPHYS + (code << 59), 0, _XKPHYS_SIZE) for code in _CACHE_CODES),
        Fixed(_SIGN + KSEG0, 0, _MB512),
        Fixed(_SIGN + KSEG1, 0, _MB512),
    ),
}


def paging_form32(page_shift: int, bits: Bits) -> PagingForm:
    """Two levels; one table for all addresses, of which a process's has a copy of the kernel's entries."""
    pte = page_shift - 2
    return PagingForm(
        name=f"mips {1 << page_shift >> 10}K pages, page number at bit {bits.pfn_shift}",
        levels=(Level("pgd", page_shift + pte, 32 - page_shift - pte, 4), Level("pte", page_shift, pte, 4)),
        decode=bits.decode,
        decode_one=bits.decode_one,
        physmem_bits=_PHYSMEM_BITS,
        section_size_bits=_SECTION_SIZE_BITS,
        kernel=Region(KSEG2, 1 << 32),
        user=Region(0, KSEG0),
        byte_order="",
        fixed=_WINDOWS[4],
        fits=bits.fits,
    )


def paging_form64(page_shift: int, tables: tuple[int, ...], bits: Bits) -> PagingForm:
    """``tables`` are the bits that each level decodes, the last level's last.

    The kernel's table has XKSEG from its beginning and, at its end, the compatibility segments, where
    modules are.  A process's table is another one.
    """
    shift, levels = page_shift, list[Level]()
    names = ("pte", "pmd", "pud")
    for at, width in enumerate(reversed(tables)):
        levels.insert(0, Level("pgd" if at == len(tables) - 1 else names[at], shift, width))
        shift += width
    top = 1 << shift
    made = partial(
        PagingForm,
        name=f"mips64 {1 << page_shift >> 10}K pages, {len(tables)} levels, "
        f"page number at bit {bits.pfn_shift}",
        levels=tuple(levels),
        decode=bits.decode,
        decode_one=bits.decode_one,
        physmem_bits=_PHYSMEM_BITS,
        section_size_bits=_SECTION_SIZE_BITS,
        byte_order="",
    )
    compatible = (1 << 32) - KSEG2
    return made(
        kernel=Region(0, top - compatible, XKSEG),
        user=NO_REGION,
        fixed=_WINDOWS[8],
        user_form=made(kernel=NO_REGION, user=Region(0, top)),
        more=(Region(top - compatible, top, (1 << 64) - top),),
        fits=bits.fits,
    )


_GUESSES = {4: (12, 11), 8: (14, 13, 12, 11)}
"""Where the page's number begins with pages of 4 KB, by the bits below: CCC D V G [RI XI] ... P."""
_PAGE_SHIFTS = (12, 14, 16)


def _log2(number: int | None) -> int | None:
    """The exponent of a power of two; None for what is none, or is absurd."""
    known = number is not None and 0 < number <= 1 << 20 and number & (number - 1) == 0
    return number.bit_length() - 1 if known and number is not None else None


def _page_shifts(kernel: KernelNumbers, word: int) -> tuple[int, ...]:
    """NUMBER(PAGE_SHIFT) of patched kernels, PAGESIZE, the size of a page of entries; else all."""
    said = kernel.number("PAGE_SHIFT")
    entries = _log2(kernel.length("invalid_pte_table"))
    shift = said if said is not None else _log2(page_size_of(kernel))
    if shift is None and entries is not None:
        shift = entries + (3 if word == 8 else 2)
    return (shift,) if shift is not None and 12 <= shift <= 16 else _PAGE_SHIFTS


def _bits(kernel: KernelNumbers, word: int, page_shift: int) -> tuple[Bits, ...]:
    """By NUMBER(_PFN_SHIFT) of patched kernels or the enumerators of the build; else what may be."""
    at, cache = kernel.number("_PFN_SHIFT"), kernel.number("_CACHE_SHIFT")
    if at is None and cache is not None:
        at = page_shift - 12 + cache + 3
    shifts = (
        (at,)
        if at is not None and 6 <= at < 32
        else tuple(guess + page_shift - 12 for guess in _GUESSES[word])
    )
    return tuple(
        Bits(
            page_shift,
            shift,
            _present(kernel, word),
            _flag(kernel, "_PAGE_HUGE"),
            word,
        )
        for shift in shifts
    )


def _present(kernel: KernelNumbers, word: int) -> int:
    """The flag of a page; 0, so that tables map nothing, for 32-bit kernels whose entries have 64 bits.

    Those (XPA, Alchemy) have it in another place; how their entries lie in memory is not known here.
    """
    flag = _flag(kernel, "_PAGE_PRESENT") or 1
    return 0 if word == 4 and flag > 1 else flag


def _flag(kernel: KernelNumbers, name: str) -> int:
    """A flag of entries, by its NUMBER or by that of its bit; 0 if it is not known."""
    said, bit = kernel.number(name), kernel.number(f"{name}_SHIFT")
    if said is not None and 0 < said < 1 << 32:
        return said
    return 1 << bit if bit is not None and 0 <= bit < 32 else 0


def _tables(kernel: KernelNumbers, page_shift: int) -> tuple[tuple[int, ...], ...]:
    """Bits of the levels of a 64-bit kernel: as long as its arrays are, else as its builds may have them.

    PGD_ORDER of 4 KB pages and 40 address bits is 1; MIPS_VA_BITS_48 adds a level to 4 KB and 64 KB ones and
    doubles the top table of 16 KB ones.
    """
    names = ("swapper_pg_dir", "invalid_pud_table", "invalid_pmd_table", "invalid_pte_table")
    pgd, *below = (_log2(kernel.length(name)) for name in names)
    if pgd and below[-1]:
        found = (pgd, *(width for width in below if width))
        return (found,) if page_shift + sum(found) <= 56 else ()
    full = page_shift - 3
    by_page = {12: ((full + 1, full, full), (full,) * 4), 14: ((full,) * 3, (full + 1, full, full))}
    return by_page.get(page_shift, ((full,) * 2, (full,) * 3))


def _paging_forms(kernel: KernelNumbers, word: int) -> tuple[PagingForm, ...]:
    forms: list[PagingForm] = []
    for page_shift in _page_shifts(kernel, word):
        for bits in _bits(kernel, word, page_shift):
            if word == 4:
                forms.append(paging_form32(page_shift, bits))
            else:
                forms += [paging_form64(page_shift, tables, bits) for tables in _tables(kernel, page_shift)]
    return tuple(forms)


def _image_paddrs(kernel: KernelNumbers, vaddr: int, ram: Ranges, word: int) -> tuple[int, ...]:
    """An image in a window is where the window says; one that tables map may be anywhere."""
    del kernel, ram
    paddr = _fixed_paddr(vaddr, word)
    return () if paddr is None else (paddr,)


def _image_window(kernel: KernelNumbers, word: int) -> tuple[int, int]:
    """The segment that has the image: KSEG0, or KSEG2 for a kernel that tables map."""
    sign = _SIGN if word == 8 else 0
    vaddr = kernel.symbol("_stext")
    if vaddr is None:
        return sign + KSEG0, sign + KSEG2 + _MB512
    start = vaddr // _MB512 * _MB512
    return start, start + _MB512


_SAVED = (*range(16, 24), 29, 30, 31)
_CONTEXT = tuple(f"thread_struct.reg{number}" for number in _SAVED)


def _saved_context(kernel: KernelFacts, read: Read) -> SavedContext | None:
    """thread_struct in task_struct, which resume() fills in; the task goes on where ra points."""
    del read
    thread = kernel.offset("task_struct.thread")
    offsets = {number: kernel.offset(name) for number, name in zip(_SAVED, _CONTEXT, strict=True)}
    sp, ra = offsets[29], offsets[31]
    if thread is None or sp is None or ra is None:
        return None
    found = [(f"r{number}", offset) for number, offset in offsets.items() if offset is not None]
    return SavedContext(thread, (*found, ("epc", ra)), inside=True, stack_pointer="r29")


_GENERAL = tuple(f"r{number}" for number in range(32))
_CONTROL = ("lo", "hi", "epc", "badvaddr", "status", "cause")


def _prstatus(word: int) -> PrStatusLayout:
    """o32 has six words in front (the arguments' place on its stack); n64 has what is left behind."""
    pads = tuple(f"pad{number}" for number in range(7))
    if word == 4:
        registers = (*pads[:6], *_GENERAL, *_CONTROL, pads[6])
        return PrStatusLayout(size=256, pid_offset=24, regs_offset=72, word=4, registers=registers)
    return PrStatusLayout(
        size=480, pid_offset=32, regs_offset=112, word=8, registers=(*_GENERAL, *_CONTROL, *pads)
    )


_KEYS = (
    "SYMBOL(_stext)",
    "LENGTH(swapper_pg_dir)",
    "LENGTH(invalid_pud_table)",
    "LENGTH(invalid_pmd_table)",
    "LENGTH(invalid_pte_table)",
    "NUMBER(_CACHE_SHIFT)",
    "NUMBER(_PAGE_PRESENT_SHIFT)",
    "NUMBER(_PAGE_HUGE_SHIFT)",
)


def _architecture(name: str, word: int, byte_orders: Mapping[str, str], stack_size: int) -> Architecture:
    return Architecture(
        name=name,
        e_machine=EM_MIPS,
        byte_orders=byte_orders,
        page_size=4096,
        stack_size=stack_size,
        prstatus=_prstatus(word),
        stack_pointer="r29",
        instruction_pointer="epc",
        image_window=partial(_image_window, word=word),
        paging_forms=partial(_paging_forms, word=word),
        image_paddrs=partial(_image_paddrs, word=word),
        image_source="in a window without tables",
        saved_context=_saved_context,
        thread_keys=tuple(f"OFFSET({name})" for name in _CONTEXT),
        image_keys=_KEYS,
    )


ARCH32 = _architecture("mips", 4, {"<": "mipsel", ">": "mips"}, 8192)
ARCH64 = _architecture("mips64", 8, {"<": "mips64el", ">": "mips64"}, 16384)
