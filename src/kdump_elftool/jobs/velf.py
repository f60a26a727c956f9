"""tovelf: a dump of physical memory becomes a core of kernel virtual memory.

Stages, each a pure function of the last: identity -> walk -> pieces that are present -> hot-first
order -> notes -> layout.  Nothing is written here; ``elf.writer`` does that with the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import MASK64, U64, align_down, merge_ranges, u64
from kdump_elftool.arch import find_architecture
from kdump_elftool.arch.walker import Mappings
from kdump_elftool.elf.constants import AT_ENTRY, AT_HWCAP, NT_AUXV
from kdump_elftool.elf.layout import CoreLayout, Memory, build_layout
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.own_notes import (
    OWNER,
    TYPE_LAYOUT,
    TYPE_SUMMARY,
    TYPE_TASKS,
    TYPE_UNDO,
    auxv_note,
    layout_note,
    producer,
    summary_note,
    task_note,
)
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.task_table import as_json
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.coverage import Coverage
from kdump_elftool.jobs.image import ImageLoss, image_loss
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.own_cpus import own_cpus
from kdump_elftool.jobs.pages import choose_pages
from kdump_elftool.jobs.selection import Pages, select
from kdump_elftool.jobs.tasks import task_table, tasks_by, threads_of
from kdump_elftool.kernel.cpus import CORE, CpuNotes, CpuThread, cpu_threads, is_prstatus
from kdump_elftool.kernel.facts import Fact, Knowledge
from kdump_elftool.kernel.identity import (
    KernelIdentity,
    kaslr_offset_by,
)
from kdump_elftool.plain.needs import needs

log = logging.getLogger(__name__)

SCHEMA = "kdump-elftool/velf/1"


@dataclass(frozen=True)
class Velf:
    """A planned velf: everything known but the memory itself written.

    ``threads`` are those on a CPU, of ``nr_threads`` in all.  ``image_loss`` says what of the kernel image
    is absent: no matter to a gdb that has vmlinux for its symbols alone.
    """

    layout: CoreLayout
    notes: tuple[Note, ...]
    identity: KernelIdentity
    level: str
    kaslr_offset: Fact | None
    threads: tuple[CpuThread, ...]
    nr_threads: int
    facts: tuple[Fact, ...]
    vmlinux: str | None
    pages: Pages
    coverage: Coverage
    image_loss: ImageLoss
    warnings: tuple[str, ...]


LayOut = Callable[[Dump, Memory, tuple[Note, ...]], CoreLayout]


def new_file(dump: Dump, memory: Memory, notes: tuple[Note, ...]) -> CoreLayout:
    """The layout of a core that is a file of its own."""
    kind = core_kind(dump)
    return build_layout(kind, dump.e_machine, dump.e_flags, memory, tuple(encode_notes(notes, kind)))


def core_kind(dump: Dump) -> ElfKind:
    """What gdb wants, whatever the dump is: QEMU writes i386 guests into 64-bit files."""
    arch = find_architecture(dump.e_machine, dump.kind.bits)
    return dump.kind if arch is None else ElfKind(arch.bits, dump.kind.order)


def plan_velf(
    dump: Dump,
    request: KernelRequest,
    lay_out: LayOut = new_file,
    *,
    level: str | None = None,
    procthreads: bool = False,
    kernel: Kernel | None = None,
    about: Mapping[str, object] | None = None,
    answers: bool = True,
) -> Velf:
    """Plan the conversion; ``lay_out`` decides where everything comes to lie.

    Without ``level``: user for another page table than the kernel's own, else kernel.
    With ``procthreads`` every task is a thread.  ``kernel`` is what open_kernel() returned, if that was
    called already; ``about`` goes into the summary note too.  With ``answers`` there is a note of what gdb's
    commands ask, which takes longer than all else of a conversion in place.
    Raises IdentityError, UnsupportedError, OutputError.
    """
    kernel = kernel or open_kernel(dump, request)
    identity = kernel.identity
    level = level or ("user" if kernel.foreign else "kernel")
    kaslr_offset = kaslr_offset_by(identity, kernel.vmlinux)
    choice, page_warnings = choose_pages(dump, kernel, level)
    chosen = select(dump.memory, kernel.written, dump.lost, choice)
    own, cpu_warnings = own_cpus(dump, kernel)
    known = knowledge(dump, kernel)
    found = _threads(own, kernel, known if procthreads else None)
    summary = _summary(identity, kaslr_offset, found.facts, level, chosen.coverage)
    notes = (
        *_notes(found.cpus, dump, kernel, kaslr_offset),
        # asked apart: these answers are for gdb, and nothing in the core rests on them
        *([layout_note(Knowledge(known.sources).answers(needs()))] if answers else []),
        summary_note({**summary, **(about or {})}),
    )
    return Velf(
        layout=_laid_out(lay_out, dump, kernel, _ranked(chosen.mapped, kernel, found.stacks), notes),
        notes=notes,
        identity=identity,
        level=level,
        kaslr_offset=kaslr_offset,
        threads=found.cpus.threads,
        nr_threads=sum(map(is_prstatus, found.cpus.notes)),
        pages=chosen.pages,
        coverage=chosen.coverage,
        facts=found.facts,
        vmlinux=kernel.vmlinux.path if kernel.vmlinux else None,
        image_loss=image_loss(identity, chosen.missing, kernel.walked.lost),
        warnings=(*kernel.warnings, *page_warnings, *cpu_warnings, *found.warnings),
    )


def _laid_out(
    lay_out: LayOut, dump: Dump, kernel: Kernel, memory: Memory, notes: tuple[Note, ...]
) -> CoreLayout:
    layout = lay_out(_with_flags(dump, kernel), memory, notes)
    log.info(
        "layout: %d segments, %d bytes, %d of them stored twice",
        layout.nr_segments,
        layout.file_size,
        layout.copied_bytes,
    )
    return layout


def _with_flags(dump: Dump, kernel: Kernel) -> Dump:
    """With the vmlinux's e_flags where the dump has none: gdb knows an ABI by them."""
    if dump.e_flags or kernel.vmlinux is None:
        return dump
    return replace(dump, e_flags=kernel.vmlinux.e_flags)


