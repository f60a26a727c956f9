"""Page selection: classification, topelf against makedumpfile -E, and the conversion in place."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import rivals
from bench.machine import MachineSpec, generate_machine
from bench.report import Figure, spread
from bench.rivals import BenchError, Cost
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.pages import choose_pages
from lab.config import LabError, load_config
from lab.roots import chroot_argv, ensure_root

CLASSIFY_LIMIT_US = 0.7
TOPELF_LIMIT = 3.0
IN_PLACE_LIMIT_MS = 250.0
PAGE_MEMORY_LIMIT = 4.0
MB = 1_000_000


def measure_classify(dumps: tuple[Path, ...], slowness: float) -> Iterator[Figure]:
    """CPU time a page of finding struct page and choosing what ``-l kernel`` keeps, in this process."""
    for path in dumps:
        with InputFile.open(str(path)) as file:
            dump = open_dump(file)
            kernel = open_kernel(dump, KernelRequest())
            times = []
            for _ in range(rivals.TIMES):
                begin = time.process_time()
                chosen, warnings = choose_pages(dump, kernel, "kernel")
                times.append(time.process_time() - begin)
            if chosen is None:
                raise BenchError(f"{path}: {'; '.join(warnings)}")
        pages = sum(chosen.counts.values())
        facts: dict[str, str | int] = {"pages": pages, "dropped": chosen.dropped.total // 4096}
        here_us = 1e6 * statistics.median(times) / pages
        raw = {"cpu us here": round(here_us, 3), "spread %": round(spread(times), 1)}
        yield Figure("classify", _subject(path), here_us / slowness, "us/page", CLASSIFY_LIMIT_US, facts, raw)


def measure_topelf(dumps: tuple[Path, ...], work: Path) -> Iterator[Figure]:
    """``topelf -l kernel`` against ``makedumpfile -d 31 -E`` of each copied /proc/vmcore."""
    try:
        root = ensure_root(load_config(), "sid")
    except LabError as error:
        raise BenchError(str(error)) from error
    for path in dumps:
        if path.name == "vmcore":
            yield _against_makedumpfile(path, root, work)


def _against_makedumpfile(path: Path, root: Path, work: Path) -> Figure:
    pelf, other = work / "lab.pelf", work / "lab.makedumpfile"
    inside = [f"/mnt/in/{path.name}", f"/mnt/out/{other.name}"]
    rival = ["makedumpfile", "-d", "31", "-E", "--message-level", "0", *inside]
    command = chroot_argv(root, rival, {path.parent.resolve(): "/mnt/in", work: "/mnt/out"})
    facts: dict[str, str | int] = {}
    starts: list[Cost] = []

    def topelf() -> Cost:
        # beside each run, since it is as long as the run itself: drift must hit both
        starts.append(rivals.run(rivals.tool("--version")))
        cost = rivals.run(rivals.tool("topelf", "-q", "-i", str(path), "-o", str(pelf)), sync=pelf)
        facts.update({"bytes": pelf.stat().st_size, "bytes on disk": pelf.stat().st_blocks * 512})
        rivals.discard(pelf)
        return cost

    def makedumpfile() -> Cost:
        cost = rivals.run(command, sync=other)
        facts["makedumpfile's bytes"] = other.stat().st_size
        rivals.discard(other)
        return cost

    rivals.warm(path)
    try:
        ours, theirs = rivals.interleaved(topelf, makedumpfile)
    finally:
        pelf.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
    own, their, start = rivals.median(ours), rivals.median(theirs), rivals.median(starts)
    if own.wall <= start.wall:
        raise BenchError("topelf took less than the interpreter's start: too much other work is going on")
    raw = {
        "topelf s": round(own.wall - start.wall, 3), "makedumpfile s": round(their.wall, 3),
        "start s": round(start.wall, 3), "peak MB": round(own.peak_bytes / MB, 1),
        "topelf cpu s": round(own.cpu - start.cpu, 3), "makedumpfile cpu s": round(their.cpu, 3),
    }  # fmt: skip
    ratio = (own.wall - start.wall) / their.wall
    return Figure("topelf", _subject(path), ratio, "x makedumpfile", TOPELF_LIMIT, facts, raw)


def measure_in_place(dumps: tuple[Path, ...], work: Path, slowness: float) -> Iterator[Figure]:
    """CPU time of ``tovelf --in-place`` beyond the interpreter's start, taken back after each run."""
    start = rivals.start_cost()
    copy = work / "lab.in-place"
    for path in dumps:
        try:
            subprocess.run(["cp", "--sparse=always", "--no-preserve=mode", path, copy], check=True)
            costs = []
            for _ in range(rivals.TIMES):
                size = copy.stat().st_size
                costs.append(rivals.run(rivals.tool("tovelf", "-q", "--in-place", "-i", str(copy))))
                facts: dict[str, str | int] = {"bytes added": copy.stat().st_size - size}
                rivals.run(rivals.tool("tovelf", "-q", "--undo", "-i", str(copy)))
        finally:
            copy.unlink(missing_ok=True)
        cost = rivals.median(costs)
        cpu = cost.cpu - start.cpu
        raw = {"cpu s here": round(cpu, 3), "wall s": round(cost.wall - start.wall, 3)}
        yield Figure("in-place", _subject(path), 1000 * cpu / slowness, "ms", IN_PLACE_LIMIT_MS, facts, raw)


def measure_page_memory(work: Path) -> Iterator[Figure]:
    """How much the peak memory of ``topelf -l kernel`` grows with each page of the machine."""
    sizes, peaks, facts = (16, 64), [], {}
    dump, pelf = work / "machine.elf", work / "machine.pelf"
    for gigabytes in sizes:
        spec = MachineSpec(gigabytes)
        try:
            generate_machine(dump, spec)
            costs = [
                rivals.run(rivals.tool("topelf", "-q", "-l", "kernel", "-i", str(dump), "-o", str(pelf)))
                for _ in range(3)
            ]
        finally:
            for path in (dump, pelf):
                path.unlink(missing_ok=True)
        peaks.append(max(cost.peak_bytes for cost in costs))
        facts[f"peak MB at {gigabytes} GB"] = f"{peaks[-1] / MB:.1f}"
    pages = (sizes[1] - sizes[0]) << 18
    slope = (peaks[1] - peaks[0]) / pages
    subject = f"generated, {sizes[0]} and {sizes[1]} GiB"
    yield Figure("page-memory", subject, slope, "bytes/page", PAGE_MEMORY_LIMIT, {**facts})


def _subject(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
