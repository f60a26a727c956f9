"""Call frames of a kernel without unwind tables: by its frame pointers, and by the code in the dump."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, Ranges, u64
from kdump_elftool.dwarf.code_to_frames import ARM64, I386, X86_64, FrameMachine
from kdump_elftool.elf.constants import EM_386, EM_AARCH64, EM_X86_64, STT_FUNC
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.modules import modules_by
from kdump_elftool.kernel.arm64_frames import arm64_frames
from kdump_elftool.kernel.code_frames import Base, CodeFrames, merged, within
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.x86_frames import x86_frames
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

_TEXTS = (("_stext", "_etext", False), ("_sinittext", "_einittext", True))
"""The code for initialisation is freed, but the first idle task has frames of it on its stack."""
_LARGEST_TEXT = 128 << 20
_MOST_CODE = 512 << 20
"""Bytes of all stretches together: modules come out of a dump."""
_LARGEST_REGISTERS = 1 << 12
"""Bytes of struct pt_regs."""
_ARM64_ENTRIES = re.compile(r"el[01](?:[ht]_(?:64|32))?_\w+|ret_to_(?:user|kernel)")
"""arch/arm64/kernel/entry.S; those of the names that are in C have a prologue."""
MACHINES = {EM_AARCH64: ARM64, EM_386: I386, EM_X86_64: X86_64}


@dataclass(frozen=True)
class Text:
    """A stretch of code, [start, end), and where functions begin, in any order.

    ``gone``: what is there now may be something else.
    """

    start: int
    end: int
    functions: U64
    gone: bool = False


def pointer_frames(
    dump: Dump, kernel: Kernel, known: Knowledge, symbols: Kallsyms | None, skip_modules: Collection[str] = ()
) -> tuple[CodeFrames, FrameMachine] | None:
    """Rows for the kernel and its modules; None without symbols, or where the code is not known here."""
    machine = MACHINES.get(kernel.arch.e_machine)
    if machine is None or symbols is None:
        return None
    memory = kernel.virtual(dump)
    texts = believed([*_kernel_texts(symbols), *_module_texts(dump, kernel, known, skip_modules)])
    if not texts:
        return None
    entry = Entry.of(machine, known, symbols)
    parts = [_of_text(machine, memory, entry, text) for text in texts]
    texts.sort(key=lambda text: text.start)
    code = Ranges(u64([text.start for text in texts]), u64([text.end for text in texts]))
    frames = within(merged(parts), code)
    if not (frames.base != Base.UNDEFINED).any():
        log.info("frame pointers: the kernel's code keeps none")
        return None
    log.info("frame pointers: %d rows for %d stretches of code", len(frames), len(texts))
    return frames, machine


def believed(texts: Iterable[Text]) -> list[Text]:
    """Those that code may be in, as long as they are not more than any kernel has."""
    found, left = [], _MOST_CODE
    for text in texts:
        size = text.end - text.start
        if not 0 < size <= min(_LARGEST_TEXT, left) or text.end > MASK64:
            log.info("frame pointers: %#x bytes of code at %#x are not looked at", size, text.start)
            continue
        found.append(text)
        left -= size
    return found


@dataclass(frozen=True)
class Entry:
    """The assembly that enters the kernel: where it is on x86, [start, end); arm64's functions, and how far
    the frame record lies within struct pt_regs."""

    stretch: tuple[int, int] | None
    functions: U64
    registers: int | None

    @classmethod
    def of(cls, machine: FrameMachine, known: Knowledge, symbols: Kallsyms) -> Entry:
        """By the kernel's symbols and types."""
        stretch = entry_text(symbols.symbol)
        if machine is not ARM64:
            return cls(stretch, u64([]), None)
        registers = known.offset("pt_regs.stackframe")
        if registers is not None and not 0 <= registers <= _LARGEST_REGISTERS:
            registers = None
        return cls(stretch, _arm64_entries(symbols), registers)


def entry_text(symbol: Callable[[str], int | None]) -> tuple[int, int] | None:
    """Where the assembly is that enters the kernel of x86, [start, end)."""
    start, end = symbol("__entry_text_start"), symbol("__entry_text_end")
    return (start, end) if start is not None and end is not None else None


def _of_text(machine: FrameMachine, memory: VirtualMemory, entry: Entry, text: Text) -> CodeFrames:
    if text.gone:
        record = 2 * machine.word
        return CodeFrames.of(u64([text.start]), Base.FP, record, record)
    code = bytearray((text.end - text.start) // 4 * 4)
    memory.read_present(text.start, memoryview(code))
    if machine is ARM64:
        words = np.frombuffer(bytes(code), dtype="<u4")
        return arm64_frames(words, text.start, text.functions, entry.functions, entry.registers)
    return x86_frames(bytes(code), text.start, text.functions, entry.stretch, machine.word)


def _arm64_entries(symbols: Kallsyms) -> U64:
    rows = [row for row, name in enumerate(symbols.names()) if _ARM64_ENTRIES.fullmatch(name)]
    entries: U64 = symbols.address[np.array(rows, dtype=np.intp)]
    return entries


def _kernel_texts(symbols: Kallsyms) -> Iterator[Text]:
    code = symbols.address[np.isin(symbols.kind, np.frombuffer(b"tTwW", dtype=np.uint8))]
    for first, last, gone in _TEXTS:
        start, end = symbols.symbol(first), symbols.symbol(last)
        if start is not None and end is not None:
            yield Text(start, end, code, gone)


def _module_texts(dump: Dump, kernel: Kernel, known: Knowledge, skip_modules: Collection[str]) -> list[Text]:
    """The code of modules; what is not known of them is said by who writes their symbols."""
    if known.symbol("modules") is None:
        return []
    try:
        loaded = modules_by(known, dump, kernel)
    except IdentityError as error:
        log.info("frame pointers: %s", error.message)
        return []
    columns = loaded.symbols()
    functions = columns.address[columns.info & 0xF == STT_FUNC]
    return [
        Text(region.base, region.base + region.text, functions)
        for module in loaded.modules
        if module.name not in skip_modules
        for region in module.module.regions
        if region.text
    ]
