"""topelf --format kdump: a dump becomes a kdump-compressed one, with the pages that matter.

Notes are the dump's, with VMCOREINFO even where it was only found in memory, and without ours: crash
takes every note of type 1 for a CPU's registers, whoever owns it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import U64, Ranges, align_up, merge_ranges, subtract_ranges, u64
from kdump_elftool.arch.base import Architecture, page_size_of
from kdump_elftool.codecs.packing import packer
from kdump_elftool.elf.constants import EM_386, EM_X86_64, NT_PRSTATUS
from kdump_elftool.elf.notes import Note, chunk_size, encode_notes
from kdump_elftool.elf.own_notes import OWNER
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import FileSlice, Output
from kdump_elftool.formats.base import Dump, Lost
from kdump_elftool.formats.diskdump_layout import FLAGS, KdumpLayout, check
from kdump_elftool.formats.diskdump_machines import find_machine, machine_name
from kdump_elftool.formats.diskdump_writer import Patchwork, write_kdump
from kdump_elftool.formats.flattened_out import FlattenedOutput
from kdump_elftool.jobs.coverage import PAGE, Coverage
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, architecture
from kdump_elftool.jobs.reduction import reduce_dump
from kdump_elftool.jobs.selection import Pages
from kdump_elftool.jobs.unreadable import fewer, losses
from kdump_elftool.kernel.utsname import MACHINE, read_utsname
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME
from kdump_elftool.memory.extents import intersect
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.progress import Advance, silent

log = logging.getLogger(__name__)

ZERO, CACHE, CACHE_PRIVATE, USER, FREE = 1, 2, 4, 8, 16
"""makedumpfile's DL_EXCLUDE_*; zero pages share one descriptor, which is how it excludes them."""
DUMP_LEVELS = {
    "all": ZERO,
    "inuse": ZERO | FREE,
    "user": ZERO | FREE | CACHE | CACHE_PRIVATE,
    "cache": ZERO | FREE | USER,
    "kernel": ZERO | FREE | CACHE | CACHE_PRIVATE | USER,
}
_PAGE_SIZES = (4096, 8192, 16384, 65536)


@dataclass(frozen=True)
class KdumpPlan:
    """A planned dump; after writing, what was written.  ``file_size`` is known only then."""

    layout: KdumpLayout
    codec: str
    release: str | None
    pages: Pages
    coverage: Coverage
    warnings: tuple[str, ...]
    file_size: int = 0
    flattened: bool = False


