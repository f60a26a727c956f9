"""A dump's kernel as the plain readers see it (``plain.target.Target``)."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.errors import FaultError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.memory.virtual import VirtualMemory


@dataclass(frozen=True)
class DumpTarget:
    """Symbols and offsets from VMCOREINFO, memory through the kernel's page tables."""

    order: str
    word: int
    info: VmcoreInfo
    memory: VirtualMemory

    @classmethod
    def of(cls, dump: Dump, kernel: Kernel) -> DumpTarget:
        """The word size is that of the machine: a 32-bit kernel's dump may be a 64-bit ELF file."""
        return cls(dump.kind.order, kernel.arch.prstatus.word, kernel.info, kernel.virtual(dump))

    def read(self, vaddr: int, size: int, /) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""
        if vaddr < 0 or vaddr + size > 1 << (8 * self.word):
            raise FaultError("vaddr", vaddr, "beyond the last address")
        return self.memory.read(vaddr, size)

    def symbol(self, name: str, /) -> int | None:
        """``SYMBOL(name)``."""
        return self.info.symbol(name)

    def offset(self, name: str, /) -> int | None:
        """``OFFSET(struct.member)``."""
        return self.info.offset(name)

    def size(self, name: str, /) -> int | None:
        """``SIZE(name)``."""
        return self.info.size(name)

    def number(self, name: str, /) -> int | None:
        """``NUMBER(name)``."""
        return self.info.number(name)
