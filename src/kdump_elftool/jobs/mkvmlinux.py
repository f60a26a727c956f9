"""A vmlinux out of the dump alone: symbols by kallsyms, types by BTF, at the addresses where the kernel ran.

Everything in the file is for debuggers; what the kernel's memory holds is in the dump, so sections of
code and data are NOBITS: nothing absent from a dump can be filled from here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kdump_elftool.addr import MASK64, NO_RANGES
from kdump_elftool.dwarf.btf_to_dwarf import BtfToDwarf, DebugSections, Written
from kdump_elftool.dwarf.source_entries import NO_SOURCES, Sources
from kdump_elftool.dwarf.strings import harmless
from kdump_elftool.dwarf.well_known import WELL_KNOWN
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, symbol_file
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.frames import FrameFile, frame_rows
from kdump_elftool.jobs.given_types import GivenTypes
from kdump_elftool.jobs.image_symbols import Part, code_of, elf_symbols, image_range, kernel_part, moved
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import exported, in_dump, knowledge
from kdump_elftool.jobs.link_frames import link_frames
from kdump_elftool.jobs.made_lacks import lacking
from kdump_elftool.jobs.module_parts import ModuleParts, module_parts, module_types
from kdump_elftool.jobs.source_lines import SourceLines, source_lines
from kdump_elftool.kernel.btf import Btf, no_types, open_btf
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.identity import kaslr_offset_by
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

_LONGEST_BANNER = 1024
NO_TYPES = GivenTypes()


@dataclass(frozen=True)
class MadeVmlinux:
    """The file, what is in it (``sources``: source files with lines), and what it lacks, in sentences."""

    data: bytes
    release: str | None
    symbols: int
    units: tuple[Written, ...]
    missing: tuple[str, ...]
    sources: int = 0


def make_vmlinux(
    dump: Dump,
    kernel: Kernel,
    *,
    given: GivenTypes = NO_TYPES,
    link_addresses: bool = False,
    lines_of: Vmlinux | None = None,
) -> MadeVmlinux:
    """Build it.

    ``given`` types go before those of the dump; with ``link_addresses`` the kernel lies
    where it was linked, for readers that add the KASLR offset themselves (drgn).  ``lines_of`` is the
    kernel's own vmlinux, whose line numbers are taken over.
    Raises IdentityError where the dump's symbol table cannot be found, or no lines in ``lines_of``.
    """
    words = Words(kernel.virtual(dump), dump.kind.order, kernel.arch.prstatus.word)
    in_file = _in_file(given, words)
    known = knowledge(dump, kernel, in_file)
    symbols, types = in_dump(known)
    if symbols is None:
        raise _no_symbols()
    modules = module_parts(dump, kernel, known)
    own = kernel_part(symbols, _all_variables(symbols, known, kernel))
    offset = _link_offset(kernel, lines_of) if link_addresses else 0
    parts = [moved(own, offset, *kernel.identity.image_window) if offset else own, *modules.parts]
    if given.kernel is None and types is None:
        types = _partial_types(words, kernel, symbols)
    if link_addresses:
        frames = link_frames(dump, kernel, known, symbols, offset)
    else:
        frames = frame_rows(dump, kernel, known, described=NO_RANGES, code=code_of(parts))
    missing = [f"kallsyms is damaged: {text}" for text in symbols.damage]
    missing += _lacking(modules, types, frames, given, unread=not in_file, wants_frames=not link_addresses)
    lines = None if lines_of is None else _lines(lines_of, kernel, link_addresses)
    if lines is not None:
        missing += lines.missing
        types = no_types(words.word) if types is None else types
    sources = NO_SOURCES if lines is None else lines.sources
    debug = None if types is None else _debug(words, known, types, parts[0], modules, sources, given)
    build_id = kernel.identity.build_id if link_addresses else None
    names = name_sections(words.order, build_id, _banner(words.memory, known))
    data = _file(dump, kernel, parts, contents_of(parts, debug, frames, names, lines))
    return made(data, kernel.identity.release, parts, debug, missing, len(sources.units))


def _in_file(given: GivenTypes, words: Words) -> Btf | None:
    """The kernel's types in a file, if they are of a machine like this."""
    if given.kernel is None:
        return None
    return Btf.parse(given.kernel, words.order, words.word, "--btf", partial=True)


