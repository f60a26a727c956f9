"""tovelf of a compressed dump against decompressing it first."""

from __future__ import annotations

import gzip
import shlex
from collections.abc import Iterator
from pathlib import Path

from bench import rivals
from bench.report import Figure, spread
from bench.rivals import BenchError, Cost

GZIP_LIMIT = 1.0
MB = 1_000_000


def measure_gzip(dumps: tuple[Path, ...], work: Path) -> Iterator[Figure]:
    """What topelf and gzip saved in a crash kernel: ``tovelf -i pmcore.gz`` against gunzip and tovelf."""
    packed = [path.with_name("pmcore.gz") for path in dumps if path.with_name("pmcore.gz").exists()]
    for path in packed:
        yield _against_gunzip(path, work)


def _against_gunzip(path: Path, work: Path) -> Figure:
    bare, velf, other = work / "pmcore", work / "gzip.velf", work / "gunzip.velf"
    with gzip.open(path) as file:
        size = file.seek(0, 2)
    rivals.warm(path)

    def whole() -> Cost:
        command = rivals.tool("tovelf", "-l", "all", "-q", "-i", str(path), "-o", str(velf))
        return rivals.run(command, sync=velf)

    def apart() -> Cost:
        tovelf = rivals.tool("tovelf", "-l", "all", "-q", "-i", str(bare), "-o", str(other))
        script = f"gunzip -c {shlex.quote(str(path))} >{shlex.quote(str(bare))} && {shlex.join(tovelf)}"
        cost = rivals.run(["sh", "-c", script], sync=other)
        bare.unlink()
        return cost

    try:
        ours, theirs = rivals.interleaved(whole, apart)
        if velf.read_bytes() != other.read_bytes():
            raise BenchError(f"{path}: another velf than from the bare dump")
    finally:
        for result in (bare, velf, other):
            result.unlink(missing_ok=True)
    own, their = rivals.median(ours), rivals.median(theirs)
    facts: dict[str, str | int] = {
        "bytes": path.stat().st_size,
        "decompressed": size,
        "x in CPU time": f"{own.cpu / their.cpu:.2f}",
    }
    raw = {
        "tovelf s": round(own.wall, 3), "gunzip and tovelf s": round(their.wall, 3),
        "tovelf cpu s": round(own.cpu, 3), "gunzip and tovelf cpu s": round(their.cpu, 3),
        "peak MB": round(own.peak_bytes / MB, 1),
        "tovelf spread %": round(spread([cost.wall for cost in ours]), 1),
    }  # fmt: skip
    subject = f"{path.parent.name}/{path.name}"
    return Figure("gzip", subject, own.wall / their.wall, "x gunzip, tovelf", GZIP_LIMIT, facts, raw)
