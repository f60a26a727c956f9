"""``python -m bench.run [NAME...]``: measure, compare with the limits, exit 1 if one is broken.

Run from the repository root with kdump_elftool importable.  Every ratio is taken within one run,
alternating, page cache warm, both sides synced; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bench import rivals
from bench.calibrate import loop_seconds, slowness
from bench.compressed import measure_gzip
from bench.find_kernel import measure_find_kernel
from bench.flattened import measure_flattened
from bench.gdb import measure_backtraces, measure_gdb
from bench.generate import GIB, DumpSpec, generate
from bench.kdump import measure_kdump, measure_large_kdump
from bench.kdump_out import measure_kdump_out
from bench.knowledge import measure_knowledge, measure_tasks, measure_vmlinux
from bench.migration import measure_migration
from bench.mkvmlinux import measure_mkvmlinux
from bench.pages import measure_classify, measure_in_place, measure_page_memory, measure_topelf
from bench.report import Figure, lines, machine_facts, record, spread
from bench.rivals import BenchError, Cost
from bench.segments import measure_segments
from kdump_elftool.arch.walker import Walk, Window, walk
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import architecture
from kdump_elftool.kernel.identity import KernelIdentity, dump_vmcoreinfo, identify
from lab.config import CUT_BY_QEMU

COPY_LIMIT = 1.3
WALK_LIMIT_MS = 50.0
MEMORY_LIMIT_MB = 150.0
MB = 1_000_000
ZERO_SHARES = (0.0, 0.3)
DUMP_NAMES = ("vmcore", "qemu*.elf")
WITHOUT_NOTE = "*.failed-kdump"
"""Rows whose dump has no VMCOREINFO note and two kernels."""


@dataclass(frozen=True)
class Settings:
    """What this run measures and where it may write."""

    work: Path
    dumps: tuple[Path, ...]
    ram_bytes: int
    keep: bool
    slowness: float


def lab_dir() -> Path:
    """The lab's cache, outside of the checkout."""
    chosen = os.environ.get("KDUMP_ELFTOOL_LAB")
    return Path(chosen) if chosen else Path.home() / ".cache" / "kdump-elftool-lab"


def lab_dumps(pattern: str) -> tuple[Path, ...]:
    """The lab's finished dumps (those with a row.json) whose row matches."""
    rows = sorted(path.parent for path in (lab_dir() / "dumps").glob("*/row.json"))
    rows = [row for row in rows if fnmatchcase(row.name, pattern) and not fnmatchcase(row.name, WITHOUT_NOTE)]
    found = (dump for row in rows for name in DUMP_NAMES for dump in sorted(row.glob(name)))
    return tuple(dump for dump in found if (dump.parent.name, dump.name) not in CUT_BY_QEMU)


def measure_tovelf(settings: Settings) -> Iterator[Figure]:
    """tovelf -l all of a large generated dump against cp of the same file."""
    start = rivals.start_cost()
    for share in ZERO_SHARES:
        dump = settings.work / f"zero{share:.0%}.elf".replace("%", "")
        spec = DumpSpec(ram_bytes=settings.ram_bytes, zero_share=share)
        try:
            size = _generated(dump, spec)
            yield _against_cp(dump, size, spec, start)
        finally:
            if not settings.keep:
                rivals.discard(dump)


def _generated(dump: Path, spec: DumpSpec) -> int:
    need = 2 * spec.ram_bytes + GIB
    free = shutil.disk_usage(dump.parent).free + (dump.stat().st_size if dump.exists() else 0)
    if free < need:
        raise BenchError(
            f"{need / GIB:.0f} GiB of disk are needed for dump and copy, {free / GIB:.0f} are free"
        )
    size = generate(dump, spec)
    rivals.warm(dump)
    return size


