"""Knowledge of a kernel and its tasks: what ``-p`` and ``ps`` need besides the interpreter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench import rivals
from bench.report import Figure
from bench.rivals import BenchError
from bench.tasks import TasksSpec, generate_tasks
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.kernel.cpus import is_prstatus
from lab.stripped import hide_sections

KNOWLEDGE_LIMIT_MS = 1000.0
DWARF_LIMIT_MS = 10_000.0
TASKS_LIMIT_MS = 2000.0
MB = 1_000_000


def measure_knowledge(dumps: tuple[Path, ...], slowness: float) -> Iterator[Figure]:
    """CPU time of ``ps`` beyond the interpreter's start: kallsyms, BTF, page tables, tasks, printing."""
    version = partial(rivals.run, rivals.tool("--version"))
    for path in dumps:
        rivals.warm(path)
        start, costs = rivals.interleaved(version, partial(rivals.run, rivals.tool("ps", "-q", str(path))))
        cost = rivals.median(costs)
        cpu = cost.cpu - rivals.median(start).cpu
        raw = {"cpu s here": round(cpu, 3), "peak MB": round(cost.peak_bytes / MB, 1)}
        subject = f"{path.parent.name}/{path.name}"
        yield Figure("knowledge", subject, 1000 * cpu / slowness, "ms", KNOWLEDGE_LIMIT_MS, {}, raw)


def measure_vmlinux(dumps: tuple[Path, ...], work: Path, slowness: float) -> Iterator[Figure]:
    """CPU time of ``vminfo VMLINUX`` beyond the start, without .BTF: DWARF read first, and from the cache."""
    version = partial(rivals.run, rivals.tool("--version"))
    home, copy = work / "cache", work / "vmlinux.debug"
    command = ["env", f"XDG_CACHE_HOME={home}", *rivals.tool("vminfo", "-q", str(copy))]

    def first() -> rivals.Cost:
        shutil.rmtree(home, ignore_errors=True)
        return rivals.run(command)

    for vmlinux in sorted({(path.parent / "vmlinux").resolve() for path in dumps}):
        try:
            hide_sections(vmlinux, copy, ".BTF")
            rivals.warm(copy)
            for name, run, limit in (
                ("first read", first, DWARF_LIMIT_MS),
                ("cached", partial(rivals.run, command), KNOWLEDGE_LIMIT_MS),
            ):
                start, costs = rivals.interleaved(version, run)
                cpu = rivals.median(costs).cpu - rivals.median(start).cpu
                raw = {"cpu s here": round(cpu, 3), "peak MB": round(rivals.median(costs).peak_bytes / MB, 1)}
                facts: dict[str, str | int] = {"bytes": vmlinux.stat().st_size}
                subject = f"{vmlinux.parent.name}, {name}"
                yield Figure("vmlinux", subject, 1000 * cpu / slowness, "ms", limit, facts, raw)
        finally:
            copy.unlink(missing_ok=True)
            shutil.rmtree(home, ignore_errors=True)


def measure_tasks(work: Path, slowness: float) -> Iterator[Figure]:
    """CPU time for 10,000 tasks: of ``ps`` beyond the start, of ``tovelf -p`` beyond ``tovelf``."""
    spec = TasksSpec()
    dump, velf = work / "tasks.elf", work / "tasks.velf"
    tovelf = ("-l", "all", "-q", "-i", str(dump), "-o", str(velf))
    pairs = {
        "ps": (rivals.tool("--version"), rivals.tool("ps", "-q", str(dump))),
        "tovelf -p": (rivals.tool("tovelf", *tovelf), rivals.tool("tovelf", "-p", *tovelf)),
    }
    try:
        generate_tasks(dump, spec)
        rivals.warm(dump)
        for name, (without, with_tasks) in pairs.items():
            base, costs = rivals.interleaved(partial(rivals.run, without), partial(rivals.run, with_tasks))
            cpu = rivals.median(costs).cpu - rivals.median(base).cpu
            facts: dict[str, str | int] = {"tasks": spec.tasks}
            if name != "ps":
                facts["bytes"] = velf.stat().st_size
            raw = {"cpu s here": round(cpu, 3), "peak MB": round(rivals.median(costs).peak_bytes / MB, 1)}
            yield Figure("tasks", name, 1000 * cpu / slowness, "ms", TASKS_LIMIT_MS, facts, raw)
        if _threads(velf) < spec.tasks:
            raise BenchError("not every task became a thread")
    finally:
        for path in (dump, velf):
            path.unlink(missing_ok=True)


def _threads(velf: Path) -> int:
    with InputFile.open(str(velf)) as file:
        return sum(map(is_prstatus, open_dump(file).notes))
