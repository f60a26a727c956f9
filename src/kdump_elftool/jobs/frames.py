"""Call frames that the vmlinux does not describe, as a file that gdb loads beside it.

Compilers write call-frame information for C; for a kernel's assembly (exception and interrupt entry,
system calls, the start of a thread) there is none, and gdb's backtrace ends there or goes astray.  The
kernel itself knows: its ORC tables are in the dump, or it has frame pointers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import NO_RANGES, U64, Ranges, u64
from kdump_elftool.dwarf.code_to_frames import code_to_frames
from kdump_elftool.dwarf.orc_to_frames import orc_to_frames
from kdump_elftool.elf.constants import EM_X86_64, STB_LOCAL, STT_NOTYPE
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import ABSOLUTE, Section, SymbolColumns, symbol_file
from kdump_elftool.files import open_output
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import in_dump, knowledge
from kdump_elftool.jobs.pointer_frames import entry_text, pointer_frames
from kdump_elftool.kernel.code_frames import without as without_described
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.identity import kaslr_offset_by
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.module_orc import read_module_orc
from kdump_elftool.kernel.orc import V4_14, Base, Kind, OrcTable, joined, read_kernel_orc, without
from kdump_elftool.kernel.percpu import find_percpu
from kdump_elftool.kernel.prologue import prologues
from kdump_elftool.kernel.runqueues import RunQueueReader
from kdump_elftool.kernel.vmlinux_frames import described_code
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)


CALLED_NULL = OrcTable(
    ip=u64([0]),
    kind=np.array([Kind.CALL], dtype=np.uint8),
    sp_base=np.array([Base.SP], dtype=np.uint8),
    sp_offset=np.array([8], dtype=np.int16),
    bp_base=np.array([Base.UNDEFINED], dtype=np.uint8),
    bp_offset=np.array([0], dtype=np.int16),
    signal=np.array([False]),
    end=1,
    format=V4_14,
)
"""Whoever calls a function at NULL has just pushed the return address (kernel: null_orc_entry)."""
_NAME = SymbolColumns.of([("kdump_elftool_frames", 0, 0, STT_NOTYPE, STB_LOCAL, ABSOLUTE)])
"""gdb warns of a file without any symbol."""


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
    in it moves).  Returns what was written, or None, and writes nothing, where neither tables (ORC) nor
    frame pointers say where frames are (32-bit ARM, MIPS, the memory is not in the dump).

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
    rows = frame_rows(dump, kernel, known, described=described, skip_modules=skip_modules)
    if rows is None:
        return None
    sections = [Section(".debug_frame", data=rows.data, align=8)]
    kind = ElfKind(8 * kernel.arch.prstatus.word, dump.kind.order)
    file = symbol_file(kind, kernel.arch.e_machine, sections, _NAME)
    return FrameFile(file, rows.rows, rows.warnings)


def frame_rows(
    dump: Dump,
    kernel: Kernel,
    known: Knowledge | None = None,
    *,
    described: Ranges | None = None,
    skip_modules: Collection[str] = (),
    code: U64 | None = None,
) -> FrameFile | None:
    """As :func:`frame_file`, but ``data`` is the section .debug_frame alone.

    ``code``: where functions begin, those of modules too, beside those of the kernel's own table.
    """
    known = known or knowledge(dump, kernel)
    found = None
    if kernel.arch.e_machine == EM_X86_64 and kernel.arch.bits == 64:
        found = _by_orc(dump, kernel, known, described, skip_modules, code)
    return found or _by_pointers(dump, kernel, known, described, skip_modules)


def _by_orc(
    dump: Dump,
    kernel: Kernel,
    known: Knowledge,
    described: Ranges | None,
    skip_modules: Collection[str],
    code: U64 | None,
) -> FrameFile | None:
    memory = kernel.virtual(dump)
    table = read_kernel_orc(memory, known, kernel.identity.image_window)
    if table is None:
        return None
    log.info("ORC: %d entries in the form of %s", len(table), table.format.name)
    modules = read_module_orc(memory, known, table.format)
    tables = [module.table for module in modules if module.name not in skip_modules]
    if described is None:
        described = _by_vmlinux(kernel)
    functions = _functions(known)
    table = joined([table, *prologues(table, functions, memory.read)])
    rows = joined([CALLED_NULL, without(table, described), *tables])
    if code is not None:
        functions = np.concatenate([functions, code])
    try:
        # what a running kernel's CPUs are at now is not what they are at in the dump this is used with
        switches = dump.running or _goes_down(memory, known)
        data = orc_to_frames(
            rows,
            functions=functions if len(functions) else None,
            entry_text=entry_text(known.symbol),
            switch_is_signal=switches,
        )
    except ValueError as error:
        log.warning("ORC: %s", error)
        return None
    return FrameFile(data, len(rows), rows.damage)


def _by_pointers(
    dump: Dump, kernel: Kernel, known: Knowledge, described: Ranges | None, skip_modules: Collection[str]
) -> FrameFile | None:
    """For kernels without such tables: by frame pointers and code.

    Only 64-bit files are searched for what they describe: beside a vmlinux of 32 bits there is nothing.
    """
    if described is None and kernel.vmlinux is not None and kernel.arch.bits != 64:
        return None
    symbols, _ = in_dump(known)
    found = pointer_frames(dump, kernel, known, symbols, skip_modules)
    if found is None:
        return None
    frames, machine = found
    rows = without_described(frames, _by_vmlinux(kernel) if described is None else described)
    try:
        data = code_to_frames(rows, machine, dump.kind.order)
    except ValueError as error:
        log.warning("frame pointers: %s", error)
        return None
    return FrameFile(data, len(rows), ())


def _functions(known: Knowledge) -> U64:
    """Where the kernel's functions begin, by its own symbol table; nothing if that could not be read."""
    symbols, _ = in_dump(known)
    return u64([]) if symbols is None else functions_of(symbols)


