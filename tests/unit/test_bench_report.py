"""Verdicts, tables and the recorded files."""

from __future__ import annotations

import json

import pytest

from bench import report
from bench.calibrate import REFERENCE_SECONDS, slowness, workload
from bench.report import Figure, as_json, lines, machine_facts, markdown, spread
from bench.run import parse

MACHINE = {"CPU": "Abacus 3000", "cores": "2"}
WHEN = "2026-01-02T03:04:05Z"


def ratio(value, limit=1.3):
    return Figure("tovelf", "a dump", value, "x cp", limit, {"segments": 12}, {"tovelf s": 3.25})


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [(1.3, 1.3, "ok"), (1.301, 1.3, "BROKEN"), (9.0, None, "info"), (float("nan"), 1.3, "BROKEN")],
)
def test_verdict(value, limit, verdict):
    figure = ratio(value, limit)
    assert figure.verdict == verdict
    assert figure.is_broken == (verdict == "BROKEN")


def test_screen_shows_the_raw_figures_and_the_report_does_not():
    figures = [ratio(1.25), ratio(1.5)]
    shown = "\n".join(lines(figures))
    text = markdown(figures, MACHINE, WHEN)
    for part in ("1.250 x cp", "1.3 x cp", "ok", "BROKEN", "12 segments"):
        assert part in shown
        assert part in text
    assert "tovelf s 3.25" in shown
    assert "3.25" not in text
    assert "Measured 2026-01-02 on: CPU Abacus 3000; cores 2." in text


def test_history_holds_everything():
    run = json.loads(as_json([ratio(1.25)], MACHINE, WHEN))
    assert run["schema"] == report.SCHEMA
    assert run["machine"] == MACHINE
    (figure,) = run["figures"]
    assert figure["value"] == 1.25
    assert figure["verdict"] == "ok"
    assert figure["raw"] == {"tovelf s": 3.25}


def test_record_writes_report_and_history(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REPORT", tmp_path / "report.md")
    monkeypatch.setattr(report, "HISTORY", tmp_path / "history")
    paths = report.record([ratio(1.0)], MACHINE)
    assert [path.parent for path in paths] == [tmp_path, tmp_path / "history"]
    assert "1.000 x cp" in paths[0].read_text(encoding="utf-8")
    assert json.loads(paths[1].read_text(encoding="utf-8"))["figures"]


def test_machine_facts_name_no_machine():
    import socket

    facts = machine_facts(1.0, 0.25)
    assert facts["calibration loop"] == "1.00 x the reference's time"
    assert facts["other work"] == "load 0.2 before the start"
    assert socket.gethostname() not in " ".join(facts.values()).split()


def test_spread():
    assert spread([1.0, 1.0, 1.2]) == 10.0


def test_calibration_does_the_same_work_everywhere():
    assert workload() == 495001655
    assert slowness(2 * REFERENCE_SECONDS) == 2.0


@pytest.mark.parametrize("argv", [["--record", "walk"], ["--record", "--size", "1"], ["nonsense"]])
def test_partial_runs_are_not_recorded(argv):
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2
