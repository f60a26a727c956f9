"""What an architecture is to the rest of the tool: paging forms and register sets, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kdump_elftool.addr import MASK64, U64, Bools


@dataclass(frozen=True)
class Level:
    """One table level: its kernel name, the lowest address bit it decodes, how many bits."""

    name: str
    shift: int
    bits: int

    @property
    def span(self) -> int:
        """Bytes of address space that one entry covers."""
        return 1 << self.shift

    @property
    def table_size(self) -> int:
        """Bytes of one table."""
        return 8 << self.bits


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
class PagingForm:
    """A page-table format: levels from the root down, entry decoders, address width.

    ``physmem_bits`` is the kernel's MAX_PHYSMEM_BITS with this form; ``ignored_bits`` are cleared from
    entries before decoding (AMD's encryption bit).
    """

    name: str
    va_bits: int
    levels: tuple[Level, ...]
    decode: Callable[[U64, Level], Entries]
    decode_one: Callable[[int, Level], Entry]
    physmem_bits: int
    byte_order: str = "<"
    ignored_bits: int = 0

    @property
    def kernel_half(self) -> tuple[int, int]:
        """The upper half in raw (not sign-extended) address bits, half-open."""
        return 1 << (self.va_bits - 1), 1 << self.va_bits

    @property
    def user_half(self) -> tuple[int, int]:
        """The lower half."""
        return 0, 1 << (self.va_bits - 1)

    def raw(self, vaddr: int) -> int:
        """A canonical address without its sign extension."""
        return vaddr & ((1 << self.va_bits) - 1)

    def is_canonical(self, vaddr: int) -> bool:
        """True when the bits above ``va_bits`` repeat the sign."""
        top = vaddr >> (self.va_bits - 1)
        return top in (0, MASK64 >> (self.va_bits - 1))


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

    ``pointer`` is the offset in task_struct of its saved stack pointer.  ``registers`` lie at
    offsets from where that points; those of ``derived`` are the pointer itself plus a number, those
    of ``constants`` the same for every task.
    """

    pointer: int
    registers: tuple[tuple[str, int], ...]
    derived: tuple[tuple[str, int], ...]
    constants: tuple[tuple[str, int], ...]


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


@dataclass(frozen=True)
class Architecture:
    """One architecture: constants and small functions, no state.

    ``byte_orders`` holds those that a dump's header may have, of ``<`` and ``>``.
    ``paging_forms`` gives the forms a kernel may use, most likely first.  ``image_paddr``
    translates an address of the kernel image without page tables (None: not known), which finds
    the root.  ``saved_context`` says how a kernel saves a task's registers (None: too little is
    known), ``thread_keys`` what it asks for that.  ``image_window`` is where the image may be mapped;
    ``alias_ranges`` are mapped many times over and left out.  ``running_tables`` are the top tables
    that a CPU with these registers may be using, and their form; ``percpu_registers`` hold the base
    of a CPU's per-CPU area, or something else.
    """

    name: str
    e_machine: int
    byte_orders: str
    page_size: int
    section_size_bits: int
    stack_size: int
    prstatus: PrStatusLayout
    stack_pointer: str
    instruction_pointer: str
    image_window: tuple[int, int]
    alias_ranges: tuple[tuple[int, int], ...]
    paging_forms: Callable[[KernelNumbers], tuple[PagingForm, ...]]
    image_paddr: Callable[[KernelNumbers, int], int | None]
    saved_context: Callable[[KernelFacts, Read], SavedContext | None]
    thread_keys: tuple[str, ...]
    running_tables: Callable[[KernelNumbers, Mapping[str, int]], tuple[tuple[int, PagingForm], ...]]
    percpu_registers: tuple[str, ...]
