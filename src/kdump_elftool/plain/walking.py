"""What all walkers of kernel structures share: members by name, and how a walk ends early.

A walk yields what it finds as it goes and ends with :class:`WalkError` where the structure is damaged, so
that what came before is not lost; :func:`collect` makes a list and a sentence of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from kdump_elftool.errors import FaultError, IdentityError, KdumpError
from kdump_elftool.plain.target import Target, unsigned

_LARGEST_OFFSET = 1 << 20
_Item = TypeVar("_Item")


class WalkError(KdumpError):
    """A structure cannot be followed further."""


def collect(walk: Iterable[_Item]) -> tuple[list[_Item], str | None]:
    """All that a walk finds, and why it ended early; None where it did not."""
    found: list[_Item] = []
    try:
        found.extend(walk)
    except (FaultError, WalkError) as error:
        return found, error.message
    return found, None


def known_offset(target: Target, *names: str) -> int | None:
    """Offset of the first of ``struct.member`` that this kernel has."""
    for name in names:
        value = target.offset(name)
        if value is not None and 0 <= value < _LARGEST_OFFSET:
            return value
    return None


def offset(target: Target, *names: str) -> int:
    """The same.  Raises IdentityError where the kernel has none of them, or nothing told."""
    value = known_offset(target, *names)
    if value is None:
        raise IdentityError(
            f"OFFSET({names[0]})",
            f"the offset of {' or '.join(names)} is not known",
            hint="types come from the dump (BTF) or the vmlinux given to tovelf, else from symbol-file",
        )
    return value


def pointer(target: Target, vaddr: int, *names: str) -> int:
    """A word-sized member of the structure at ``vaddr``.  Raises FaultError, IdentityError."""
    return unsigned(target, vaddr + offset(target, *names), target.word)


def number(target: Target, vaddr: int, width: int, *names: str) -> int:
    """The same of ``width`` bytes."""
    return unsigned(target, vaddr + offset(target, *names), width)


def words(target: Target, data: bytes) -> list[int]:
    """Consecutive words."""
    word = target.word
    order = "little" if target.order == "<" else "big"
    return [int.from_bytes(data[at : at + word], order) for at in range(0, len(data), word)]  # type: ignore[arg-type]


def string(target: Target, vaddr: int, limit: int = 256) -> bytes:
    """The text at ``vaddr`` up to its NUL, at most ``limit`` bytes.  Raises FaultError."""
    found = b""
    while len(found) < limit:
        step = min(64 - vaddr % 64, limit - len(found))  # a piece never crosses a page
        piece, end, _ = target.read(vaddr, step).partition(b"\0")
        found += piece
        if end:
            break
        vaddr += step
    return found