@dataclass(frozen=True)
class _Threads:
    """Notes with their threads, where the threads' stacks are, facts that were used, what went wrong."""

    cpus: CpuNotes
    stacks: U64
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()


def _threads(dump: Dump, kernel: Kernel, known: Knowledge | None) -> _Threads:
    """The CPUs'; with ``known`` those of all tasks."""
    if known is None:
        cpus = cpu_threads(dump.notes, kernel.arch, dump.kind)
        stacks = [align_down(thread.sp, kernel.arch.stack_size) for thread in cpus.threads]
        return _Threads(cpus, u64(stacks))
    found = threads_of(tasks_by(known, dump, kernel), dump, kernel)
    others = [note for note in dump.notes if not is_prstatus(note)]
    notes = (task_note(as_json(task_table(found.listed, found.table))), *found.notes, *others)
    return _Threads(CpuNotes(notes, found.cpus), found.stacks, found.listed.known.used, found.warnings)


def _notes(cpus: CpuNotes, dump: Dump, kernel: Kernel, kaslr_offset: Fact | None) -> list[Note]:
    """The dump's notes without those this tool writes anew: its own, NT_AUXV given a vmlinux, a thread's."""
    dropped = {(OWNER, TYPE_SUMMARY), (OWNER, TYPE_UNDO), (OWNER, TYPE_LAYOUT)}
    ours = [note for note in cpus.notes[:1] if (note.name, note.type) == (OWNER, TYPE_TASKS)]
    dropped.add((OWNER, TYPE_TASKS))
    added, values = [], {}
    vmlinux = kernel.vmlinux
    if vmlinux is not None and kaslr_offset is not None:
        values[AT_ENTRY] = (vmlinux.e_entry + int(kaslr_offset.value)) & MASK64
    hwcap, beside = kernel.arch.hwcap(kernel.info), kernel.arch.thread_notes(kernel.info)
    if hwcap:
        values[AT_HWCAP] = hwcap
    if values:
        dropped.add((CORE, NT_AUXV))
        added.append(auxv_note(core_kind(dump), values))
    dropped |= {(note.name, note.type) for note in beside}
    kept = [note for note in cpus.notes if (note.name, note.type) not in dropped]
    whole = [each for note in kept for each in ((note, *beside) if is_prstatus(note) else (note,))]
    return [*ours, *kernel.description.notes(tuple(whole)), *added]


def _ranked(mapped: Mappings, kernel: Kernel, stacks: U64) -> Memory:
    """With ranks: 0 the kernel image, 1 the stacks of the threads, 2 the direct map, 3 the rest.

    The direct map is recognised as the distance between vaddr and paddr that maps most memory.
    """
    arch, rank = kernel.arch, np.full(len(mapped), 3, dtype=np.intp)
    distance, member = np.unique(mapped.vaddr - mapped.paddr, return_inverse=True)
    if len(distance):
        weight = np.bincount(member, weights=mapped.size.astype(np.float64))
        rank[member == int(np.argmax(weight))] = 2
    # a stack in vmalloc space is made of scattered pages
    bottom = stacks[stacks <= np.uint64(MASK64 - arch.stack_size)]
    tops = merge_ranges(bottom, bottom + np.uint64(arch.stack_size))
    last = mapped.vaddr + (mapped.size - np.uint64(1))
    below = np.searchsorted(tops.end, mapped.vaddr, side="right")
    rank[np.searchsorted(tops.start, last, side="right") > below] = 1
    low, high = kernel.identity.image_window
    rank[(mapped.vaddr >= np.uint64(low)) & (mapped.vaddr < np.uint64(high))] = 0
    return Memory(mapped.vaddr, mapped.paddr, mapped.size, rank)


def _summary(
    identity: KernelIdentity,
    kaslr_offset: Fact | None,
    used: tuple[Fact, ...],
    level: str,
    coverage: Coverage,
) -> dict[str, object]:
    facts = [*identity.facts, *([kaslr_offset] if kaslr_offset else []), *used]
    return {
        "schema": SCHEMA,
        "producer": producer(),
        "facts": [fact.as_json() for fact in facts],
        "level": level,
        "coverage": coverage.as_json(),
    }
