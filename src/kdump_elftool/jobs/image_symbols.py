"""The symbol table of a vmlinux: kallsyms has neither sizes nor types nor sections; they are worked out.

A symbol ends where the next one begins; what it is follows from the letter that nm would print and
from the section that it lies in; sections lie between the symbols that the linker script puts there
(include/asm-generic/vmlinux.lds.h, include/asm-generic/sections.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import MASK64, U64, Bools, Index, u64
from kdump_elftool.dwarf.btf_columns import U8
from kdump_elftool.dwarf.btf_variables import Symbols
from kdump_elftool.dwarf.strings import Lookup, Names
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.symfile import ABSOLUTE, Section, SymbolColumns
from kdump_elftool.kernel.kallsyms import Kallsyms

_AX, _WA, _A = c.SHF_ALLOC | c.SHF_EXECINSTR, c.SHF_ALLOC | c.SHF_WRITE, c.SHF_ALLOC
_PERCPU = ".data..percpu"
_SECTIONS = (
    (".kernel.text", _AX, ("_stext", "_text"), ("_etext",)),
    (".init.text", _AX, ("_sinittext",), ("_einittext",)),
    (".rodata", _A, ("__start_rodata",), ("__end_rodata",)),
    (".kernel.data", _WA, ("_sdata",), ("_edata",)),
    (_PERCPU, _WA, ("__per_cpu_start",), ("__per_cpu_end",)),
    (".bss", _WA, ("__bss_start",), ("__bss_stop",)),
)
"""Name, flags, symbols where it begins and ends (the first of them that exists)."""
_WITH_CONTENTS = {".kernel.text": ".text", ".kernel.data": ".data"}
"""Sections that crash wants to see with contents (section_header_info() in its symbols.c), or else it takes
the file for one that needs another beside it: empty ones, where those lie that have none."""
_LARGEST = 16 << 20
"""A symbol that is larger than this is the last one before a gap."""
_CODE, _WEAK_CODE, _OBJECTS, _WEAK = b"tT", b"wW", b"aAbBdDgGrRsSvV", b"wWvV"
_TEXTS = "sched cpuidle lock kprobes entry irqentry softirqentry noinstr static_call"
_LABELS = [
    *"_text _stext _etext _sinittext _einittext _sdata _edata _end __bss_start __bss_stop __brk_base".split(),
    *"__init_begin __init_end __start_rodata __end_rodata __per_cpu_start __per_cpu_end".split(),
    *(f"__{text}_text_{border}" for text in _TEXTS.split() for border in ("start", "end")),
    *"__indirect_thunk_start __indirect_thunk_end".split(),
]
"""Of the linker script: they mark places and have no size of their own."""


@dataclass(frozen=True)
class Part:
    """Symbols with the sections that they lie in; ``section`` counts from the part's first, -1 is none."""

    name: str
    symbols: Symbols
    sections: tuple[Section, ...]
    section: Index


def kernel_part(found: Kallsyms, more: Mapping[str, int], end: int | None = None) -> Part:
    """The kernel's own symbols; ``more`` are variables that its table lacks, and their addresses.

    ``end`` is where the image ends if the table does not say.
    """
    rows = np.flatnonzero(found.end > found.begin)
    extra = Names.of([name.encode() for name in more])
    names = Names(
        found.text + extra.text,
        np.concatenate([found.begin[rows], extra.begin + len(found.text)]),
        np.concatenate([found.end[rows], extra.end + len(found.text)]),
    )
    address = np.concatenate([found.address[rows], u64(more.values())])
    kind = np.concatenate([found.kind[rows], np.full(len(more), ord("D"), dtype=np.uint8)])
    size = sizes(address)
    labels = Lookup.of(Names.of([label.encode() for label in _LABELS]))
    size[labels.first(names.hashes())[0] >= 0] = 0
    symbols = Symbols(names, address, size, kind)
    last = end if end is not None else max(more.values(), default=None)
    sections = _image_sections(found.symbol, symbols, last)
    section = place(address, sections)
    symbols = replace(symbols, size=clipped(address, size, section, sections))
    return Part(
        "vmlinux", replace(symbols, kind=_told_by_section(kind, sections, section)), sections, section
    )


def _told_by_section(kind: U8, sections: Sequence[Section], section: Index) -> U8:
    """To nm all is code in a section that claims to be, as .data of some kernels does (x86_64 v7.2)."""
    names = {name for name, flags, *_ in _SECTIONS if not flags & c.SHF_EXECINSTR}
    is_data = np.array([known.name in names for known in sections] + [False])[section]
    kind = np.where(is_data & (kind == ord("t")), np.uint8(ord("d")), kind)
    return np.where(is_data & (kind == ord("T")), np.uint8(ord("D")), kind)


def sizes(address: U64) -> U64:
    """Up to the next symbol's address; 0 for the last one and for what cannot be that large."""
    borders = np.unique(address)
    following = np.append(borders[1:], borders[-1:])
    size: U64 = following[np.searchsorted(borders, address)] - address
    size[size > np.uint64(_LARGEST)] = 0
    return size


def _image_sections(
    symbol: Callable[[str], int | None], symbols: Symbols, last: int | None
) -> tuple[Section, ...]:
    """Those whose borders are known, and what lies between them, in the order of their addresses.

    ``last`` is the last address that the image has as far as is known where no symbol tells its end.
    """

    def first(names: tuple[str, ...]) -> int | None:
        return next((value for name in names if (value := symbol(name)) is not None), None)

    named = []
    for name, flags, starts, ends in _SECTIONS:
        start, end = first(starts), first(ends)
        if start is not None and end is not None and start < end:
            named.append(Section(name, flags, start, end - start))
    named.sort(key=lambda section: section.addr)
    low, high = first(("_text", "_stext")), symbol("_end")
    high = high if high is not None else last
    result: list[Section] = []
    reach = 0
    for section in named:
        # borders come out of a dump: what overlaps is none
        if section.addr >= reach:
            result += _between(reach, section.addr, low, high, symbols)
            if section.name in _WITH_CONTENTS:
                result.append(Section(_WITH_CONTENTS[section.name], section.flags, section.addr, data=b""))
            result.append(section)
            reach = section.addr + section.size
    return (*result, *_between(reach, MASK64, low, high, symbols))


