"""Writing kdump-compressed dumps: topelf --format kdump against makedumpfile, the same codec for both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import rivals
from bench.report import Figure, spread
from bench.rivals import BenchError, Cost
from lab.config import LabError, load_config
from lab.roots import chroot_argv, ensure_root

MB = 1_000_000
OPTIONS = {"zstd": "-z", "zlib": "-c"}
_ROW = "x64-61-l4.kdump"


def measure_kdump_out(dumps: tuple[Path, ...], work: Path) -> Iterator[Figure]:
    """``topelf -l kernel --format kdump`` of one copied /proc/vmcore; no limit is set."""
    paths = [path for path in dumps if (path.parent.name, path.name) == (_ROW, "vmcore")]
    if not paths:
        return
    try:
        root = ensure_root(load_config(), "sid")
    except LabError as error:
        raise BenchError(str(error)) from error
    for codec, option in OPTIONS.items():
        yield _against_makedumpfile(paths[0], root, work, codec, option)


def _against_makedumpfile(path: Path, root: Path, work: Path, codec: str, option: str) -> Figure:
    small, other = work / "lab.kdump", work / "lab.makedumpfile"
    words = ["makedumpfile", "-d", "31", option, "--message-level", "0"]
    rival = [*words, "/mnt/in/vmcore", f"/mnt/out/{other.name}"]
    command = chroot_argv(root, rival, {path.parent.resolve(): "/mnt/in", work: "/mnt/out"})
    ours_argv = rivals.tool(
        "topelf", "-q", "--format", "kdump", "--compress", codec, "-i", str(path), "-o", str(small)
    )
    facts: dict[str, str | int] = {}
    starts: list[Cost] = []

    def topelf() -> Cost:
        # beside each run, since it is nearly as long as the run itself: drift must hit both
        starts.append(rivals.run(rivals.tool("--version")))
        cost = rivals.run(ours_argv, sync=small)
        facts["bytes"] = small.stat().st_size
        rivals.discard(small)
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
        small.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
    own, their, start = rivals.median(ours), rivals.median(theirs), rivals.median(starts)
    raw = {
        "topelf s": round(own.wall - start.wall, 3), "makedumpfile s": round(their.wall, 3),
        "topelf cpu s": round(own.cpu - start.cpu, 3), "makedumpfile cpu s": round(their.cpu, 3),
        "peak MB": round(own.peak_bytes / MB, 1),
        "topelf spread %": round(spread([cost.wall for cost in ours]), 1),
        "makedumpfile spread %": round(spread([cost.wall for cost in theirs]), 1),
    }  # fmt: skip
    ratio = (own.wall - start.wall) / their.wall
    return Figure("kdump-out", f"{_ROW}, {codec}", ratio, "x makedumpfile", None, facts, raw)
