"""What an architecture is to the rest of the tool: paging forms and register sets, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kdump_elftool.addr import U64, Bools, Ranges
from kdump_elftool.elf.notes import Note

if TYPE_CHECKING:
    from kdump_elftool.memory.physical import PhysicalMemory


@dataclass(frozen=True)
class Level:
    """One table level: its kernel name, lowest address bit it decodes, how many bits, bytes of an entry."""

    name: str
    shift: int
    bits: int
    entry: int = 8

    @property
    def span(self) -> int:
        """Bytes of address space that one entry covers."""
        return 1 << self.shift

    @property
    def table_size(self) -> int:
        """Bytes of one table."""
        return self.entry << self.bits


@dataclass(frozen=True)
class Entries:
    """A column of decoded table entries.  ``table`` and ``leaf`` exclude each other."""

    table: Bools
    leaf: Bools
    paddr: U64


@dataclass(frozen=True)
class Entry:
    """One decoded table entry (plain Python, for single look-ups and as the reference)."""

    kind: str  # "none", "table", "leaf"
    paddr: int


@dataclass(frozen=True)
class Region:
    """Raw addresses, as tables decode them, ``start`` to ``end``; plus ``base`` they are virtual ones."""

    start: int
    end: int
    base: int = 0

    def __contains__(self, vaddr: int) -> bool:
        return self.start <= vaddr - self.base < self.end


NO_REGION = Region(0, 0)


@dataclass(frozen=True)
class Fixed:
    """``size`` bytes from ``vaddr`` on that the processor maps to ``paddr`` without any table."""

    vaddr: int
    paddr: int
    size: int


@dataclass(frozen=True)
class PagingForm:
    """A page-table format: levels from the root down, entry decoders, which addresses it maps.

    ``decode`` and ``decode_one`` get entries, their level and the raw addresses that they map first.
    ``kernel`` and ``user`` are the addresses under one root; where a process has a table of its own
    for its half, that has another form, ``user_form``, and ``user`` is empty.  ``more`` are further addresses
    of the kernel under the same root, ``fixed`` those that need no table.
    ``byte_order`` is that of the entries, empty where it is the kernel's (``Architecture.forms`` says it).
    ``physmem_bits`` and ``section_size_bits`` are the kernel's MAX_PHYSMEM_BITS and SECTION_SIZE_BITS with
    this form; ``ignored_bits`` are cleared from entries before decoding (AMD's encryption bit).
    ``image_distance`` is how far the image lies below its virtual addresses where the form knows that.
    ``fits`` says of a form, this one, how many of the entries below a root look right in it, where nothing
    says which form it is.
    """

    name: str
    levels: tuple[Level, ...]
    decode: Callable[[U64, Level, U64], Entries]
    decode_one: Callable[[int, Level, int], Entry]
    physmem_bits: int
    section_size_bits: int
    kernel: Region
    user: Region
    byte_order: str = "<"
    ignored_bits: int = 0
    fixed: tuple[Fixed, ...] = ()
    image_distance: int | None = None
    user_form: PagingForm | None = None
    more: tuple[Region, ...] = ()
    fits: Callable[[PagingForm, PhysicalMemory, int], int] | None = None

    @property
    def va_bits(self) -> int:
        """Address bits that the tables decode."""
        return self.levels[0].shift + self.levels[0].bits

    def raw(self, vaddr: int) -> int:
        """The bits of an address that the tables decode."""
        return vaddr & ((1 << self.va_bits) - 1)

    def full(self, raw: U64) -> U64:
        """Virtual addresses of raw ones."""
        base = np.full(len(raw), self.user.base, dtype=np.uint64)
        for region in (self.kernel, *self.more):
            base[(raw >= np.uint64(region.start)) & (raw < np.uint64(region.end))] = region.base
        return raw + base

    def is_canonical(self, vaddr: int) -> bool:
        """True when an address is one that the tables can map, or that needs none."""
        return self.is_kernel(vaddr) or vaddr in self.user

    def is_kernel(self, vaddr: int) -> bool:
        """True when an address belongs to the kernel's half, mapped or not."""
        fixed = any(0 <= vaddr - part.vaddr < part.size for part in self.fixed)
        return fixed or any(vaddr in region for region in (self.kernel, *self.more))

    @property
    def kernel_span(self) -> tuple[int, int]:
        """The lowest and the end of the highest raw address that the kernel's tables decode."""
        regions = (self.kernel, *self.more)
        return min(region.start for region in regions), max(region.end for region in regions)


@dataclass(frozen=True)
class PrStatusLayout:
    """``struct elf_prstatus`` of one architecture: byte offsets within the descriptor."""

    size: int
    pid_offset: int
    regs_offset: int
    word: int
    registers: tuple[str, ...]

    def register_offset(self, name: str) -> int:
        """Byte offset of one register in the descriptor."""
        return self.regs_offset + self.word * self.registers.index(name)


@dataclass(frozen=True)
class SavedContext:
    """Where the registers of a task that does not run are.

    ``pointer`` is the offset in task_struct of a pointer, or with ``inside`` of the registers
    themselves.  ``registers`` lie at offsets from where that points, or from there; those of
    ``derived`` are that address plus a number, those of ``constants`` the same for every task; those of
    ``in_task`` lie at offsets in task_struct all the same.
    ``stack_pointer`` names the one of the registers that points into the task's stack; None where
    ``pointer`` does.
    """

    pointer: int
    registers: tuple[tuple[str, int], ...]
    derived: tuple[tuple[str, int], ...] = ()
    constants: tuple[tuple[str, int], ...] = ()
    inside: bool = False
    in_task: tuple[tuple[str, int], ...] = ()
    stack_pointer: str | None = None


class KernelFacts(Protocol):
    """What an architecture asks about how a kernel saves registers (``Knowledge`` answers it)."""

    def symbol(self, name: str, /) -> int | None: ...

    def offset(self, name: str, /) -> int | None: ...

    def size(self, name: str, /) -> int | None: ...


Read = Callable[[int, int], bytes]
"""Bytes of kernel memory by address and size.  Raises FaultError."""


class KernelNumbers(Protocol):
    """What an architecture may ask about a kernel (``VmcoreInfo`` answers it)."""

    def number(self, name: str, /) -> int | None: ...

    def symbol(self, name: str, /) -> int | None: ...

    def text(self, key: str, /) -> str | None: ...

    def length(self, name: str, /) -> int | None: ...

    def size(self, name: str, /) -> int | None: ...


def _prints_nothing(_form: PagingForm, _vaddr: int, _paddr: int, /) -> Mapping[str, int]:
    return {}


def page_size_of(kernel: KernelNumbers) -> int | None:
    """PAGESIZE; None when the kernel does not say it, or nonsense."""
    text = kernel.text("PAGESIZE") or ""
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
    return size if size >= 4096 and size & (size - 1) == 0 else None


Roots = tuple[tuple[int, PagingForm], ...]
"""Physical addresses of top tables, each with its form."""


def _no_tables(_kernel: KernelNumbers, _registers: Mapping[str, int], /) -> Roots:
    return ()


def _no_notes(_kernel: KernelNumbers, /) -> tuple[Note, ...]:
    return ()


def _no_features(_kernel: KernelNumbers, /) -> int:
    return 0


@dataclass(frozen=True)
class Architecture:
    """One architecture: constants and small functions, no state.

    ``byte_orders`` are those that a dump's header may have, of ``<`` and ``>``, each with the name by
    which a user asks for it.
    ``paging_forms`` gives the forms a kernel may use, most likely first.  ``image_paddrs``
    translates an address of the kernel image without page tables, which finds the root: where it can
    be, most likely first, by what the kernel says and where the dump has RAM; nothing if that is
    not known; ``image_source`` says by what.  ``saved_context`` says how a kernel saves a task's
    registers (None: too little is known), ``thread_keys`` what it asks for that.  ``image_window`` is
    where the image may be mapped (as wide as it can be, for a kernel that says nothing);
    ``alias_ranges`` are mapped many times over and left out.  ``running_tables`` are the top tables
    that a CPU with these registers may be using, and their form (none if no note has any);
    ``percpu_registers`` hold the base
    of a CPU's per-CPU area, or something else.

    ``thread_notes`` are what a debugger needs beside the registers of each thread, ``hwcap`` the bits of
    AT_HWCAP without which it ignores them.

    The others are for a kernel known by its vmlinux alone: ``root_symbols`` name the kernel's top
    table, the first that there is counts; ``image_numbers`` gives the NUMBERs that VMCOREINFO would have if
    the image, mapped by tables of this form, had ``vaddr`` at ``paddr`` (what ``image_paddrs`` needs);
    ``image_keys`` are the lines of VMCOREINFO, that the vmlinux has to say, on which the forms depend.
    """

    name: str
    e_machine: int
    byte_orders: Mapping[str, str]
    page_size: int
    stack_size: int
    prstatus: PrStatusLayout
    stack_pointer: str
    instruction_pointer: str
    image_window: Callable[[KernelNumbers], tuple[int, int]]
    paging_forms: Callable[[KernelNumbers], tuple[PagingForm, ...]]
    image_paddrs: Callable[[KernelNumbers, int, Ranges], tuple[int, ...]]
    image_source: str
    saved_context: Callable[[KernelFacts, Read], SavedContext | None]
    thread_keys: tuple[str, ...]
    alias_ranges: tuple[tuple[int, int], ...] = ()
    running_tables: Callable[[KernelNumbers, Mapping[str, int]], Roots] = _no_tables
    percpu_registers: tuple[str, ...] = ()
    root_symbols: tuple[str, ...] = ("swapper_pg_dir",)
    image_numbers: Callable[[PagingForm, int, int], Mapping[str, int]] = _prints_nothing
    thread_notes: Callable[[KernelNumbers], tuple[Note, ...]] = _no_notes
    hwcap: Callable[[KernelNumbers], int] = _no_features
    image_keys: tuple[str, ...] = ()

    def forms(self, kernel: KernelNumbers, order: str) -> tuple[PagingForm, ...]:
        """``paging_forms`` for a kernel of this byte order, ``<`` or ``>``."""
        return tuple(
            form if form.byte_order else replace(form, byte_order=order) for form in self.paging_forms(kernel)
        )

    @property
    def bits(self) -> int:
        """Bits of an address."""
        return 8 * self.prstatus.word
