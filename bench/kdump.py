"""kdump-compressed dumps: tovelf against a bare loop of the same codecs over the same pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bench import rivals
from bench.generate import GIB, DumpSpec, generate
from bench.report import Figure, spread
from bench.rivals import BenchError, Cost
from lab.config import LabError, load_config
from lab.roots import ensure_root, run_in_root

KDUMP_LIMIT = 1.3
MB = 1_000_000
LARGE = DumpSpec(ram_bytes=8 * GIB, zero_share=0.3, random_words=192)
LARGE_TIMES = 3
CODECS = {"zlib": "-c", "LZO": "-l", "zstd": "-z"}
_ROW = "x64-61-l4.kdump"
_BARE = Path(__file__).with_name("bare_codecs.py")


def measure_kdump(dumps: tuple[Path, ...], work: Path) -> Iterator[Figure]:
    """``tovelf -l all`` of what makedumpfile makes of one dump, all of its pages kept."""
    paths = [path for path in dumps if (path.parent.name, path.name) == (_ROW, "vmcore")]
    if not paths:
        return
    try:
        root = ensure_root(load_config(), "sid")
    except LabError as error:
        raise BenchError(str(error)) from error
    start = rivals.start_cost()
    bare_start = rivals.median([rivals.run([sys.executable, str(_BARE)]) for _ in range(rivals.TIMES)])
    for codec, option in CODECS.items():
        dump = work / f"lab.{codec}"
        binds = {paths[0].parent.resolve(): "/mnt/in", work: "/mnt/out"}
        words = ["makedumpfile", "--message-level", "0", option, "-d", "0"]
        try:
            done = run_in_root(root, [*words, "/mnt/in/vmcore", f"/mnt/out/{dump.name}"], binds=binds)
            if done.returncode:
                raise BenchError(f"makedumpfile failed: {done.stdout}{done.stderr}")
            yield _against_bare_loop(dump, f"{_ROW}, {codec}", start, bare_start)
        finally:
            dump.unlink(missing_ok=True)


def measure_large_kdump(work: Path) -> Iterator[Figure]:
    """The same of a generated dump that our own writer packed: more than the caches of a processor hold."""
    start = rivals.start_cost()
    bare_start = rivals.median([rivals.run([sys.executable, str(_BARE)]) for _ in range(rivals.TIMES)])
    plain, dump = work / "large.elf", work / "large.zlib"
    try:
        generate(plain, LARGE)
        words = ("-l", "all", "--format", "kdump", "--compress", "zlib")
        rivals.run(rivals.tool("topelf", "-q", *words, "-i", str(plain), "-o", str(dump)), sync=dump)
        rivals.discard(plain)
        subject = f"generated, {LARGE.ram_bytes / GIB:g} GiB, zlib"
        yield _against_bare_loop(dump, subject, start, bare_start, LARGE_TIMES)
    finally:
        for path in (plain, dump):
            rivals.discard(path)


def _against_bare_loop(
    dump: Path, subject: str, start: Cost, bare_start: Cost, times: int = rivals.TIMES
) -> Figure:
    velf, pages = dump.with_suffix(".velf"), dump.with_suffix(".pages")
    facts: dict[str, str | int] = {"bytes": dump.stat().st_size}

    def tovelf() -> Cost:
        cost = rivals.run(
            rivals.tool("tovelf", "-q", "-l", "all", "-i", str(dump), "-o", str(velf)), sync=velf
        )
        facts["velf bytes"] = velf.stat().st_size
        rivals.discard(velf)
        return cost

    def bare() -> Cost:
        cost = rivals.run([sys.executable, str(_BARE), str(dump), str(pages)], sync=pages)
        facts["page bytes"] = pages.stat().st_size
        rivals.discard(pages)
        return cost

    rivals.warm(dump)
    try:
        ours, theirs = rivals.interleaved(tovelf, bare, times)
    finally:
        velf.unlink(missing_ok=True)
        pages.unlink(missing_ok=True)
    own, their = rivals.median(ours), rivals.median(theirs)
    cpu, bare_cpu = own.cpu - start.cpu, their.cpu - bare_start.cpu
    facts["x bare loop in wall time"] = f"{(own.wall - start.wall) / (their.wall - bare_start.wall):.2f}"
    raw = {
        "tovelf cpu s": round(cpu, 3), "bare loop cpu s": round(bare_cpu, 3),
        "peak MB": round(own.peak_bytes / MB, 1),
        "tovelf spread %": round(spread([cost.cpu for cost in ours]), 1),
        "bare loop spread %": round(spread([cost.cpu for cost in theirs]), 1),
    }  # fmt: skip
    return Figure("kdump", subject, cpu / bare_cpu, "x bare loop", KDUMP_LIMIT, facts, raw)