def _against_cp(dump: Path, size: int, spec: DumpSpec, start: Cost) -> Figure:
    velf, copy = dump.with_suffix(".velf"), dump.with_suffix(".copy")
    facts: dict[str, str | int] = {}

    def tovelf() -> Cost:
        cost = rivals.run(rivals.tool("tovelf", "-l", "all", "-i", str(dump), "-o", str(velf)), sync=velf)
        facts.update(_shape(velf, spec))
        rivals.discard(velf)
        return cost

    def cp() -> Cost:
        cost = rivals.run(rivals.cp(dump, copy), sync=copy)
        if copy.stat().st_size != size:
            raise BenchError("cp made a file of another size")
        rivals.discard(copy)
        return cost

    try:
        ours, theirs = rivals.interleaved(tovelf, cp)
    finally:
        velf.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    own, other = rivals.median(ours), rivals.median(theirs)
    wall, cpu = own.wall - start.wall, own.cpu - start.cpu
    raw = {
        "tovelf s": wall, "cp s": other.wall, "start s": start.wall,
        "tovelf MB/s": size / MB / wall, "cp MB/s": size / MB / other.wall,
        "tovelf cpu s": cpu, "cp cpu s": other.cpu, "peak MB": own.peak_bytes / MB,
        "tovelf spread %": spread([cost.wall for cost in ours]),
        "cp spread %": spread([cost.wall for cost in theirs]),
    }  # fmt: skip
    subject = f"generated, {spec.ram_bytes / GIB:g} GiB, {spec.zero_share:.0%} zero pages"
    facts["x cp in CPU time"] = f"{cpu / other.cpu:.2f}"
    return Figure("tovelf", subject, wall / other.wall, "x cp", COPY_LIMIT, facts, _rounded(raw))


def _shape(velf: Path, spec: DumpSpec) -> dict[str, str | int]:
    """What came out; a result too small to be the whole kernel is not worth timing."""
    status = velf.stat()
    if status.st_size < spec.ram_bytes:
        raise BenchError(f"{status.st_size} bytes came out of {spec.ram_bytes} bytes of RAM")
    with InputFile.open(str(velf)) as file:
        segments = len(open_dump(file).claimed.vaddr)
    return {
        "segments": segments,
        "bytes": status.st_size,
        "bytes on disk": status.st_blocks * 512,
    }


def measure_walk(settings: Settings) -> Iterator[Figure]:
    """The page-table walk alone, in this process, of every lab dump."""
    for path in settings.dumps:
        with InputFile.open(str(path)) as file:
            dump = open_dump(file)
            info = dump_vmcoreinfo(dump)
            if info is None:
                raise BenchError(f"{path} has no VMCOREINFO")
            identity = identify(dump, architecture(dump), info, None)
            found = _walk_once(dump, identity)
            times = []
            for _ in range(rivals.TIMES):
                begin = time.process_time()
                _walk_once(dump, identity)
                times.append(time.process_time() - begin)
        here_ms = 1000 * statistics.median(times)
        facts: dict[str, str | int] = {"tables": found.tables, "mappings": len(found.mappings)}
        raw = _rounded({"cpu ms here": here_ms, "spread %": spread(times)})
        yield Figure("walk", _subject(path), here_ms / settings.slowness, "ms", WALK_LIMIT_MS, facts, raw)


def _walk_once(dump: Dump, identity: KernelIdentity) -> Walk:
    form = identity.form
    aliases = tuple((form.raw(begin), form.raw(end - 1) + 1) for begin, end in identity.arch.alias_ranges)
    return walk(dump.memory, form, identity.pgt_root, Window(form.kernel.start, form.kernel.end, aliases))


def measure_memory(settings: Settings) -> Iterator[Figure]:
    """Peak memory of tovelf -l all of every lab dump, and the shape of what it wrote."""
    velf = settings.work / "lab.velf"
    for path in settings.dumps:
        try:
            command = rivals.tool("tovelf", "-l", "all", "-q", "-i", str(path), "-o", str(velf))
            costs = [rivals.run(command) for _ in range(rivals.TIMES)]
            facts = _shape(velf, DumpSpec(ram_bytes=1))
        finally:
            velf.unlink(missing_ok=True)
        cost = rivals.median(costs)
        peak = max(run.peak_bytes for run in costs) / MB
        raw = _rounded({"wall s": cost.wall, "cpu s": cost.cpu})
        yield Figure("memory", _subject(path), peak, "MB", MEMORY_LIMIT_MB, facts, raw)


def measure_start(settings: Settings) -> Iterator[Figure]:
    """The interpreter and everything imported: kdump-elftool --version."""
    cost = rivals.start_cost()
    raw = _rounded({"wall ms here": 1000 * cost.wall, "peak MB": cost.peak_bytes / MB})
    yield Figure("start", "kdump-elftool --version", 1000 * cost.cpu / settings.slowness, "ms", raw=raw)