def _lacking(
    modules: ModuleParts,
    types: Btf | None,
    frames: FrameFile | None,
    given: GivenTypes,
    *,
    unread: bool,
    wants_frames: bool,
) -> list[str]:
    """Sentences; ``unread``: the kernel's types in a file, if there is one, cannot be used."""
    is_given = given.kernel is not None
    said = lacking("the dump", modules, types, frames, given=is_given, wants_frames=wants_frames)
    if is_given and unread and types is not None:
        said.append("the file of --btf is none of a machine like this: the types are those of the dump")
    return said + given.unused((part.name[1:-1] for part in modules.parts), has_base=types is not None)


def _file(dump: Dump, kernel: Kernel, parts: Sequence[Part], sections: Sequence[Section]) -> bytes:
    return symbol_file(
        ElfKind(8 * kernel.arch.prstatus.word, dump.kind.order),
        kernel.arch.e_machine,
        sections,
        elf_symbols(parts),
        e_flags=dump.e_flags,
        osabi=c.ELFOSABI_GNU,
        loads=image_range(parts[0]),
    )


def _no_symbols() -> IdentityError:
    return IdentityError(
        "kallsyms",
        "the kernel's symbol table is not in the dump, or cannot be found in it",
        hint="--verbose says what was tried; a kernel without CONFIG_KALLSYMS has none",
    )


def made(
    data: bytes,
    release: str | None,
    parts: Sequence[Part],
    debug: DebugSections | None,
    missing: Sequence[str],
    sources: int = 0,
) -> MadeVmlinux:
    """The file with what is to be said of it."""
    units = () if debug is None else debug.units
    count = sum(len(part.symbols.names) for part in parts)
    return MadeVmlinux(data, release, count, units, (*missing, *_cut(units)), sources)


def _lines(vmlinux: Vmlinux, kernel: Kernel, link_addresses: bool) -> SourceLines:
    offset = kaslr_offset_by(kernel.identity, vmlinux)
    if offset is None:
        raise IdentityError(
            "kaslr_offset",
            "where the kernel ran is not known: line numbers have no place",
            hint="give KERNELOFFSET=0x... in a file with -e",
        )
    low = kernel.identity.image_window[0] - int(offset.value) & MASK64 >> (64 - kernel.arch.bits)
    return source_lines(vmlinux, low, 0 if link_addresses else int(offset.value))


def variables(symbols: Kallsyms, known: Knowledge) -> dict[str, int]:
    """Well-known variables of a kernel whose table has functions only, that are found otherwise."""
    found = ((name, known.symbol(name)) for name, _ in WELL_KNOWN if symbols.symbol(name) is None)
    return {name: vaddr for name, vaddr in found if vaddr is not None}


def _all_variables(symbols: Kallsyms, known: Knowledge, kernel: Kernel) -> dict[str, int]:
    """Those that the kernel exports to modules and that VMCOREINFO has, too."""
    more = variables(symbols, known)
    others = exported(known)
    if others:
        functions = set(symbols.names())
        low, high = kernel.identity.image_window
        keys = (key for key in kernel.info.values if key.startswith("SYMBOL("))
        told = {name: kernel.info.symbol(name) for name in (key[len("SYMBOL(") : -1] for key in keys)}
        told.pop("node_online_map", None)  # a macro: an element of node_states
        inside = {name: vaddr for name, vaddr in told.items() if vaddr is not None and low <= vaddr < high}
        more |= {name: vaddr for name, vaddr in (inside | dict(others)).items() if name not in functions}
    return more


def _link_offset(kernel: Kernel, vmlinux: Vmlinux | None) -> int:
    """How far the kernel ran from where it was linked, by ``vmlinux`` if there is one; 0 if not known."""
    offset = kaslr_offset_by(kernel.identity, vmlinux)
    return 0 if offset is None else int(offset.value)


