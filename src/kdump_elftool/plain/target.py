"""What a plain reader needs of a kernel: bytes at an address, symbols, offsets of members.

A dump answers from its VMCOREINFO and page tables, gdb from symbols and the core.  The readers
take nothing for granted: a structure that is described as impossible is refused here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from kdump_elftool.errors import FaultError, IdentityError

PAGE = 4096
_LARGEST_STRUCT = 1 << 20


class Target(Protocol):
    """A kernel that can be read.  ``word`` is the size of a long in bytes."""

    @property
    def order(self) -> str:
        """``<`` or ``>``, as in the struct module."""

    @property
    def word(self) -> int:
        """4 or 8."""

    def read(self, vaddr: int, size: int, /) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""

    def symbol(self, name: str, /) -> int | None:
        """Address of a variable."""

    def offset(self, name: str, /) -> int | None:
        """Byte offset of ``struct.member``."""

    def size(self, name: str, /) -> int | None:
        """Bytes of a structure."""

    def length(self, name: str, /) -> int | None:
        """Elements of an array."""

    def number(self, name: str, /) -> int | None:
        """A number that the kernel's build decided."""


class Field(NamedTuple):
    """A number inside a structure."""

    offset: int
    width: int

    def at(self, data: bytes, base: int, order: str) -> int:
        """The unsigned value in a copy of the structure that begins at ``base``."""
        start = base + self.offset
        return int.from_bytes(data[start : start + self.width], "little" if order == "<" else "big")


class Pieces(NamedTuple):
    """A stretch of memory with holes: where a page could not be read there are zeros."""

    data: bytes
    holes: list[tuple[int, int]]

    @property
    def nothing(self) -> bool:
        """True when not a byte was read."""
        return sum(high - low for low, high in self.holes) == len(self.data)

    def whole(self, start: int, end: int) -> bool:
        """True when all of ``start`` to ``end`` was read."""
        return all(end <= low or start >= high for low, high in self.holes)


def unsigned(target: Target, vaddr: int, width: int) -> int:
    """The number at ``vaddr``.  Raises FaultError."""
    return int.from_bytes(target.read(vaddr, width), "little" if target.order == "<" else "big")


def variable(target: Target, name: str, width: int) -> int:
    """The value of a variable of ``width`` bytes.  Raises IdentityError, FaultError."""
    vaddr = target.symbol(name)
    if vaddr is None:
        raise IdentityError(f"SYMBOL({name})", f"the address of {name} is not known")
    return unsigned(target, vaddr, width)


def struct_size(target: Target, name: str, largest: int = _LARGEST_STRUCT) -> int:
    """The size of a structure.  Raises IdentityError when it is unknown or cannot be."""
    value = target.size(name)
    if value is None or not 0 < value <= largest:
        raise IdentityError(f"SIZE({name})", f"the size of struct {name} is {_said(value)}")
    return value


def field(target: Target, name: str, width: int) -> Field:
    """Where ``struct.member`` of ``width`` bytes is.  Raises IdentityError, as :func:`struct_size`."""
    value = target.offset(name)
    if value is None or not 0 <= value <= struct_size(target, name.partition(".")[0]) - width:
        raise IdentityError(f"OFFSET({name})", f"the offset of {name} is {_said(value)}")
    return Field(value, width)


def read_pieces(target: Target, vaddr: int, size: int) -> Pieces:
    """What can be read of ``size`` bytes, page by page where they cannot be read at once."""
    try:
        return Pieces(target.read(vaddr, size), [])
    except FaultError:
        pass
    data = bytearray(size)
    holes = []
    at = 0
    while at < size:
        step = min(PAGE - (vaddr + at) % PAGE, size - at)
        try:
            data[at : at + step] = target.read(vaddr + at, step)
        except FaultError:
            holes.append((at, at + step))
        at += step
    return Pieces(bytes(data), holes)


def _said(value: int | None) -> str:
    return "not known" if value is None else f"said to be {value}, which cannot be"