def measure_makedyn(settings: Settings) -> Iterator[Figure]:
    """makedyn of one lab kernel's vmlinux, in place: one field of a header is rewritten."""
    kernels = [path.parent / "vmlinux" for path in settings.dumps if (path.parent / "vmlinux").exists()]
    if not kernels:
        return
    copy = settings.work / "vmlinux"
    shutil.copyfile(kernels[0], copy)
    os.sync()
    try:
        costs = []
        for number in range(2 * rivals.TIMES):
            undo = ["--undo"] if number % 2 else []
            costs.append(rivals.run(rivals.tool("makedyn", *undo, str(copy))))
        facts: dict[str, str | int] = {"bytes": copy.stat().st_size}
    finally:
        copy.unlink(missing_ok=True)
    cost = rivals.median(costs[::2])
    raw = _rounded({"wall ms here": 1000 * cost.wall})
    subject = f"vmlinux of {kernels[0].parent.name}"
    yield Figure("makedyn", subject, 1000 * cost.cpu / settings.slowness, "ms", None, facts, raw)


def _subject(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in values.items()}


MEASURES: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    "tovelf": measure_tovelf,
    "walk": measure_walk,
    "memory": measure_memory,
    "start": measure_start,
    "makedyn": measure_makedyn,
    "classify": lambda settings: measure_classify(settings.dumps, settings.slowness),
    "topelf": lambda settings: measure_topelf(settings.dumps, settings.work),
    "kdump-out": lambda settings: measure_kdump_out(settings.dumps, settings.work),
    "gzip": lambda settings: measure_gzip(settings.dumps, settings.work),
    "page-memory": lambda settings: measure_page_memory(settings.work),
    "knowledge": lambda settings: measure_knowledge(settings.dumps, settings.slowness),
    "vmlinux": lambda settings: measure_vmlinux(settings.dumps, settings.work, settings.slowness),
    "tasks": lambda settings: measure_tasks(settings.work, settings.slowness),
    "kdump": lambda settings: measure_kdump(settings.dumps, settings.work),
    "large-kdump": lambda settings: measure_large_kdump(settings.work),
    "flattened": lambda settings: measure_flattened(settings.work, settings.slowness, settings.keep),
    "migration": lambda settings: measure_migration(settings.work, settings.slowness),
    "find-kernel": lambda settings: measure_find_kernel(settings.dumps, settings.slowness),
    "gdb": lambda settings: measure_gdb(settings.dumps, settings.work, settings.slowness),
    "backtraces": lambda settings: measure_backtraces(settings.dumps, settings.work, settings.slowness),
    "mkvmlinux": lambda settings: measure_mkvmlinux(settings.dumps, settings.work, settings.slowness),
    "segments": lambda settings: measure_segments(settings.dumps, settings.work, settings.slowness),
    "in-place": lambda settings: measure_in_place(settings.dumps, settings.work, settings.slowness),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument("--size", type=float, default=6.0, metavar="GB", help="RAM of the generated dumps")
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="which rows of the lab")
    parser.add_argument("--record", action="store_true", help="write bench/report.md and bench/history/")
    parser.add_argument("--keep", action="store_true", help="keep the generated dumps")
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(MEASURES)
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    if args.record and (args.names or args.rows != "*" or args.size < 6):
        parser.error("--record records everything: no NAME, no --rows, at least 6 GB")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure; 1 when a limit is broken or something could not be measured."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind: gigabytes are lying about
    work = lab_dir() / "bench"
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    factor = slowness(loop_seconds())
    load = os.getloadavg()[0]
    ram_bytes = int(args.size * 512) * (GIB // 512)
    settings = Settings(work, lab_dumps(args.rows), ram_bytes, args.keep, factor)
    machine = machine_facts(factor, load)
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    if load > 0.5:
        print(f"warning: other work is going on (load {load:.1f}): figures will be worse", file=sys.stderr)
    if not settings.dumps:
        print("warning: no lab dump: walk, memory and makedyn have nothing to measure", file=sys.stderr)
    figures: list[Figure] = []
    try:
        for name in args.names or MEASURES:
            for figure in MEASURES[name](settings):
                figures.append(figure)
                print(f"measured: {figure.measure} of {figure.subject}", file=sys.stderr)
    except (BenchError, KdumpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join(lines(figures)))
    if args.record:
        for path in record(figures, machine):
            print(f"recorded: {path.name}")
    return 1 if any(figure.is_broken for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