def functions_of(symbols: Kallsyms) -> U64:
    """Addresses of the symbols that are code; all of .data claims to be on some kernels (x86_64 v7.2)."""
    code = (symbols.kind | 0x20) == ord("t")
    start, end = symbols.symbol("_sdata"), symbols.symbol("_edata")
    if start is not None and end is not None:
        code &= (symbols.address < np.uint64(start)) | (symbols.address >= np.uint64(end))
    functions: U64 = symbols.address[code]
    return functions


def _by_vmlinux(kernel: Kernel) -> Ranges:
    """The code that the vmlinux describes, at its run-time addresses."""
    vmlinux = kernel.vmlinux
    offset = None if vmlinux is None else kaslr_offset_by(kernel.identity, vmlinux)
    if vmlinux is None or offset is None:
        return NO_RANGES
    return described_code(vmlinux.file, int(offset.value))


def _goes_down(memory: VirtualMemory, known: Knowledge) -> bool:
    """True unless every CPU's interrupt stack is known to lie below the stack of the task that it runs.

    gdb takes a caller on a lower stack for the end of a damaged backtrace.
    """
    percpu = find_percpu(memory, known, "<", 8)
    stack = known.offset("task_struct.stack")
    pointer, hot = known.symbol("hardirq_stack_ptr"), known.offset("pcpu_hot.hardirq_stack_ptr")
    if pointer is None and hot is not None:
        pcpu_hot = known.symbol("pcpu_hot")
        pointer = None if pcpu_hot is None else pcpu_hot + hot
    queues = None if percpu is None else RunQueueReader(memory, known, "<", 8).by_percpu(percpu)
    if percpu is None or queues is None or pointer is None or stack is None:
        return True
    words = Words(memory)
    interrupts, has_interrupts = words.column(percpu.address(pointer))
    tasks, has_task = words.column(queues.curr + np.uint64(stack))
    return not bool((has_interrupts & has_task & (interrupts < tasks)).all())
