"""What is measured and what it is measured against: commands, their costs, and fair repetition."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMES = 5
"""Repetitions; the median of an odd number is one that was really measured."""

_CHILD = Path(__file__).with_name("child.py")
_WARM_CHUNK = 8 << 20


class BenchError(Exception):
    """Something could not be measured; the text is for the user."""


@dataclass(frozen=True)
class Cost:
    """What one run of a command took: seconds, and the most memory it had at once."""

    wall: float
    user: float
    system: float
    peak_bytes: int

    @property
    def cpu(self) -> float:
        """Seconds on a CPU, in the program and in the kernel for it."""
        return self.user + self.system


def tool(*arguments: str) -> list[str]:
    """The command line of kdump-elftool as installed for this interpreter."""
    return [sys.executable, "-m", "kdump_elftool", *arguments]


def cp(source: Path, target: Path) -> list[str]:
    """The rival of tovelf: reads and writes every byte; sharing blocks would be no copy."""
    return ["cp", "--reflink=never", str(source), str(target)]


def run(command: Sequence[str], sync: Path | None = None) -> Cost:
    """Run ``command``; ``sync`` is a file that must be on disk before the clock stops."""
    launcher = [sys.executable, "-I", "-S", str(_CHILD), str(sync or "")]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} could not be run: {done.stderr.strip()}")
    cost = json.loads(done.stdout)
    if cost.pop("exit_code"):
        raise BenchError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return Cost(**cost)


def interleaved(
    first: Callable[[], Cost], second: Callable[[], Cost], times: int = TIMES
) -> tuple[list[Cost], list[Cost]]:
    """Run two things alternately; each goes first every other time, so that drift hits both."""
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    for number in range(times):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            costs[which].append((first, second)[which]())
    return costs


def median(costs: Sequence[Cost]) -> Cost:
    """The median of every figure by itself."""
    return Cost(
        wall=statistics.median(cost.wall for cost in costs),
        user=statistics.median(cost.user for cost in costs),
        system=statistics.median(cost.system for cost in costs),
        peak_bytes=int(statistics.median(cost.peak_bytes for cost in costs)),
    )


def start_cost() -> Cost:
    """The interpreter with everything imported, doing nothing: part of every run of the tool."""
    return median([run(tool("--version")) for _ in range(TIMES)])


def warm(path: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    buffer = bytearray(_WARM_CHUNK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def discard(path: Path) -> None:
    """Remove an output and let the file system finish with it before the next clock starts."""
    path.unlink(missing_ok=True)
    os.sync()
