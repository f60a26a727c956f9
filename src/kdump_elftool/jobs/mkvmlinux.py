"""A vmlinux out of the dump alone: symbols by kallsyms, types by BTF, at the addresses where the kernel ran.

Everything in the file is for debuggers; what the kernel's memory holds is in the dump, so sections of
code and data are NOBITS: nothing absent from a dump can be filled from here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kdump_elftool.addr import NO_RANGES
from kdump_elftool.dwarf.btf_to_dwarf import BtfToDwarf, DebugSections, Written
from kdump_elftool.dwarf.strings import harmless
from kdump_elftool.dwarf.well_known import WELL_KNOWN
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, symbol_file
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.frames import FrameFile, frame_rows
from kdump_elftool.jobs.given_types import GivenTypes
from kdump_elftool.jobs.image_symbols import Part, elf_symbols, image_range, kernel_part, moved
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import in_dump, knowledge
from kdump_elftool.jobs.made_lacks import lacking
from kdump_elftool.jobs.module_parts import ModuleParts, module_parts, module_types
from kdump_elftool.kernel.btf import Btf, open_btf
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

_LONGEST_BANNER = 1024
NO_TYPES = GivenTypes()
NO_LINES = "line numbers are not in a dump: gdb shows symbol+offset"


@dataclass(frozen=True)
class MadeVmlinux:
    """The file, what is in it, and what it lacks, in sentences."""

    data: bytes
    release: str | None
    symbols: int
    units: tuple[Written, ...]
    missing: tuple[str, ...]


def make_vmlinux(
    dump: Dump, kernel: Kernel, *, given: GivenTypes = NO_TYPES, link_addresses: bool = False
) -> MadeVmlinux:
    """Build it.

    ``given`` types go before those of the dump; with ``link_addresses`` the kernel lies where it was linked,
    for readers that add the KASLR offset themselves (drgn).
    Raises IdentityError where the dump's symbol table cannot be found.
    """
    words = Words(kernel.virtual(dump), dump.kind.order, kernel.arch.prstatus.word)
    in_file = given.kernel and Btf.parse(given.kernel, words.order, words.word, "--btf", partial=True)
    known = knowledge(dump, kernel, in_file or None)
    symbols, types = in_dump(known)
    if symbols is None:
        raise _no_symbols()
    modules = module_parts(dump, kernel, known)
    own = kernel_part(symbols, variables(symbols, known))
    parts = [_placed(own, kernel, link_addresses), *modules.parts]
    if given.kernel is None and types is None:
        window = kernel.identity.image_window
        types = open_btf(words.memory, symbols, window, words.order, words.word, partial=True)
    debug = None if types is None else _debug(words, known, types, parts[0], modules, given)
    frames = None if link_addresses else frame_rows(dump, kernel, known, described=NO_RANGES)
    is_given = given.kernel is not None
    missing = lacking("the dump", modules, types, frames, given=is_given, wants_frames=not link_addresses)
    missing += given.unused((part.name[1:-1] for part in modules.parts), has_base=types is not None)
    build_id = kernel.identity.build_id if link_addresses else None
    names = name_sections(dump.kind.order, build_id, _banner(words.memory, known))
    data = symbol_file(
        ElfKind(8 * words.word, words.order),
        kernel.arch.e_machine,
        contents_of(parts, debug, frames, names),
        elf_symbols(parts),
        e_flags=dump.e_flags,
        loads=image_range(parts[0]),
    )
    return made(data, kernel.identity.release, parts, debug, missing)


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
) -> MadeVmlinux:
    """The file with what is to be said of it."""
    units = () if debug is None else debug.units
    count = sum(len(part.symbols.names) for part in parts)
    return MadeVmlinux(data, release, count, units, (*missing, *_cut(units)))


def variables(symbols: Kallsyms, known: Knowledge) -> dict[str, int]:
    """Well-known variables of a kernel whose table has functions only, that are found otherwise."""
    found = ((name, known.symbol(name)) for name, _ in WELL_KNOWN if symbols.symbol(name) is None)
    return {name: vaddr for name, vaddr in found if vaddr is not None}


def _placed(part: Part, kernel: Kernel, link_addresses: bool) -> Part:
    offset = kernel.identity.kaslr_offset or 0
    if not link_addresses or not offset:
        return part
    low, high = kernel.identity.image_window
    return moved(part, offset, low, high)


def _debug(
    words: Words, known: Knowledge, types: Btf, part: Part, modules: ModuleParts, given: GivenTypes
) -> DebugSections:
    """The kernel's unit, and one for each module that has BTF."""
    debug = BtfToDwarf(words.order, words.word)
    debug.add(part.name, types, part.symbols, WELL_KNOWN)
    for module, of_module in module_types(words, known, types, modules, given.modules):
        debug.add(module.name, of_module, module.symbols)
    return debug.finish()


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


def contents_of(
    parts: Sequence[Part], debug: DebugSections | None, frames: FrameFile | None, names: Sequence[Section]
) -> list[Section]:
    """All sections: those of the parts first, as their symbols count them."""
    sections = [section for part in parts for section in part.sections]
    sections += names
    if debug is not None:
        contents = (
            ("info", debug.info),
            ("abbrev", debug.abbrev),
            ("str", debug.str),
            ("rnglists", debug.rnglists),
        )
        sections += [Section(f".debug_{name}", data=data) for name, data in contents]
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
