"""Pointers and other words in a kernel's memory, in its own size and byte order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Bools
from kdump_elftool.memory.virtual import VirtualMemory


@dataclass(frozen=True)
class Words:
    """Words of ``word`` bytes, 4 or 8, in ``order``, ``<`` or ``>``."""

    memory: VirtualMemory
    order: str = "<"
    word: int = 8

    @property
    def mask(self) -> np.uint64:
        """All bits of a word."""
        return np.uint64(MASK64 >> (64 - 8 * self.word))

    def column(self, vaddr: U64) -> tuple[U64, Bools]:
        """The word at each address, and which could be read; the others are 0."""
        blocks, readable = self.memory.gather(vaddr, self.word)
        return blocks.reshape(-1).view(f"{self.order}u{self.word}").astype(np.uint64), readable

    def read(self, vaddr: int, size: int | None = None) -> int:
        """One word, or an unsigned number of ``size`` bytes.  Raises FaultError."""
        data = self.memory.read(vaddr & MASK64, size or self.word)
        return int.from_bytes(data, "little" if self.order == "<" else "big")