def _between(start: int, end: int, low: int | None, high: int | None, symbols: Symbols) -> list[Section]:
    """The stretch of the image that has no name of its own, if a symbol lies in it."""
    if low is None or high is None:
        return []
    start, end = max(start, low), min(end, high + 1)
    if start >= end:
        return []
    inside = (symbols.address >= np.uint64(start)) & (symbols.address < np.uint64(end))
    if not inside.any():
        return []
    is_code = bool(np.any(inside & _is(symbols, _CODE) & (symbols.size > 0)))
    return [Section(f".image.{start - low:x}", _AX if is_code else _WA, start, end - start)]


def place(address: U64, sections: Sequence[Section]) -> Index:
    """The section that each address lies in, or -1.  Sections are sorted."""
    if not sections:
        return np.full(len(address), ABSOLUTE, dtype=np.intp)
    start = u64([section.addr for section in sections])
    end = start + u64([section.size for section in sections])
    at = np.searchsorted(start, address, side="right") - 1
    inside = (at >= 0) & (address < end[np.maximum(at, 0)])
    return np.where(inside, at, ABSOLUTE)


def clipped(address: U64, size: U64, section: Index, sections: Sequence[Section]) -> U64:
    """Sizes that end no later than the section does; eu-elflint says so of others."""
    end = u64([known.addr + known.size for known in sections] + [MASK64])
    fitting: U64 = np.minimum(size, end[section] - address)
    return fitting


def moved(part: Part, offset: int, low: int, high: int) -> Part:
    """What lies from ``low`` to ``high`` lower by ``offset``."""

    def move(address: U64) -> U64:
        inside = (address >= np.uint64(low)) & (address <= np.uint64(high))
        return np.where(inside, address - np.uint64(offset & MASK64), address)

    sections = [
        replace(section, addr=section.addr - offset & MASK64 if low <= section.addr <= high else section.addr)
        for section in part.sections
    ]
    symbols = replace(part.symbols, address=move(part.symbols.address))
    return replace(part, symbols=symbols, sections=tuple(sections))


def image_range(part: Part) -> list[tuple[int, int]]:
    """Address and size of the image, without what lies elsewhere (per-CPU variables at 0): drgn and lldb want
    to know where a program lies."""
    first = next((section.addr for section in part.sections if section.name == ".text"), None)
    if first is None:
        return []
    image = [section for section in part.sections if section.addr >= first]
    return [(first, image[-1].addr + image[-1].size - first)]


def code_of(parts: Sequence[Part]) -> U64:
    """Addresses of functions, in no order."""
    found = [part.symbols.address[_is(part.symbols, _CODE + _WEAK_CODE)] for part in parts]
    return np.concatenate([u64([]), *found])


def elf_symbols(parts: Sequence[Part]) -> SymbolColumns:
    """All parts' symbols, each part's behind a file symbol of its name."""
    made = []
    first_section = 0
    for part in parts:
        made.append(SymbolColumns.of([(part.name, 0, 0, c.STT_FILE, c.STB_LOCAL, ABSOLUTE)]))
        made.append(_columns(part, first_section))
        first_section += len(part.sections)
    before = np.cumsum([0, *(len(columns.text) for columns in made)])[:-1]
    return SymbolColumns(
        address=np.concatenate([columns.address for columns in made]),
        size=np.concatenate([columns.size for columns in made]),
        kind=np.concatenate([columns.kind for columns in made]),
        binding=np.concatenate([columns.binding for columns in made]),
        section=np.concatenate([columns.section for columns in made]),
        text=b"".join(columns.text for columns in made),
        begin=np.concatenate([columns.begin + at for columns, at in zip(made, before, strict=True)]),
        end=np.concatenate([columns.end + at for columns, at in zip(made, before, strict=True)]),
    )


def _columns(part: Part, first_section: int) -> SymbolColumns:
    symbols, section = part.symbols, part.section
    code = np.array([bool(known.flags & c.SHF_EXECINSTR) for known in part.sections] + [True])
    function = _is(symbols, _CODE) | _is(symbols, _WEAK_CODE) & code[section]
    kind = np.where(_is(symbols, _OBJECTS) & (section != ABSOLUTE), c.STT_OBJECT, c.STT_NOTYPE)
    upper = (symbols.kind >= ord("A")) & (symbols.kind <= ord("Z"))
    # crash believes per-CPU variables to be some if they are weak, or lie in a section with contents
    percpu = np.array([known.name == _PERCPU for known in part.sections] + [False])
    weak = _is(symbols, _WEAK) | percpu[section] & (symbols.size > 0)
    binding = np.where(weak, c.STB_WEAK, np.where(upper, c.STB_GLOBAL, c.STB_LOCAL))
    return SymbolColumns(
        address=symbols.address,
        size=symbols.size,
        kind=np.where(function, c.STT_FUNC, kind).astype(np.uint8),
        binding=binding.astype(np.uint8),
        section=np.where(section == ABSOLUTE, ABSOLUTE, section + first_section),
        text=symbols.names.text,
        begin=symbols.names.begin,
        end=symbols.names.end,
    )


def _is(symbols: Symbols, letters: bytes) -> Bools:
    return np.isin(symbols.kind, np.frombuffer(letters, dtype=np.uint8))
