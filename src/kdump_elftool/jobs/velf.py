"""tovelf: a dump of physical memory becomes a core of kernel virtual memory.

Stages, each a pure function of the last: identity -> walk -> pieces that are present -> hot-first
order -> notes -> layout.  Nothing is written here; ``elf.writer`` does that with the plan.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from kdump_elftool.addr import MASK64, Index
from kdump_elftool.arch import ARCHITECTURES
from kdump_elftool.arch.base import Architecture
from kdump_elftool.arch.walker import Mappings, Walk, Window, walk
from kdump_elftool.elf.constants import EM_NAMES, NT_AUXV
from kdump_elftool.elf.layout import CoreLayout, Memory, build_layout
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.own_notes import OWNER, TYPE_SUMMARY, auxv_note, summary_note
from kdump_elftool.errors import IdentityError, UnsupportedError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.coverage import Coverage
from kdump_elftool.jobs.selection import Pages, select
from kdump_elftool.kernel.cpus import CORE, CpuNotes, CpuThread, cpu_threads
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.identity import (
    KernelIdentity,
    check_same_kernel,
    dump_vmcoreinfo,
    identify,
    kaslr_offset_by,
)
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME, VmcoreInfo, override
from kdump_elftool.kernel.vmlinux import Vmlinux

log = logging.getLogger(__name__)

LEVEL = "all"


@dataclass(frozen=True)
class VelfRequest:
    """What the user asked for, beyond the dump itself."""

    vmlinux: Vmlinux | None = None
    extra: VmcoreInfo | None = None
    pgt_root: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Velf:
    """A planned velf: everything known but the memory itself written."""

    layout: CoreLayout
    identity: KernelIdentity
    kaslr_offset: Fact | None
    threads: tuple[CpuThread, ...]
    pages: Pages
    coverage: Coverage
    warnings: tuple[str, ...]


def plan_velf(dump: Dump, request: VelfRequest) -> Velf:
    """Plan the conversion.  Raises IdentityError, UnsupportedError, OutputError."""
    arch = architecture(dump)
    info = _vmcoreinfo(dump, request)
    warnings = list(dump.warnings)
    if request.vmlinux is not None:
        warnings += _check_vmlinux(info, request.vmlinux, arch, request.force)
    identity = identify(dump, arch, info, request.pgt_root)
    log.info("kernel: %s, %s, root %#x", identity.release, identity.form.name, identity.pgt_root)
    walked = _walk(dump, identity, request.pgt_root is not None)
    log.info(
        "page tables: %d read, %d mappings, %d aliases left out",
        walked.tables,
        len(walked.mappings),
        walked.aliases,
    )
    if not len(walked.mappings):
        raise IdentityError(
            "pgt_root",
            f"the page tables at {identity.pgt_root:#x} map nothing",
            hint="this is not the kernel's page-table root: check -P or the VMCOREINFO lines",
        )
    if not identity.verified:
        warnings.append("no known kernel address confirms the page tables: the result may be nonsense")
    return _assemble(dump, request, identity, walked, warnings)


def architecture(dump: Dump) -> Architecture:
    """The dump's architecture.  Raises UnsupportedError."""
    arch = ARCHITECTURES.get(dump.e_machine)
    if arch is None:
        name = EM_NAMES.get(dump.e_machine, f"ELF machine {dump.e_machine}")
        known = ", ".join(known.name for known in ARCHITECTURES.values())
        raise UnsupportedError(
            dump.file.path, f"dumps of {name} are not supported yet", hint=f"supported: {known}"
        )
    if dump.kind.bits == 32 and arch.prstatus.word == 8:
        raise UnsupportedError(
            dump.file.path,
            f"a 32-bit ELF file cannot hold a dump of {arch.name}",
            hint="the header is damaged",
        )
    return arch


def _vmcoreinfo(dump: Dump, request: VelfRequest) -> VmcoreInfo:
    info = dump_vmcoreinfo(dump)
    if info is None and request.extra is None and request.pgt_root is None:
        raise IdentityError(
            "VMCOREINFO",
            f"{dump.file.path}: no VMCOREINFO note, which says where the page tables are",
            hint="give its text in a file with -e, or the page-table root with -P",
        )
    info = info or VmcoreInfo({})
    return override(info, request.extra) if request.extra else info


def _check_vmlinux(info: VmcoreInfo, vmlinux: Vmlinux, arch: Architecture, force: bool) -> list[str]:
    why = check_same_kernel(info, vmlinux, arch)
    if why is None:
        return []
    message = f"{vmlinux.path} is not the kernel of this dump: {why}"
    if force:
        return [message]
    raise IdentityError(
        "BUILD-ID", message, hint="give the vmlinux of that build; --force uses this one anyway"
    )


