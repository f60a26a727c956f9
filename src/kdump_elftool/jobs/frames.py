"""Call frames that the vmlinux does not describe, as a file that gdb loads beside it.

Compilers write call-frame information for C; for a kernel's assembly (exception and interrupt entry,
system calls, the start of a thread) there is none, and gdb's backtrace ends there or goes astray.  The
kernel itself knows: its ORC tables are in the dump.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from kdump_elftool.addr import NO_RANGES, Ranges
from kdump_elftool.dwarf.orc_to_frames import orc_to_frames
from kdump_elftool.elf.constants import EM_X86_64
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, symbol_file
from kdump_elftool.files import open_output
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.module_orc import read_module_orc
from kdump_elftool.kernel.orc import OrcTable, joined, read_kernel_orc, without

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameFile:
    """The file's bytes, how many stretches of code it describes, and what had to be left out."""

    data: bytes
    rows: int
    warnings: tuple[str, ...]


def write_frame_file(
    dump: Dump,
    kernel: Kernel,
    path: str,
    *,
    described: Ranges | None = None,
    skip_modules: Collection[str] = (),
) -> FrameFile | None:
    """Write an ELF file with the call frames of a dump's kernel and modules, for ``add-symbol-file``.

    gdb asks its files in the order in which they were loaded, and the first that describes an address
    is believed: load this one before the vmlinux (``add-symbol-file PATH``, without an address: nothing
    in it moves).  Returns what was written, or None, and writes nothing, where the dump has no tables
    (not x86_64, CONFIG_UNWINDER_FRAME_POINTER, or the memory is not in the dump).

    ``described``: run-time addresses that have better call-frame information; by default those of the
    vmlinux that ``kernel`` was opened with.  ``skip_modules``: names of modules whose own files gdb has.
    Raises OutputError.
    """
    found = frame_file(dump, kernel, described=described, skip_modules=skip_modules)
    if found is None:
        return None
    with open_output(path) as out:
        out.write_at(0, found.data)
        out.finish(len(found.data))
        out.commit()
    return found


def frame_file(
    dump: Dump,
    kernel: Kernel,
    known: Knowledge | None = None,
    *,
    described: Ranges | None = None,
    skip_modules: Collection[str] = (),
) -> FrameFile | None:
    """As :func:`write_frame_file`, without a file; ``known`` is what :func:`knowledge` gave, if anything."""
    if kernel.arch.e_machine != EM_X86_64 or kernel.arch.bits != 64:
        return None
    known = known or knowledge(dump, kernel)
    memory = kernel.virtual(dump)
    table = read_kernel_orc(memory, known, kernel.identity.image_window)
    if table is None:
        return None
    log.info("ORC: %d entries in the form of %s", len(table), table.format.name)
    modules = read_module_orc(memory, known, table.format)
    tables = [module.table for module in modules if module.name not in skip_modules]
    return _file(joined([without(table, described or NO_RANGES), *tables]))


def _file(table: OrcTable) -> FrameFile:
    data = orc_to_frames(table)
    section = Section(".debug_frame", data=data, align=8)
    return FrameFile(symbol_file(ElfKind(64, "<"), EM_X86_64, [section]), len(table), table.damage)
