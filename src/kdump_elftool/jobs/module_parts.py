"""The loaded modules' part of a vmlinux: their symbols, the regions they lie in, and their BTF."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Index, u64
from kdump_elftool.dwarf.btf_columns import U8
from kdump_elftool.dwarf.btf_variables import Symbols
from kdump_elftool.dwarf.strings import Names
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.symfile import ABSOLUTE, Section
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.image_symbols import Part, clipped, place, sizes
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.modules import LoadedModule, modules_by
from kdump_elftool.kernel.btf import Btf
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.module_btf import ModuleBtf, read_module_btf
from kdump_elftool.kernel.modules import SymbolColumns
from kdump_elftool.kernel.words import Words

log = logging.getLogger(__name__)

_LETTERS = {c.STT_FUNC: b"Tt", c.STT_OBJECT: b"Dd"}


@dataclass(frozen=True)
class ModuleParts:
    """Symbols by module, the addresses of their ``struct module``, and what is worth a warning."""

    parts: tuple[Part, ...]
    vaddr: tuple[int, ...]
    warnings: tuple[str, ...]


def module_parts(dump: Dump, kernel: Kernel, known: Knowledge) -> ModuleParts:
    """All modules whose memory is there; without, the warnings say why."""
    if known.symbol("modules") is None:
        return ModuleParts((), (), ("where the kernel's modules are is not known: they are left out",))
    try:
        loaded = modules_by(known, dump, kernel)
    except IdentityError as error:
        return ModuleParts((), (), (error.message,))
    symbols = loaded.symbols()
    parts = [_part(module, symbols, number) for number, module in enumerate(loaded.modules)]
    vaddr = tuple(module.module.vaddr for module in loaded.modules)
    return ModuleParts(tuple(parts), vaddr, loaded.warnings)


def _part(module: LoadedModule, symbols: SymbolColumns, number: int) -> Part:
    name = f"[{module.name}]"
    sections = _sections(name, module)
    rows = symbols.of(number)
    section = place(symbols.address[rows], sections)
    # mapping symbols ($x, $d) name nothing; what lies in no region has no address (a per-CPU variable)
    first = np.frombuffer(symbols.text, dtype=np.uint8)[symbols.begin[rows]]
    kept = (section != ABSOLUTE) & (first != ord("$"))
    rows, section = rows[kept], section[kept]
    address = symbols.address[rows]
    size = np.where(symbols.size[rows] > 0, symbols.size[rows], _room(address, sections))
    size = clipped(address, size, section, sections)
    names = _own_names(symbols.text, symbols.begin[rows], symbols.end[rows])
    return Part(name, Symbols(names, address, size, _letters(symbols, rows)), sections, section)


def _own_names(text: bytes, begin: Index, end: Index) -> Names:
    """A module's names without the text of all the others."""
    if not len(begin):
        return Names.of([])
    low = int(begin.min())
    return Names(text[low : int(end.max())], begin - low, end - low)


def _room(address: U64, sections: tuple[Section, ...]) -> U64:
    """Up to the next symbol or the end of the region."""
    ends = u64([section.addr + section.size for section in sections])
    return sizes(np.concatenate([address, ends]))[: len(address)]


def _letters(symbols: SymbolColumns, rows: Index) -> U8:
    """nm's letters, of the ELF type where the kernel has kept that: it tells code from data better."""
    letter, info = symbols.letter[rows].copy(), symbols.info[rows]
    for kind, (upper, lower) in _LETTERS.items():
        wrong = (info & 0xF == kind) & ~np.isin(letter, [upper, lower])
        letter[wrong] = np.where(info[wrong] >> 4 == c.STB_LOCAL, lower, upper)
    return letter


def _sections(name: str, module: LoadedModule) -> tuple[Section, ...]:
    """The module's regions, code apart from data, in the order of their addresses."""
    found = []
    for region in module.module.regions:
        code = min(region.text, region.size)
        pieces = ((region.base, code, c.SHF_EXECINSTR), (region.base + code, region.size - code, c.SHF_WRITE))
        for base, size, flag in pieces:
            if size:
                kind = ".text" if flag == c.SHF_EXECINSTR else ".data"
                found.append(Section(f"{name}.{region.kind}{kind}", c.SHF_ALLOC | flag, base, size))
    return tuple(sorted(found, key=lambda section: section.addr))


def module_types(
    words: Words, known: Knowledge, base: Btf, modules: ModuleParts, given: Mapping[str, bytes]
) -> Iterator[tuple[Part, Btf]]:
    """The BTF of each module that has one, behind the kernel's: as ``given`` by name, else the dump's."""
    by_vaddr = dict(zip(modules.vaddr, modules.parts, strict=True))
    objects = [ModuleBtf(vaddr, given.get(part.name[1:-1], b"")) for vaddr, part in by_vaddr.items()]
    for found in (*(each for each in objects if each.data), *read_module_btf(words, known)):
        part = by_vaddr.pop(found.module, None)
        if part is None:
            continue
        types = Btf.parse(found.data, words.order, words.word, f"BTF of {part.name}", base)
        if types is not None:
            yield part, types
