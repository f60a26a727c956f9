"""A kernel that remembers what it was asked: what readers ask is what they say they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

from kdump_elftool.errors import FaultError, KdumpError
from kdump_elftool.plain import (
    backtraces,
    blocked,
    crash_summary,
    files,
    locks,
    memmap,
    module_sections,
    modules,
    pages,
    percpu,
    printk,
    ps,
    task_details,
    tasks,
    user_memory,
    vmas,
    vminfo,
    xarray,
)
from kdump_elftool.plain.pagewalk import form_of
from kdump_elftool.plain.target import Target

Ask = Callable[["RecordingTarget"], object]


class RecordingTarget:
    """Answers as ``target`` does; ``asked`` are the questions, as ``KIND(name)``."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.asked: set[str] = set()

    @property
    def order(self) -> str:
        return self.target.order

    @property
    def word(self) -> int:
        return self.target.word

    def read(self, vaddr: int, size: int, /) -> bytes:
        return self.target.read(vaddr, size)

    def symbol(self, name: str, /) -> int | None:
        return self._answer("SYMBOL", name)

    def offset(self, name: str, /) -> int | None:
        return self._answer("OFFSET", name)

    def size(self, name: str, /) -> int | None:
        return self._answer("SIZE", name)

    def length(self, name: str, /) -> int | None:
        return self._answer("LENGTH", name)

    def number(self, name: str, /) -> int | None:
        return self._answer("NUMBER", name)

    def _answer(self, kind: str, name: str) -> int | None:
        self.asked.add(f"{kind}({name})")
        ask = getattr(self.target, kind.lower(), None)
        return None if ask is None else ask(name)


def every_task(target: RecordingTarget) -> None:
    """Tasks by the lists and one by one."""
    found = tasks.all_tasks(target).tasks
    for task in (*found[:3], *tasks.read_tasks(target).tasks[:3]):
        tasks.read_task(target, task.vaddr)


def every_detail(target: RecordingTarget) -> None:
    """What there is to say of single tasks."""
    for task in tasks.all_tasks(target).tasks[:5]:
        list(task_details.detail_lines(target, task_details.read_details(target, task)))


def every_lock(target: RecordingTarget) -> None:
    """What some tasks wait for, and where the scheduler is."""
    found = tasks.all_tasks(target).tasks
    finder = locks.LockFinder(target, found)
    for task in found[:50]:
        finder.wait(task)
    blocked.scheduler_text(target)


def every_label(target: RecordingTarget) -> None:
    """The summary of a crash, and its CPU."""
    list(crash_summary.summary(target, lambda: "RS"))
    crash_summary.crash_cpu(target)


def every_line(target: RecordingTarget) -> None:
    """All that the vminfo commands print."""
    keys = (*vminfo.BASE, *vminfo.PAGES, *vminfo.THREADS)
    keys = (*keys, *(key for of_arch in vminfo.THREADS_OF.values() for key in of_arch))
    list(vminfo.known_lines(keys, lambda kind, name: getattr(target, kind.lower())(name)))


def every_section(target: RecordingTarget) -> None:
    """Sections, build ids and symbols of the modules."""
    for module in modules.read_modules(target).modules:
        module_sections.read_sections(target, module)
        module_sections.read_build_id(target, module)
        module_sections.symbol_table(target, module)


def every_word(target: RecordingTarget) -> None:
    """The command line of a task, whose tables are nowhere."""
    form = form_of("x86_64 4-level", "<")
    task = target.target.symbol("init_task") or 0
    if form is not None and user_memory.has_memory(target, task):
        user_memory.command_line(target, NoMemory(), form, task)


class NoMemory:
    """Physical memory of which nothing is there."""

    def paddr_of(self, vaddr: int) -> int | None:
        return 0

    def read_physical(self, paddr: int, size: int, /) -> bytes:
        raise FaultError("paddr", paddr, "not there")


def every_page(target: RecordingTarget) -> None:
    """Some frames of each part of memory."""
    array = memmap.find_memmap(target)
    for part in array.parts:
        for pfn in range(part.pfn, part.pfn + min(part.nr_pages, 32)):
            pages.read_page(target, array, pfn)


def of_process(read: Callable[[RecordingTarget, int], object]) -> Ask:
    """What is read of a task."""
    return lambda target: read(target, target.target.symbol("init_task") or 0)


USES: Mapping[ModuleType, Ask] = {
    printk: printk.read_log,
    tasks: every_task,
    ps: lambda target: list(ps.seed_lines(target, tasks.all_tasks(target).tasks)),
    modules: modules.read_modules,
    module_sections: every_section,
    vminfo: every_line,
    backtraces: lambda target: backtraces.lowest_kernel_address(target, has_modules_below=False),
    percpu: percpu.find_percpu,
    crash_summary: every_label,
    task_details: every_detail,
    blocked: every_lock,
    xarray: lambda target: list(xarray.xarray_entries(target, target.target.symbol("root") or 0)),
    files: of_process(lambda target, task: list(files.open_files(target, task))),
    vmas: of_process(lambda target, task: list(vmas.process_vmas(target, task))),
    pages: every_page,
    user_memory: every_word,
}
"""How each reader is used."""
ALSO: Mapping[ModuleType, tuple[ModuleType, ...]] = {
    ps: (tasks,),
    crash_summary: (printk,),
    task_details: (tasks,),
    blocked: (tasks,),
    module_sections: (modules,),
}
"""Readers that the use of another one takes."""


def asked_by(reader: ModuleType, target: Target) -> set[str]:
    """What ``reader`` asks; it may fail for what it is not told."""
    recording = RecordingTarget(target)
    try:
        USES[reader](recording)
    except KdumpError:
        pass
    return recording.asked


def beyond_needs(reader: ModuleType, asked: set[str]) -> set[str]:
    """Those of its questions that ``reader`` does not name in its NEEDS."""
    return asked - {question for each in (reader, *ALSO.get(reader, ())) for question in each.NEEDS}