def _debug(
    words: Words,
    known: Knowledge,
    types: Btf,
    part: Part,
    modules: ModuleParts,
    sources: Sources,
    given: GivenTypes,
) -> DebugSections:
    """The kernel's unit, those of its source files, and one for each module that has BTF."""
    debug = BtfToDwarf(words.order, words.word)
    debug.add(part.name, types, part.symbols, WELL_KNOWN, sources)
    for module, of_module in module_types(words, known, types, modules, given.modules):
        debug.add(module.name, of_module, module.symbols)
    return debug.finish()


def _partial_types(words: Words, kernel: Kernel, symbols: Kallsyms) -> Btf | None:
    """What can be read of what the dump has."""
    window = kernel.identity.image_window
    return open_btf(words.memory, symbols, window, words.order, words.word, partial=True)


def _banner(memory: VirtualMemory, known: Knowledge) -> bytes:
    """The kernel's linux_banner (init/version.c), or what is in its place.

    crash looks for it among the strings of a vmlinux (verify_namelist() in its kernel.c) and takes the file
    for another kernel's without.
    """
    vaddr = known.symbol("linux_banner")
    text = bytearray(_LONGEST_BANNER)
    if vaddr is not None:
        memory.read_present(vaddr, memoryview(text))
    return bytes(text).split(b"\0", 1)[0]


def _debug_sections(debug: DebugSections | None, lines: SourceLines | None) -> list[Section]:
    if debug is None:
        return []
    found = [(name, getattr(debug, name)) for name in ("info", "abbrev", "str", "rnglists", "aranges")]
    if lines is not None:
        found += [("line", lines.line), ("line_str", lines.line_str)]
    strings = c.SHF_MERGE | c.SHF_STRINGS
    return [
        Section(f".debug_{name}", strings if name.endswith("str") else 0, data=data)
        for name, data in found
        if data
    ]


def contents_of(
    parts: Sequence[Part],
    debug: DebugSections | None,
    frames: FrameFile | None,
    names: Sequence[Section],
    lines: SourceLines | None = None,
) -> list[Section]:
    """All sections: those of the parts first, as their symbols count them."""
    sections = [section for part in parts for section in part.sections]
    sections += names
    sections += _debug_sections(debug, lines)
    if frames is not None:
        sections.append(Section(".debug_frame", data=frames.data, align=8))
    return sections


def name_sections(order: str, build_id: bytes | None, banner: bytes) -> list[Section]:
    """By which others know whose vmlinux it is.

    drgn wants the build id.  gdb's index cache goes by that alone: with the index of a made file gdb 13 ends
    in an internal error when it opens the real one.  So gdb's has none.
    """
    names = []
    if build_id:
        note = _build_id_note(build_id, order)
        names.append(Section(".note.gnu.build-id", data=note, sh_type=c.SHT_NOTE, align=4))
    if banner.startswith(b"Linux version "):
        # of no address: gdb cannot take it for memory; the NUL parts it from what lies before it in the file
        text = harmless(banner.rstrip(b"\n")) + b"\n\0"
        names.append(Section(".linux_banner", data=b"\0" + text))
    return names


def _build_id_note(build_id: bytes, order: str) -> bytes:
    """gABI, "Note Section"."""
    byte_order = "little" if order == "<" else "big"
    numbers = (4, len(build_id), c.NT_GNU_BUILD_ID)
    head = b"".join(number.to_bytes(4, byte_order) for number in numbers)  # type: ignore[arg-type]
    return head + b"GNU\0" + build_id.ljust(-(-len(build_id) // 4) * 4, b"\0")


def _cut(units: Sequence[Written]) -> list[str]:
    found = []
    for unit in units:
        if unit.cut:
            found.append(f"BTF of {unit.name}: {unit.cut} references would go in circles and are left out")
        if unit.bare:
            found.append(f"BTF of {unit.name}: no room for the parameters of {unit.bare} functions")
    return found
