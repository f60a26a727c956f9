"""Flattened dumps: through a pipe in one pass, and opened from a file."""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import rivals
from bench.generate import GIB, DumpSpec, generate
from bench.report import Figure, spread
from bench.rivals import BenchError, Cost
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import OpenOptions

PIPE_LIMIT = 1.6
OPEN_LIMIT_MS = 100.0
MB = 1_000_000
SPEC = DumpSpec(ram_bytes=2 * GIB, zero_share=0.3)
WRITERS = {"makedumpfile": 1 << 16, "QEMU": 1 << 14}
"""How much data is in a record, by who wrote it."""


def flatten(plain: Path, flat: Path, record: int) -> None:
    """The dump as makedumpfile -F would send it."""
    with plain.open("rb") as source, flat.open("wb") as target:
        target.write((b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)).ljust(4096, b"\0"))
        offset = 0
        while data := source.read(record):
            target.write(struct.pack(">qq", offset, len(data)) + data)
            offset += len(data)
        target.write(struct.pack(">qq", -1, -1))


def measure_flattened(work: Path, slowness: float, keep: bool) -> Iterator[Figure]:
    """``cat flat | tovelf -i -`` against saving it first; and opening the file."""
    plain, flat = work / "flattened.elf", work / "flattened.flat"
    users, cache = os.environ.get("XDG_CACHE_HOME"), work / "flattened.cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    try:
        generate(plain, SPEC)
        for writer, record in WRITERS.items():
            flatten(plain, flat, record)
            rivals.warm(flat)
            if writer == "makedumpfile":
                yield _piped(flat, work)
            yield _opened(flat, plain, writer, slowness)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        os.environ.pop("XDG_CACHE_HOME")
        if users is not None:
            os.environ["XDG_CACHE_HOME"] = users
        if not keep:
            for path in (plain, flat):
                rivals.discard(path)


def _piped(flat: Path, work: Path) -> Figure:
    velf, copy = work / "flattened.velf", work / "flattened.copy"
    convert = ["tovelf", "-q", "-l", "all", "-o", str(velf), "-i"]
    one = f"cat {shlex.quote(str(flat))} | {shlex.join(rivals.tool(*convert, '-'))}"
    # what it would take otherwise: it comes through a pipe in any case
    two = f"cat {shlex.quote(str(flat))} | cat >{shlex.quote(str(copy))} && "
    two += shlex.join(rivals.tool(*convert, str(copy)))

    def timed(line: str) -> Cost:
        cost = rivals.run(["sh", "-c", line], sync=velf)
        for path in (velf, copy):
            rivals.discard(path)
        return cost

    ours, theirs = rivals.interleaved(lambda: timed(one), lambda: timed(two))
    own, other = rivals.median(ours), rivals.median(theirs)
    size, spool = flat.stat().st_size, _largest_spool(one)
    velf.unlink(missing_ok=True)
    if spool > size:
        raise BenchError(f"the spool took {spool} bytes for a stream of {size}")
    facts: dict[str, str | int] = {"bytes in the stream": size, "bytes on disk in the spool": spool}
    raw = {
        "pipe s": round(own.wall, 2), "saved first s": round(other.wall, 2), "pipe cpu s": round(own.cpu, 2),
        "saved first cpu s": round(other.cpu, 2), "peak MB": round(own.peak_bytes / MB, 1),
        "pipe spread %": round(spread([cost.wall for cost in ours]), 1),
    }  # fmt: skip
    subject = f"generated, {SPEC.ram_bytes / GIB:g} GiB, flattened"
    facts["x saved first in wall time"] = f"{own.wall / other.wall:.2f}"
    return Figure("pipe", subject, own.cpu / other.cpu, "x saved first", PIPE_LIMIT, facts, raw)


def _largest_spool(line: str) -> int:
    """Most bytes on disk in a file without a name, among those that the command's processes hold open."""
    largest = 0
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.DEVNULL, start_new_session=True) as shell:
        while shell.poll() is None:
            for pid in _group(shell.pid):
                largest = max(largest, _unnamed(pid))
            time.sleep(0.02)
    if shell.returncode or not largest:
        raise BenchError(f"{line}: no spool was seen")
    return largest


def _group(session: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == session:
                    yield int(entry)
            except OSError:
                continue


def _unnamed(pid: int) -> int:
    held = 0
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).endswith(" (deleted)"):
                held += entry.stat().st_blocks * 512
    except OSError:
        pass  # it ended meanwhile
    return held


def _opened(flat: Path, plain: Path, writer: str, slowness: float) -> Figure:
    """CPU time of opening a flattened dump whose records are known from the last time."""
    os.utime(flat, (0, 0))  # a file that has just been written is not remembered
    first = _open(flat)
    times = {path: [_open(path) for _ in range(rivals.TIMES)] for path in (flat, plain)}
    here = statistics.median(times[flat])
    raw = {
        "cpu ms here": round(1000 * here, 2),
        "first time ms here": round(1000 * first, 2),
        "not flattened ms here": round(1000 * statistics.median(times[plain]), 2),
        "spread %": round(spread(times[flat]), 1),
    }
    facts: dict[str, str | int] = {"bytes": flat.stat().st_size, "bytes in a record": WRITERS[writer]}
    subject = f"generated, {SPEC.ram_bytes / GIB:g} GiB, records as of {writer}"
    return Figure("flattened", subject, 1000 * here / slowness, "ms", OPEN_LIMIT_MS, facts, raw)


def _open(path: Path) -> float:
    begin = time.process_time()
    with InputFile.open(str(path)) as file:
        open_dump(file, options=OpenOptions(use_cache=True))
        return time.process_time() - begin
