"""info: what a person asks first about a dump, each answer with its source.

Nothing but the dump is needed; what is missing from it is left out or said to be unknown, and why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile

from kdump_elftool.addr import subtract_ranges
from kdump_elftool.arch import find_architecture
from kdump_elftool.elf.constants import EM_NAMES
from kdump_elftool.elf.task_table import noted_tasks
from kdump_elftool.errors import IdentityError, KdumpError, UnsupportedError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.coverage import PAGE, Coverage
from kdump_elftool.jobs.description import Description, describe
from kdump_elftool.jobs.dmesg import NSEC, DumpLog, crash_time, dump_log
from kdump_elftool.jobs.image import image_loss
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.jobs.own_cpus import elsewhere
from kdump_elftool.jobs.pages import ALL_KEPT, choose_pages
from kdump_elftool.jobs.placement import shown_ranges, system_ram
from kdump_elftool.jobs.selection import select
from kdump_elftool.jobs.tasks import TaskList, list_tasks
from kdump_elftool.kernel.cpus import is_prstatus
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.identity import MISREAD, kaslr_offset_by
from kdump_elftool.kernel.pages import Category
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.plain.crash_log import CrashLog, last_stamp, read_crash
from kdump_elftool.plain.printk import Line, lines
from kdump_elftool.safe_text import log_text, printable

LAST_LINES = 10
_CATEGORIES = {
    Category.KEPT: "kernel",
    Category.FREE: "free",
    Category.CACHE: "cache",
    Category.USER: "user",
    Category.POISON: "poison",
    Category.OFFLINE: "offline",
}


@dataclass(frozen=True)
class Item:
    """One answer: as a line of text, and under ``key`` for programs.  ``source`` is what told it.

    A ``detail`` is printed for those who ask for everything.
    """

    label: str
    shown: str
    source: str
    key: str
    value: object
    detail: bool = False


@dataclass(frozen=True)
class Summary:
    """All answers in order, the end of the log, what is worth a warning, and every value they rest on."""

    items: tuple[Item, ...]
    coverage: Coverage
    last_lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class _Found:
    """What could be opened: None where the dump did not allow it, for tasks why it did not."""

    dump: Dump
    described: Description
    kernel: Kernel | None
    log: DumpLog | None
    crash: CrashLog
    warnings: list[str]
    listed: TaskList | str | None

    @property
    def info(self) -> VmcoreInfo:
        """What the kernel says about itself."""
        return self.described.info


def summarise(dump: Dump, request: KernelRequest, *, with_tasks: bool = False) -> Summary:
    """Ask the dump everything.  A kernel or log that cannot be read becomes a warning.

    Tasks are counted only ``with_tasks``: so one sees what ``ps`` and ``tovelf -p`` would rest on.  It
    goes for the kernel's own list of memory too.
    """
    found = _find(dump, request, with_tasks=with_tasks)
    warnings = found.warnings
    memory = dump.memory
    coverage = Coverage.of(memory.declared.total, memory.absent().total, dump.lost)
    if found.kernel is not None:
        chosen = select(memory, found.kernel.walked, dump.lost)
        coverage = chosen.coverage
        loss = image_loss(found.kernel.identity, chosen.missing, found.kernel.walked.lost)
        warnings += [str(loss)] if loss else []
    items = (
        *_file_items(dump),
        *_release_items(found),
        *_time_items(found),
        *_panic_items(found),
        *memory_lines(dump, found.kernel),
        *_paging_items(found),
        *(_ram_items(dump, found.kernel) if with_tasks and found.kernel else ()),
        *_kernel_items(found.described),
        *_task_items(found.listed),
    )
    last = tuple(lines(found.log.log)[-LAST_LINES:]) if found.log else ()
    coverage = _without_unreadable(coverage, memory)
    return Summary(items, coverage, last, tuple(warnings), tuple(_facts(found)))


def _without_unreadable(coverage: Coverage, memory: PhysicalMemory) -> Coverage:
    """The coverage when some of what was asked for here turned out unreadable."""
    bad = memory.found_unreadable()
    if not len(bad):
        return coverage
    # only a damaged disk comes here
    from kdump_elftool.jobs.unreadable import losses

    covered = max(coverage.covered - -(-bad.total // PAGE), 0)
    return replace(coverage, covered=covered, lost=(*coverage.lost, *losses(memory, bad)))


def _facts(found: _Found) -> Iterator[Fact]:
    """Every value that was used, the first source of each, in the order of their use."""
    facts = [*found.info.used.values()]
    if found.kernel is not None:
        identity = found.kernel.identity
        offset = kaslr_offset_by(identity, found.kernel.vmlinux)
        facts = [*identity.facts, *([offset] if offset else []), *facts]
        default = f"not in VMCOREINFO: as {identity.form.name} has it"
        facts.append(Fact("NUMBER(SECTION_SIZE_BITS)", identity.form.section_size_bits, default))
        facts.append(Fact("NUMBER(MAX_PHYSMEM_BITS)", identity.form.physmem_bits, default))
    facts += found.log.facts if found.log else ()
    facts += found.listed.known.used if isinstance(found.listed, TaskList) else ()
    first: dict[str, Fact] = {}
    for fact in facts:
        first.setdefault(fact.name, fact)
    yield from first.values()


def memory_lines(dump: Dump, kernel: Kernel | None) -> Iterator[Item]:
    """Memory in the dump, and what kinds of pages it is made of."""
    present, declared = dump.memory.present().total, dump.memory.declared.total
    pages, of_pages = (-(-size // PAGE) for size in (present, declared))
    value: dict[str, int] = {"present_pages": pages, "declared_pages": of_pages}
    shown = f"{present / (1 << 20):.1f} MiB present, {pages} of {of_pages} pages"
    yield Item("memory", shown, "the dump's headers", "memory", value)
    if kernel is None:
        return
    account, reasons = choose_pages(dump, kernel, "kernel")
    if account is None:
        why = f"unknown: {'; '.join(reason.removeprefix(ALL_KEPT) for reason in reasons)}"
        yield Item("by category", printable(why), "", "categories", None)
        return
    counts = {_CATEGORIES[category]: count for category, count in account.counts.items()}
    counts["kernel"] -= account.unknown
    counts["undescribed"] = account.without_struct + account.unknown  # their struct page is not there
    shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    yield Item("by category", f"{shown} pages", "struct page", "categories", counts)


def _find(dump: Dump, request: KernelRequest, *, with_tasks: bool) -> _Found:
    described = describe(dump, find_architecture(dump.e_machine, dump.kind.bits), request)
    warnings: list[str] = []
    kernel = log = None
    try:
        kernel = open_kernel(dump, request, described)
        warnings += kernel.warnings
    except (IdentityError, UnsupportedError) as error:
        warnings += [*dump.warnings, *described.warnings]
        warnings.append(_warning("the kernel's memory cannot be read", error))
    if kernel is not None:
        try:
            log = dump_log(dump, kernel)
            warnings += filter(None, [log.warning()])
        except KdumpError as error:
            warnings.append(_warning("the log cannot be read", error))
    crash = read_crash(log.log, crashed=crash_time(described.info) is not None) if log else CrashLog()
    listed = _list_tasks(dump, kernel) if kernel is not None and with_tasks else None
    return _Found(dump, described, kernel, log, crash, warnings, listed)


def _list_tasks(dump: Dump, kernel: Kernel) -> TaskList | str:
    try:
        return list_tasks(dump, kernel)
    except KdumpError as error:
        return error.message


def _warning(what: str, error: KdumpError) -> str:
    return f"{what}: {error.message}" + (f" ({error.hint})" if error.hint else "")


def _file_items(dump: Dump) -> Iterator[Item]:
    path = printable(os.fspath(dump.file.path))
    yield Item("file", path, "the command line", "file", path)
    shown = f"{dump.format}, {dump.kind.bits}-bit, {dump.file.size} bytes"
    yield Item("format", shown, dump.format_source, "format", dump.format)


def _release_items(found: _Found) -> Iterator[Item]:
    release, build_id = found.info.text("OSRELEASE"), found.info.build_id
    if release is not None:
        source = found.info.source("OSRELEASE")
        yield Item("release", printable(release), source, "release", printable(release))
    source = found.info.source("BUILD-ID")
    begins = found.info.build_id_start
    if build_id is not None:
        yield Item("build id", build_id.hex(), source, "build_id", build_id.hex())
    elif begins:
        yield Item("build id", f"{begins.hex()}...", source + MISREAD, "build_id", None)
    machine = found.dump.e_machine
    arch = find_architecture(machine, found.dump.kind.bits)
    name = arch.name if arch else EM_NAMES.get(machine, f"ELF machine {machine}")
    yield Item("arch", name, "the dump's header", "arch", name)


def _kernel_items(described: Description) -> Iterator[Item]:
    """Where VMCOREINFO is; after a search of memory, every kernel that was found, if there are several."""
    searched = bool(described.kernels)
    source = "a search of memory" if searched else "the dump's notes"
    yield Item("vmcoreinfo", described.source, source, "vmcoreinfo", described.source)
    rows: list[dict[str, object]] = []
    for kernel in described.kernels:
        build_id = kernel.info.build_id
        rows.append(
            {
                "release": printable(kernel.info.text("OSRELEASE") or ""),
                "build_id": build_id.hex() if build_id else None,
                "vmcoreinfo": kernel.where,
                "verified": kernel.verified,
                "pgt_root": f"{kernel.identity.pgt_root:#x}" if kernel.identity else None,
                "kaslr_offset": _hex(kernel.info.kaslr_offset),
                "crash_kernel_of": kernel.crash_kernel_of,
                "chosen": len(rows) == described.chosen,
            }
        )
    many = sum(kernel.verified for kernel in described.kernels) > 1
    for number, kernel in enumerate(described.kernels, 1):
        mark = " (taken)" if number - 1 == described.chosen else ""
        detail = not (many and kernel.verified)
        yield Item(f"kernel {number}", kernel.shown() + mark, source, "kernels", rows, detail=detail)


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _time_items(found: _Found) -> Iterator[Item]:
    crashed, source = crash_time(found.info), "CRASHTIME"
    log, ts_nsec = found.log, found.crash.ts_nsec
    if crashed is None and log and log.boot and ts_nsec is not None:
        crashed, source = log.boot.at(ts_nsec), f"the panic message, {log.boot.source}"
    if crashed is not None:
        when = datetime.fromtimestamp(crashed, UTC)
        value = f"{when:%Y-%m-%dT%H:%M:%SZ}"
        yield Item("crashed at", f"{when:%Y-%m-%d %H:%M:%S} UTC", source, "crashed_at", value)
    last = last_stamp(log.log) if log else None
    if last is not None:
        seconds = last // NSEC
        shown = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} at the last message"
        yield Item("uptime", shown, "the log", "uptime_seconds", last / NSEC)


def _panic_items(found: _Found) -> Iterator[Item]:
    crash = found.crash
    if found.log is None:
        yield Item("panic message", "unknown: no log", "", "panic_message", None)
    elif crash.message is None:
        yield Item("panic message", "none in the log", "the log", "panic_message", None)
    else:
        text = log_text(crash.message)
        yield Item("panic message", text, "the log", "panic_message", text)
    if crash.oops is not None and crash.oops != crash.message:
        yield Item("last oops", log_text(crash.oops), "the log", "last_oops", log_text(crash.oops))
    if crash.cpu is not None:
        yield Item("panicking cpu", str(crash.cpu), "the log", "panic_cpu", crash.cpu)
    if crash.pid is not None:
        yield Item("pid", str(crash.pid), "the log", "panic_pid", crash.pid)
    if crash.comm is not None:
        yield Item("comm", log_text(crash.comm), "the log", "panic_comm", log_text(crash.comm))
    yield from _cpu_items(found)


def _cpu_items(found: _Found) -> Iterator[Item]:
    """In a core whose threads are tasks most register notes are of no CPU; its own table knows."""
    cpus, source = sum(map(is_prstatus, found.dump.notes)), "register notes"
    others = sum(elsewhere(found.dump, found.kernel)) if found.kernel else 0
    tasks = noted_tasks(found.dump.notes) or ()
    running = len(list(takewhile(lambda row: row.on_cpu, tasks)))  # those come first
    if running:
        # there are threads of this kernel's CPUs alone
        cpus, others, source = running, 0, "the core's table of tasks"
    if cpus:
        shown = f"{cpus}, {others} of them in another kernel" if others else str(cpus)
        yield Item("cpus", shown, source, "cpus", cpus)


def _paging_items(found: _Found) -> Iterator[Item]:
    offset, phys_base = found.info.kaslr_offset, found.info.number("phys_base")
    if offset is not None:
        source = found.info.source("KERNELOFFSET")
        yield Item("kaslr offset", f"{offset:#x}", source, "kaslr_offset", f"{offset:#x}")
    if phys_base is not None:
        source = found.info.source("NUMBER(phys_base)")
        yield Item("phys_base", f"{phys_base:#x}", source, "phys_base", f"{phys_base:#x}")
    if found.kernel is None:
        return
    placed = found.kernel.request.placed
    if placed is not None:
        yield Item("ram base", placed.shown(), placed.source, "ram_base", placed.shown())
    identity = found.kernel.identity
    levels = len(identity.form.levels)
    source = "a kernel address translates" if identity.verified else "assumed"
    yield Item("page tables", f"{levels} levels", source, "page_table_levels", levels)
    root = next((fact.source for fact in identity.facts if fact.name == "pgt_root"), "")
    shown = f"{identity.pgt_root:#x}"
    yield Item("pgt_root", shown, root, "pgt_root", shown, detail=True)


def _ram_items(dump: Dump, kernel: Kernel) -> Iterator[Item]:
    """What the kernel was told of memory, against what the dump's headers say."""
    told = system_ram(dump, kernel)
    if told is None:
        return
    ranges = [
        [f"{low:#x}", f"{high:#x}"]
        for low, high in zip(told.ranges.start.tolist(), told.ranges.end.tolist(), strict=True)
    ]
    outside = subtract_ranges(told.ranges, dump.memory.declared).total
    shown = f"{told.ranges.total / (1 << 20):.1f} MiB: {shown_ranges(told.ranges)}"
    shown += "" if told.complete else "; its list is damaged"
    shown += f"; {outside:#x} bytes are not in the dump's headers" if outside else ""
    yield Item("system ram", shown, "iomem_resource", "system_ram", ranges, detail=True)


def _task_items(listed: TaskList | str | None) -> Iterator[Item]:
    if isinstance(listed, TaskList):
        count = len(listed.tasks)
        yield Item("tasks", str(count), "the kernel's lists", "tasks", count, detail=True)
    elif listed is not None:
        yield Item("tasks", f"unknown: {printable(listed)}", "", "tasks", None, detail=True)
