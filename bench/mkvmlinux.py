"""A vmlinux out of a dump: making it, and what gdb takes to show a backtrace and a large type with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import rivals
from bench.gdb import check, panicked
from bench.report import Figure
from bench.rivals import Cost

LIMITS = {"x64-61-": 2.5, "x64-7x-": 4.0}
"""CPU seconds of ``mkvmlinux`` by the names of guests; docs/performance.md has their kernels' sizes."""
MEMORY_LIMIT_MB = 300.0
GDB_LIMIT = 1.0
"""CPU seconds of gdb's start, the backtraces of all CPUs and ``ptype /o struct task_struct`` together."""
MB = 1_000_000


def measure_mkvmlinux(dumps: tuple[Path, ...], work: Path, slowness: float) -> Iterator[Figure]:
    """One dump of each kernel that panicked."""
    of_kernel = {vmlinux: path for path, vmlinux in reversed(list(panicked(dumps)))}
    made, velf = work / "vmlinux.dump", work / "mkvmlinux.velf"
    for path in sorted(of_kernel.values()):
        try:
            yield from _of_dump(path, made, velf, slowness)
        finally:
            for file in (made, velf):
                file.unlink(missing_ok=True)


def _of_dump(path: Path, made: Path, velf: Path, slowness: float) -> Iterator[Figure]:
    subject = f"{path.parent.name}/{path.name}"
    rivals.warm(path)
    make = rivals.tool("mkvmlinux", "-q", str(path), "-o", str(made))
    costs = [rivals.run(make) for _ in range(rivals.TIMES)]
    facts: dict[str, str | int] = {"bytes": made.stat().st_size}
    limit = next((limit for name, limit in LIMITS.items() if subject.startswith(name)), None)
    cost = rivals.median(costs)
    yield Figure("mkvmlinux", subject, cost.cpu / slowness, "s", limit, facts, _raw(cost))
    peak = max(run.peak_bytes for run in costs) / MB
    yield Figure("mkvmlinux memory", subject, peak, "MB", MEMORY_LIMIT_MB, {}, _raw(cost))
    rivals.run(rivals.tool("tovelf", "-q", "-i", str(path), "-o", str(velf)))
    commands = (
        f"core-file {velf}",
        f"symbol-file {made}",
        "thread apply all backtrace",
        "ptype /o struct task_struct",
    )
    gdb = ["gdb", "-nx", "-nh", "-batch", "-iex", "set debuginfod enabled off"]
    gdb += [word for command in commands for word in ("-ex", command)]
    check(gdb)
    check(gdb, "total size (bytes):")
    cost = rivals.median([rivals.run(gdb) for _ in range(rivals.TIMES)])
    yield Figure("gdb, made vmlinux", subject, cost.cpu / slowness, "s", GDB_LIMIT, {}, _raw(cost))


def _raw(cost: Cost) -> dict[str, float]:
    raw = {"cpu s": cost.cpu, "wall s": cost.wall, "peak MB": cost.peak_bytes / MB}
    return {name: float(f"{value:.4g}") for name, value in raw.items()}
