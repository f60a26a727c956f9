"""A vmlinux as a source of facts: its symbol table as arrays, its types from ``.BTF``.

Symbol values are link-time addresses; what is asked for are those at run time, so the KASLR offset
is added, except to values below the kernel image: per-CPU variables of x86_64 count from 0 there
(until v6.14).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import FormatError
from kdump_elftool.files import ByteSource, InputFile
from kdump_elftool.kernel.btf import MAX_SIZE, Btf
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.vmlinux import Vmlinux, find_symbols


@dataclass(frozen=True)
class VmlinuxSymbols:
    """Looks names up in the symbol table of a vmlinux; ``kaslr_offset`` is how far the kernel was moved."""

    vmlinux: Vmlinux
    kaslr_offset: int
    image_start: int

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        if kind != "SYMBOL":
            return None
        value = self.vmlinux.symbols.get(name)
        if value is None:
            with InputFile.open(self.vmlinux.path) as file:
                value = find_symbols(ElfFile.read(file), [name]).get(name)
        if value is None:
            return None
        if value >= self.image_start:
            value = (value + self.kaslr_offset) & MASK64
        return Fact(f"SYMBOL({name})", value, "vmlinux symbols")


def vmlinux_btf(vmlinux: Vmlinux, word: int) -> Btf | None:
    """The types of a vmlinux that has BTF."""
    with InputFile.open(vmlinux.path) as file:
        elf = ElfFile.read(file)
        data = section_data(elf, b".BTF")
        return None if data is None else Btf.parse(data, elf.header.kind.order, word, "vmlinux BTF")


def section_data(elf: ElfFile, name: bytes) -> bytes | None:
    """The contents of a section; None when it is not there, empty or absurdly large."""
    sections = elf.sections()
    index = elf.header.shstrndx
    if index >= len(sections):
        return None
    strings = _data(elf.file, sections[index])
    for at in np.flatnonzero(sections["sh_type"] == c.SHT_PROGBITS).tolist():
        start = int(sections["sh_name"][at])
        if strings[start : start + len(name) + 1] == name + b"\0":
            return _data(elf.file, sections[at]) or None
    return None


def _data(file: ByteSource, section: np.void) -> bytes:
    size = int(section["sh_size"])
    if size > MAX_SIZE:
        raise FormatError(file.path, f"a section of {size:#x} bytes")
    return file.read_at(int(section["sh_offset"]), size)
