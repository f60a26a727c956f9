"""QEMU migration streams: finding every page of one in a single pass."""

from __future__ import annotations

import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from bench import rivals
from bench.report import Figure, spread
from bench.rivals import BenchError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump

DD_LIMIT = 2.0
PAGE_LIMIT_US = 0.3
SEED = 20261129
PAGE = 4096
_ZERO, _DATA, _EOS, _CONTINUE = 0x02, 0x08, 0x10, 0x20
_READ = 1 << 20
_BLOCK = b"\6pc.ram"


def _at_random(share: float) -> tuple[int, Callable[[int], bool]]:
    random = Random(SEED)
    return 1 << 18, [random.random() < share for _ in range(1 << 18)].__getitem__


STREAMS: dict[str, tuple[int, Callable[[int], bool]]] = {
    "data pages": (1 << 18, lambda _number: False),
    "zero pages": (1 << 22, lambda _number: True),
    "data and zero pages by turns": (1 << 18, lambda number: number % 2 == 1),
    "a quarter zero pages, at random": _at_random(0.25),
    "half zero pages, at random": _at_random(0.5),
    "2 % data pages, at random": _at_random(0.98),
}
"""Pages in a stream, and which of them are zeros; data does not compress."""


def generate_stream(path: Path, pages: int, is_zero: Callable[[int], bool]) -> None:
    """A stopped pc guest's stream; the data does not compress."""
    machine = b"pc-i440fx-7.2"
    data = os.urandom(PAGE)
    with path.open("wb") as out:
        out.write(b"QEVM" + struct.pack(">IBI", 3, 7, len(machine)) + machine)
        out.write(b"\1\0\0\0\2\3ram" + struct.pack(">II", 0, 4))
        out.write(struct.pack(">Q", pages * PAGE | 4) + _BLOCK + struct.pack(">QQ", pages * PAGE, _EOS))
        out.write(b"\3\0\0\0\2")
        for number in range(pages):
            kind, body = (_ZERO, b"\0") if is_zero(number) else (_DATA, data)
            named = (_CONTINUE, b"") if number else (0, _BLOCK)
            out.write(struct.pack(">Q", number * PAGE | kind | named[0]) + named[1] + body)
        out.write(struct.pack(">Q", _EOS))


def measure_migration(work: Path, slowness: float) -> Iterator[Figure]:
    """Against ``dd`` of a stream of data, per page of zeros, and both limits together where both are sent."""
    path = work / "migration.stream"
    try:
        for kind, (pages, is_zero) in STREAMS.items():
            generate_stream(path, pages, is_zero)
            rivals.warm(path)
            yield _figure(path, kind, pages, sum(map(is_zero, range(pages))), slowness)
    finally:
        rivals.discard(path)


def _figure(path: Path, kind: str, pages: int, zeros: int, slowness: float) -> Figure:
    """Twice the time of ``dd`` is allowed for the stream, and so much for each page of zeros."""
    dd = ["dd", f"if={path}", "of=/dev/null", f"bs={_READ}"]
    ours, reading, theirs = [], [], []
    for _ in range(rivals.TIMES):
        theirs.append(rivals.run(dd).cpu)
        reading.append(_read(path))
        ours.append(_open(path))
    own, read, other = map(statistics.median, (ours, reading, theirs))
    beyond = 1e6 * (own - read) / pages
    facts: dict[str, str | int] = {"pages": pages, "of zeros": zeros, "bytes": path.stat().st_size}
    raw = {"cpu s": round(own, 3), "dd cpu s": round(other, 3), "spread %": round(spread(ours), 1)}
    raw["us a page beyond reading, here"] = round(beyond, 3)
    if zeros == pages:
        return Figure("migration-page", kind, max(beyond, 0) / slowness, "us", PAGE_LIMIT_US, facts, raw)
    if not zeros:
        return Figure("migration", kind, own / other, "x dd", DD_LIMIT, facts, raw)
    allowed = DD_LIMIT * other + 1e-6 * PAGE_LIMIT_US * zeros * slowness
    return Figure("migration-mixed", kind, own / allowed, "x both limits", 1.0, facts, raw)


def _read(path: Path) -> float:
    """CPU time of reading the file in the same pieces as the tool does, and doing nothing with them."""
    begin = time.process_time()
    with InputFile.open(str(path)) as file:
        for at in range(0, file.size, 4 << 20):
            file.read_at(at, 4 << 20)
    return time.process_time() - begin


def _open(path: Path) -> float:
    begin = time.process_time()
    with InputFile.open(str(path)) as file:
        dump = open_dump(file)
    took = time.process_time() - begin
    if dump.lost:  # that it has no devices, and so no CPUs, is a warning
        raise BenchError("a whole stream has been read in part")
    return took
