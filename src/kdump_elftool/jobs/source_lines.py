"""The line tables of a vmlinux, for a file that is made of the dump: its compilation units, at the addresses
where the kernel ran."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from kdump_elftool.dwarf.debug_input import DebugInput
from kdump_elftool.dwarf.line_programs import find_addresses, moved_addresses
from kdump_elftool.dwarf.source_entries import Sources
from kdump_elftool.dwarf.source_units import source_units
from kdump_elftool.dwarf.strings import harmless
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import IdentityError
from kdump_elftool.kernel.debug_sections import section_contents
from kdump_elftool.kernel.vmlinux import Vmlinux, section_headers

_LARGEST = 1 << 29
"""Bytes of a section that is read as a whole; 30 MB of lines are in a distribution's kernel."""
_STRINGS = ("str", "line_str", "ranges", "rnglists", "str_offsets", "addr")


@dataclass(frozen=True)
class SourceLines:
    """The units, the sections that they refer to (.debug_line, .debug_line_str), and what is missing, in
    sentences."""

    sources: Sources
    line: bytes
    line_str: bytes
    missing: tuple[str, ...]


def source_lines(vmlinux: Vmlinux, low: int, offset: int) -> SourceLines:
    """What ``vmlinux`` knows of lines, all from the link address ``low`` on ``offset`` further on.

    Raises IdentityError where it knows nothing, CorruptDumpError, MissingCodecError.
    """
    elf = ElfFile.read(vmlinux.file)
    with ExitStack() as stack:
        source, cut = _open(elf, stack)
        if not source.line or not source.info_size:
            raise _no_lines(vmlinux.path)
        found = source_units(source)
    units = found.units
    places, damaged = find_addresses(source.line, [unit.line for unit in units], source.order, source.word)
    kept = [unit for unit in units if unit.line not in damaged]
    if not kept:
        raise _no_lines(vmlinux.path)
    missing = [f"{vmlinux.path}: {text}" for text in cut]
    lost = found.unread + len(units) - len(kept)
    if lost:
        missing.append(f"{vmlinux.path}: the lines of {lost} source files cannot be read")
    if found.rest is not None:
        missing.append(f"{vmlinux.path}: not all of its source files have lines: {found.rest}")
    line = moved_addresses(source.line, places, source.order, source.word, low, offset)
    return SourceLines(
        Sources.of(kept, low, offset, source.word), line, harmless(source.line_str), tuple(missing)
    )


def _no_lines(path: str) -> IdentityError:
    return IdentityError(
        "debug_line",
        f"{path} has no line numbers that can be read",
        hint="the vmlinux of the debug package has them, that of a kernel's headers or a boot image has not",
    )


def _open(elf: ElfFile, stack: ExitStack) -> tuple[DebugInput, list[str]]:
    """The sections, and sentences on those that end early."""
    headers = section_headers(elf)
    found = {
        name: section_contents(elf, f".debug_{name}", headers.get(b".debug_" + name.encode()), stack)
        for name in ("info", "abbrev", "line", *_STRINGS)
    }
    cut = [contents.cut for contents in found.values() if contents.cut is not None]
    info = found.pop("info")
    wholes = {name: contents.whole(_LARGEST) for name, contents in found.items()}
    kind = elf.header.kind
    word = kind.bits // 8
    return DebugInput(order=kind.order, word=word, info=info.read_at, info_size=info.size, **wholes), cut