def _walk(dump: Dump, identity: KernelIdentity, with_user_half: bool) -> Walk:
    form = identity.form
    low, high = form.user_half[0] if with_user_half else form.kernel_half[0], form.kernel_half[1]
    aliases = tuple((form.raw(begin), form.raw(end - 1) + 1) for begin, end in identity.arch.alias_ranges)
    return walk(dump.memory, form, identity.pgt_root, Window(low, high, aliases))


def _assemble(
    dump: Dump, request: VelfRequest, identity: KernelIdentity, walked: Walk, warnings: list[str]
) -> Velf:
    kaslr_offset = kaslr_offset_by(identity, request.vmlinux)
    chosen = select(dump.memory, walked, dump.lost)
    if not walked.complete:
        warnings.append("the page tables map more pieces than can be real: the finest ones are left out")
    warnings += _image_warning(identity.arch, chosen.missing, walked)
    cpus = cpu_threads(dump.notes, identity.arch, dump.kind)
    notes = _notes(cpus, dump, request.vmlinux, kaslr_offset)
    notes.append(summary_note(_summary(identity, kaslr_offset, chosen.coverage)))
    mapped = chosen.mapped
    memory = Memory(mapped.vaddr, mapped.paddr, mapped.size, _rank(mapped, identity.arch, cpus.threads))
    encoded = tuple(encode_notes(tuple(notes), dump.kind))
    layout = build_layout(dump.kind, dump.e_machine, dump.e_flags, memory, encoded)
    log.info(
        "layout: %d segments, %d bytes, %d of them stored twice",
        layout.nr_segments,
        layout.file_size,
        layout.copied_bytes,
    )
    return Velf(
        layout=layout,
        identity=identity,
        kaslr_offset=kaslr_offset,
        threads=cpus.threads,
        pages=chosen.pages,
        coverage=chosen.coverage,
        warnings=tuple(warnings),
    )


def _notes(cpus: CpuNotes, dump: Dump, vmlinux: Vmlinux | None, kaslr_offset: Fact | None) -> list[Note]:
    """The dump's notes without those this tool writes anew: its own, and NT_AUXV given a vmlinux."""
    dropped = {(OWNER, TYPE_SUMMARY)}
    added = []
    if vmlinux is not None and kaslr_offset is not None:
        entry = (vmlinux.e_entry + int(kaslr_offset.value)) & MASK64
        dropped.add((CORE, NT_AUXV))
        added.append(auxv_note(dump.kind, entry))
    kept = [note for note in cpus.notes if (note.name, note.type) not in dropped]
    first = next((note for note in kept if note.name == NOTE_NAME), None)
    return [*(note for note in kept if note.name != NOTE_NAME or note is first), *added]


def _rank(mapped: Mappings, arch: Architecture, threads: tuple[CpuThread, ...]) -> Index:
    """0 the kernel image, 1 what the CPUs' stack pointers point into, 2 the direct map, 3 the rest.

    The direct map is recognised as the distance between vaddr and paddr that maps most memory.
    """
    rank = np.full(len(mapped), 3, dtype=np.intp)
    distance, member = np.unique(mapped.vaddr - mapped.paddr, return_inverse=True)
    if len(distance):
        weight = np.bincount(member, weights=mapped.size.astype(np.float64))
        rank[member == int(np.argmax(weight))] = 2
    for thread in threads:
        sp = np.uint64(thread.sp)
        rank[(mapped.vaddr <= sp) & (sp - mapped.vaddr < mapped.size)] = 1
    low, high = arch.image_window
    rank[(mapped.vaddr >= np.uint64(low)) & (mapped.vaddr < np.uint64(high))] = 0
    return rank


def _image_warning(arch: Architecture, missing: Mappings, walked: Walk) -> list[str]:
    """gdb answers from an exec file where the core has nothing: say so when that can happen."""
    low, high = (np.uint64(edge) for edge in arch.image_window)
    inside = (missing.vaddr >= low) & (missing.vaddr < high)
    pages = int(missing.size[inside].sum()) // arch.page_size
    hidden = any(
        bool(np.any((part.vaddr < high) & (part.vaddr + np.uint64(part.span - 1) >= low)))
        for part in walked.lost
    )
    if not pages and not hidden:
        return []
    count = f"{pages} pages" if pages and not hidden else "pages"
    return [
        f"{count} of the kernel image are absent: give gdb vmlinux with 'symbol-file -o OFFSET', not as "
        "the program, or it shows link-time bytes there"
    ]


def _summary(identity: KernelIdentity, kaslr_offset: Fact | None, coverage: Coverage) -> dict[str, object]:
    facts = [*identity.facts, *([kaslr_offset] if kaslr_offset else [])]
    return {
        "schema": "kdump-elftool/velf/1",
        "producer": f"kdump-elftool {version('kdump-elftool')}",
        "facts": [{"name": fact.name, "value": fact.shown(), "source": fact.source} for fact in facts],
        "level": LEVEL,
        "coverage": coverage.as_json(),
    }
