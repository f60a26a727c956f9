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
from kdump_elftool.jobs.image_symbols import Part, elf_symbols, image_range, kernel_part, moved
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import exported, in_dump, knowledge
from kdump_elftool.jobs.module_parts import ModuleParts, module_parts, module_types
from kdump_elftool.kernel.btf import Btf, open_btf
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

_LONGEST_BANNER = 1024
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
    dump: Dump, kernel: Kernel, *, btf: bytes | None = None, link_addresses: bool = False
) -> MadeVmlinux:
    """Build it.

    ``btf`` is the kernel's BTF object where the dump has none; with ``link_addresses`` the kernel lies
    where it was linked, for readers that add the KASLR offset themselves (drgn).
    Raises IdentityError where the dump's symbol table cannot be found.
    """
    known = knowledge(dump, kernel)
    symbols, types = in_dump(known)
    if symbols is None:
        raise IdentityError(
            "kallsyms",
            "the kernel's symbol table is not in the dump, or cannot be found in it",
            hint="--verbose says what was tried; a kernel without CONFIG_KALLSYMS has none",
        )
    missing: list[str] = []
    modules = module_parts(dump, kernel, known)
    own = kernel_part(symbols, _variables(symbols, known, kernel))
    parts = [_placed(own, kernel, link_addresses), *modules.parts]
    missing += modules.warnings
    words = Words(kernel.virtual(dump), dump.kind.order, kernel.arch.prstatus.word)
    if btf is not None:
        types = Btf.parse(btf, words.order, words.word, "--btf", partial=True)
    elif types is None:
        window = kernel.identity.image_window
        types = open_btf(words.memory, symbols, window, words.order, words.word, partial=True)
    missing += _types_missing(types, given=btf is not None)
    debug = None if types is None else _debug(words, known, types, parts[0], modules)
    frames = None if link_addresses else frame_rows(dump, kernel, known, described=NO_RANGES)
    missing += _frames_missing(frames, link_addresses)
    names = _names(dump, kernel, _banner(words.memory, known), link_addresses)
    data = _file(dump, kernel, parts, debug, frames, names)
    units = () if debug is None else debug.units
    count = sum(len(part.symbols.names) for part in parts)
    return MadeVmlinux(data, kernel.identity.release, count, units, (*missing, *_cut(units)))


def _variables(symbols: Kallsyms, known: Knowledge, kernel: Kernel) -> dict[str, int]:
    """Variables of a kernel whose table has functions only, that are found otherwise.

    They are those that it exports to modules, that VMCOREINFO has, and well-known ones.
    """
    found = {name: known.symbol(name) for name, _ in WELL_KNOWN if symbols.symbol(name) is None}
    more = {name: vaddr for name, vaddr in found.items() if vaddr is not None}
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


def _placed(part: Part, kernel: Kernel, link_addresses: bool) -> Part:
    offset = kernel.identity.kaslr_offset or 0
    if not link_addresses or not offset:
        return part
    low, high = kernel.identity.image_window
    return moved(part, offset, low, high)


def _debug(words: Words, known: Knowledge, types: Btf, part: Part, modules: ModuleParts) -> DebugSections:
    """The kernel's unit, and one for each module that has BTF."""
    debug = BtfToDwarf(words.order, words.word)
    debug.add(part.name, types, part.symbols, WELL_KNOWN)
    for module, of_module in module_types(words, known, types, modules):
        debug.add(module.name, of_module, module.symbols)
    return debug.finish()


def _types_missing(types: Btf | None, *, given: bool) -> list[str]:
    if types is not None:
        return [] if types.damage is None else [f"BTF is damaged: {types.damage}"]
    if given:
        return ["the file of --btf is none that can be read: there are no types"]
    return ["there is no BTF in the dump (CONFIG_DEBUG_INFO_BTF): functions and variables have no types"]


def _frames_missing(frames: FrameFile | None, link_addresses: bool) -> tuple[str, ...]:
    if frames is not None:
        return frames.warnings
    if link_addresses:
        return ()
    return ("there are no unwind tables (ORC) in the dump: backtraces are what a debugger makes of the code",)


def _banner(memory: VirtualMemory, known: Knowledge) -> bytes:
    """The kernel's linux_banner (init/version.c); empty if it is not where it should be.

    crash looks for it among the strings of a vmlinux (verify_namelist() in its kernel.c) and takes the file
    for another kernel's without.
    """
    vaddr = known.symbol("linux_banner")
    text = bytearray(_LONGEST_BANNER)
    if vaddr is not None:
        memory.read_present(vaddr, memoryview(text))
    banner = bytes(text).split(b"\0", 1)[0]
    return harmless(banner.rstrip(b"\n")) + b"\n\0" if banner.startswith(b"Linux version ") else b""


def _file(
    dump: Dump,
    kernel: Kernel,
    parts: Sequence[Part],
    debug: DebugSections | None,
    frames: FrameFile | None,
    names: Sequence[Section],
) -> bytes:
    kind = ElfKind(8 * kernel.arch.prstatus.word, dump.kind.order)
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
    return symbol_file(
        kind,
        kernel.arch.e_machine,
        sections,
        elf_symbols(parts),
        e_flags=dump.e_flags,
        loads=image_range(parts[0]),
    )


def _names(dump: Dump, kernel: Kernel, banner: bytes, link_addresses: bool) -> list[Section]:
    """By which others know whose vmlinux it is.

    drgn wants the build id.  gdb's index cache goes by that alone: with the index of a made file gdb 13 ends
    in an internal error when it opens the real one.
    """
    names = []
    if kernel.identity.build_id and link_addresses:
        note = _build_id_note(kernel.identity.build_id, dump.kind.order)
        names.append(Section(".note.gnu.build-id", data=note, sh_type=c.SHT_NOTE, align=4))
    if banner:
        # of no address: gdb cannot take it for memory; the NUL parts it from what lies before it in the file
        names.append(Section(".linux_banner", data=b"\0" + banner))
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
