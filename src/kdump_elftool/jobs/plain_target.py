"""A dump's kernel as the plain readers see it (``plain.target.Target``)."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.errors import FaultError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.memory.virtual import VirtualMemory


@dataclass(frozen=True)
class DumpTarget:
    """Symbols, offsets, sizes, lengths, numbers from all that is known; memory through the page tables."""

    order: str
    word: int
    known: Knowledge
    memory: VirtualMemory

    @classmethod
    def of(cls, dump: Dump, kernel: Kernel) -> DumpTarget:
        """The word size is that of the machine: a 32-bit kernel's dump may be a 64-bit ELF file."""
        known = knowledge(dump, kernel)
        return cls(dump.kind.order, kernel.arch.prstatus.word, known, kernel.virtual(dump))

    def read(self, vaddr: int, size: int, /) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""
        if vaddr < 0 or vaddr + size > 1 << (8 * self.word):
            raise FaultError("vaddr", vaddr, "beyond the last address")
        return self.memory.read(vaddr, size)

    def symbol(self, name: str, /) -> int | None:
        """``SYMBOL(name)``."""
        return self.known.symbol(name)

    def offset(self, name: str, /) -> int | None:
        """``OFFSET(struct.member)``."""
        return self.known.offset(name)

    def size(self, name: str, /) -> int | None:
        """``SIZE(name)``."""
        return self.known.size(name)

    def length(self, name: str, /) -> int | None:
        """``LENGTH(name)``."""
        return self.known.length(name)

    def number(self, name: str, /) -> int | None:
        """``NUMBER(name)``."""
        return self.known.number(name)
