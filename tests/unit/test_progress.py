"""Progress: nothing but silence unless stderr is a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from kdump_elftool.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_elsewhere(capfd, enabled):
    with progress("writing", 100, enabled=enabled) as advance:
        advance(60)
        advance(60)
    assert capfd.readouterr() == ("", "")


def test_nothing_when_switched_off_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("writing", 100, enabled=False) as advance:
        advance(50)
    assert terminal.getvalue() == ""


def test_plain_line_without_rich(monkeypatch):
    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr("kdump_elftool.progress.time.monotonic", lambda: now[0])
    with progress("writing", 200, enabled=True) as advance:
        for _ in range(4):
            now[0] += 1
            advance(50)
    shown = terminal.getvalue()
    assert [share in shown for share in ("25 %", "50 %", "75 %", "100 %")] == [True] * 4
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K"), "the line is gone when the work is done"


def test_an_error_inside_passes_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(KeyError), progress("writing", 200, enabled=True):
        raise KeyError


def test_nothing_to_do_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("writing", 0, enabled=True) as advance:
        advance(0)
