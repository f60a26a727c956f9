"""How fast this machine is, against the one that the limits in seconds were set on.

A limit in seconds means CPU seconds on the reference machine.  The loop below is what the tool
does most: uint64 columns that are sorted, searched and merged, and plain Python around them.
Its CPU time here, divided by ``REFERENCE_SECONDS``, is how much slower this machine is; measured
CPU times are divided by that.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

REFERENCE_SECONDS = 0.0745
"""CPU time of :func:`workload` on the reference machine: AMD EPYC (Zen 2), Linux 6.18, Python 3.11,
numpy 2."""

TIMES = 5
_COLUMN = 1 << 19
_ROUNDS = 120_000


def workload() -> int:
    """A fixed piece of work; returns a checksum, the same everywhere."""
    words = np.arange(_COLUMN, dtype=np.uint64)
    mixed = (words * np.uint64(0x9E3779B97F4A7C15)) ^ (words >> np.uint64(7))
    order = np.argsort(mixed, kind="stable")
    ranked = mixed[order]
    found = np.searchsorted(ranked, mixed[:: 1 << 3])
    runs = np.flatnonzero(np.diff(ranked) > np.uint64(1 << 45))
    total = int(found.sum()) + len(runs)
    table: dict[int, int] = {}
    for number in range(_ROUNDS):
        key = number * 2654435761 & 0xFFFF
        table[key] = table.get(key, 0) + (key >> 3)
    return (total + sum(table.values())) & 0xFFFFFFFF


def loop_seconds() -> float:
    """Median CPU time of the loop on this machine."""
    workload()
    times = []
    for _ in range(TIMES):
        begin = time.process_time()
        workload()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def slowness(seconds: float) -> float:
    """How much slower than the reference machine one is whose loop took ``seconds``."""
    return seconds / REFERENCE_SECONDS
