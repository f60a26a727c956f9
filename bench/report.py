"""Figures, their limits, and how they are shown: on the screen, in report.md, in history/*.json."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REPORT = HERE / "report.md"
HISTORY = HERE / "history"
SCHEMA = "kdump-elftool/bench/1"

_HEAD = """\
# Measured

Written by `python -m bench.run --record`; what is measured, and how, is in docs/performance.md.
"""


@dataclass(frozen=True)
class Figure:
    """One measured value.  Without a limit it is for information.

    ``facts`` mean the same on every machine and go into the report; ``raw`` (seconds, MB/s) are of
    this run only.
    """

    measure: str
    subject: str
    value: float
    unit: str
    limit: float | None = None
    facts: Mapping[str, str | int] = field(default_factory=dict)
    raw: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_broken(self) -> bool:
        """True when there is a limit and the value is above it."""
        return self.limit is not None and not self.value <= self.limit

    @property
    def verdict(self) -> str:
        """One word for the table."""
        if self.limit is None:
            return "info"
        return "BROKEN" if self.is_broken else "ok"

    def cells(self) -> tuple[str, ...]:
        """The machine-independent columns."""
        value = f"{self.value:.{_digits(self.unit)}f} {self.unit}"
        limit = "" if self.limit is None else f"{self.limit:g} {self.unit}"
        facts = ", ".join(f"{fact} {key}" for key, fact in self.facts.items())
        return self.measure, self.subject, value, limit, self.verdict, facts

    def raw_text(self) -> str:
        """This run's own figures."""
        return ", ".join(f"{key} {value:g}" for key, value in self.raw.items())


TITLES = ("measure", "of", "value", "limit", "verdict", "with")


def _digits(unit: str) -> int:
    return 3 if unit == "x cp" else 1


def lines(figures: Sequence[Figure]) -> list[str]:
    """The table for the screen: machine-independent columns, and this run's figures below each."""
    table = [TITLES, *(figure.cells() for figure in figures)]
    widths = [max(len(row[at]) for row in table) for at in range(len(TITLES))]
    out = [_aligned(TITLES, widths)]
    for figure in figures:
        out.append(_aligned(figure.cells(), widths))
        if figure.raw:
            out.append(f"    {figure.raw_text()}")
    return out


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def markdown(figures: Sequence[Figure], machine: Mapping[str, str], when: str) -> str:
    """The recorded report: no seconds, no names of machines."""
    rows = ["| " + " | ".join(TITLES) + " |", "|" + " --- |" * len(TITLES)]
    rows += [
        "| " + " | ".join(cell.replace("|", "/") for cell in figure.cells()) + " |" for figure in figures
    ]
    facts = "; ".join(f"{key} {value}" for key, value in machine.items())
    return f"{_HEAD}\n" + "\n".join(rows) + f"\n\nMeasured {when[:10]} on: {facts}.\n"


def as_json(figures: Sequence[Figure], machine: Mapping[str, str], when: str) -> str:
    """One run for history/."""
    entries = [
        {
            "measure": figure.measure,
            "subject": figure.subject,
            "value": round(figure.value, 4),
            "unit": figure.unit,
            "limit": figure.limit,
            "verdict": figure.verdict,
            "facts": dict(figure.facts),
            "raw": dict(figure.raw),
        }
        for figure in figures
    ]
    run = {"schema": SCHEMA, "measured": when, "machine": dict(machine), "figures": entries}
    return json.dumps(run, indent=1) + "\n"


def record(figures: Sequence[Figure], machine: Mapping[str, str]) -> list[Path]:
    """Write report.md and this day's file in history/."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = HISTORY / f"{when[:10]}.json"
    HISTORY.mkdir(exist_ok=True)
    REPORT.write_text(markdown(figures, machine, when), encoding="utf-8")
    history.write_text(as_json(figures, machine, when), encoding="utf-8")
    return [REPORT, history]


def machine_facts(slowness: float, load: float) -> dict[str, str]:
    """What a reader needs to judge the figures; nothing that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "Linux": platform.release().split("-")[0],
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "calibration loop": f"{slowness:.2f} x the reference's time",
        "other work": f"load {load:.1f} before the start",
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass  # not Linux's /proc: the architecture has to do
    return platform.machine()


def spread(values: Sequence[float]) -> float:
    """Half the distance between smallest and largest, as a share of the median, in percent."""
    return round(50 * (max(values) - min(values)) / statistics.median(values), 1)
