"""Costs are those of the command alone, repetition is fair, failures are not timed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bench.rivals import BenchError, Cost, cp, interleaved, median, run

MB = 1_000_000


def test_peak_is_that_of_the_command_and_not_of_this_process():
    ballast = np.ones(200 * MB, dtype=np.uint8)
    small = run([sys.executable, "-I", "-S", "-c", "pass"])
    large = run([sys.executable, "-I", "-S", "-c", "b = bytearray(b'x') * 100_000_000"])
    assert small.peak_bytes < 60 * MB < 100 * MB < large.peak_bytes < 160 * MB
    assert ballast.all()


def test_cpu_time_is_counted():
    busy = run([sys.executable, "-I", "-S", "-c", "import time\nwhile time.process_time() < 0.2: pass"])
    assert 0.2 <= busy.cpu <= busy.wall * 1.1
    assert busy.cpu == busy.user + busy.system


def test_a_failing_command_is_an_error_with_its_message():
    with pytest.raises(BenchError, match="no luck"):
        run([sys.executable, "-I", "-S", "-c", "raise SystemExit('no luck')"])
    with pytest.raises(BenchError, match="no-such-command"):
        run(["no-such-command"])


def test_cp_copies_and_syncs(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"x" * 10_000)
    run(cp(source, target), sync=target)
    assert target.read_bytes() == source.read_bytes()


def test_each_goes_first_every_other_time():
    order: list[str] = []

    def runner(name):
        def once():
            order.append(name)
            return Cost(1, 1, 1, 1)

        return once

    ours, theirs = interleaved(runner("a"), runner("b"), times=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert len(ours) == len(theirs) == 3


def test_median_is_taken_of_every_figure_by_itself():
    costs = [Cost(1, 9, 5, 30), Cost(2, 8, 4, 10), Cost(3, 7, 6, 20)]
    assert median(costs) == Cost(2, 8, 5, 20)