def plan_kdump(dump: Dump, request: KernelRequest, level: str, codec: str) -> KdumpPlan:
    """Plan the dump.  Raises MissingCodecError, UnsupportedError, OutputError."""
    packer(codec)
    arch = architecture(dump)
    reduced = reduce_dump(dump, request, level)
    own = tuple(note for note in reduced.notes if note.name != OWNER)
    notes, vmcoreinfo = _encoded(reduced.described(own), dump.kind)
    page = _page_size(reduced.kernel, arch.page_size)
    dumped, torn = _frames(dump.memory, reduced.kept, page)
    layout = KdumpLayout(
        order=dump.kind.order,
        bits=8 * arch.prstatus.word,
        align=4 if dump.e_machine == EM_386 else 8,
        page_size=page,
        utsname=_utsname(dump, arch, reduced.kernel),
        seconds=_crash_time(reduced.kernel),
        nr_cpus=sum(note.name == b"CORE" and note.type == NT_PRSTATUS for note in own),
        phys_base=_phys_base(dump, reduced.kernel),
        dump_level=DUMP_LEVELS[level] if reduced.filtered else ZERO,
        flag=FLAGS[codec],
        notes=notes,
        vmcoreinfo=vmcoreinfo,
        ram=merge_ranges(*_both(_outward(dump.memory.declared, page), dumped)),
        dumped=dumped,
    )
    check(layout)
    log.info("layout: %d of %d frames, codec %s", layout.dumped.total, layout.ram.total, codec)
    pages = replace(reduced.pages, accepted=dumped.total * page // PAGE + -(-torn.total // PAGE))
    plan = KdumpPlan(layout, codec, reduced.release, pages, reduced.coverage, reduced.warnings)
    if len(torn):
        plan = _without(plan, torn, (Lost("paddr", "only a part of the page is in the dump", torn),))
    return plan


def write_plan(plan: KdumpPlan, dump: Dump, out: Output, advance: Advance = silent) -> KdumpPlan:
    """Write to a file, or in the flattened form to a pipe; returns what was written in the end.

    Raises CorruptDumpError when nothing could be read.
    """
    stream = None if out.is_file else FlattenedOutput(out)
    target: Patchwork = out if stream is None else stream
    written = write_kdump(plan.layout, dump.memory, target, packer(plan.codec), advance)
    plan = replace(plan, file_size=written.file_size, flattened=stream is not None)
    bad = written.unreadable
    if len(bad):
        size = np.uint64(plan.layout.page_size)
        lost = Ranges(bad.start * size, bad.end * size)
        found = losses(dump.memory, lost)
        if bad.total == plan.layout.dumped.total:
            raise CorruptDumpError(dump.file.path, f"nothing of it can be read: {found[0].why}")
        plan = _without(plan, lost, found)
    if stream is None:
        out.finish(written.file_size)
    else:
        stream.end()
    return plan


def _without(plan: KdumpPlan, ranges: Ranges, lost: tuple[Lost, ...]) -> KdumpPlan:
    """The account without some memory that is not written after all."""
    nr_pages = -(-ranges.total // PAGE)
    coverage = replace(
        plan.coverage, covered=max(plan.coverage.covered - nr_pages, 0), lost=(*plan.coverage.lost, *lost)
    )
    return replace(plan, coverage=coverage, pages=fewer(plan.pages, nr_pages))


def _page_size(kernel: Kernel | None, default: int) -> int:
    """The kernel's own, since the format has one descriptor for each of its pages."""
    told = page_size_of(kernel.info) if kernel else None
    return told if told in _PAGE_SIZES else default


def _outward(ranges: Ranges, page: int) -> Ranges:
    """The frames that ranges of addresses touch."""
    size = np.uint64(page)
    last = (ranges.end - np.uint64(1)) // size
    return merge_ranges(ranges.start // size, last + np.uint64(1))


def _both(first: Ranges, second: Ranges) -> tuple[U64, U64]:
    return np.concatenate([first.start, second.start]), np.concatenate([first.end, second.end])


def _frames(memory: PhysicalMemory, kept: Ranges, page: int) -> tuple[Ranges, Ranges]:
    """Frames to write, and addresses of pages that are left out as some of their memory is missing.

    A page of which the rest never was RAM is written, with zeros there.
    """
    frames, size = _outward(kept, page), np.uint64(page)
    absent = memory.absent()
    pieces = intersect(frames, *_start_size(_outward(absent, page)))
    torn = merge_ranges(pieces.start, pieces.start + pieces.size)
    whole = Ranges(torn.start * size, torn.end * size)
    present = intersect(kept, *_start_size(whole))
    return subtract_ranges(frames, torn), merge_ranges(present.start, present.start + present.size)


def _start_size(ranges: Ranges) -> tuple[U64, U64]:
    return ranges.start, ranges.end - ranges.start


def _utsname(dump: Dump, arch: Architecture, kernel: Kernel | None) -> tuple[bytes, ...]:
    """What uname said in the kernel; without it the release, and the machine by which readers choose."""
    name = machine_name(dump.e_machine, 8 * arch.prstatus.word, dump.kind.order)
    found = read_utsname(kernel.virtual(dump), kernel.info) if kernel else None
    if found is None:
        release = (kernel.info.text("OSRELEASE") or "" if kernel else "").encode("latin-1")
        return b"Linux", b"", release, b"", name, b""
    machine, _, _ = find_machine(found[MACHINE].decode("latin-1"), dump.kind.order, 64, ())
    right = machine == dump.e_machine
    return (*found[:MACHINE], found[MACHINE] if right else name, *found[MACHINE + 1 :])


def _crash_time(kernel: Kernel | None) -> int:
    """Seconds since 1970; 0 when the kernel did not crash."""
    text = kernel.info.text("CRASHTIME") if kernel else None
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else 0


def _phys_base(dump: Dump, kernel: Kernel | None) -> int:
    """How far an x86_64 kernel lies from its link address; crash knows it from nowhere else."""
    if kernel is None or dump.e_machine != EM_X86_64:
        return 0
    if kernel.identity.phys_base is not None:
        return kernel.identity.phys_base
    stext = kernel.identity.stext
    if stext is None:
        return dump.phys_base or 0
    paddr, mapped = kernel.virtual(dump).translate(u64([stext]))
    return int(paddr[0]) - (stext - kernel.identity.image_window[0]) if mapped[0] else 0


def _encoded(
    notes: tuple[Note, ...], kind: ElfKind
) -> tuple[tuple[bytes | FileSlice, ...], tuple[int, int] | None]:
    """The notes, and where among them VMCOREINFO's text is and how long."""
    chunks = tuple(encode_notes(notes, kind)) if notes else ()
    for index, note in enumerate(notes):
        if note.name == NOTE_NAME:
            before = sum(map(chunk_size, encode_notes(notes[:index], kind)))
            head = kind.nhdr.itemsize + align_up(len(note.name) + 1, 4)
            return chunks, (before + head, note.size)
    return chunks, None
