"""Symbols for a session: what had to be left out of them is said."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdump_elftool.jobs import frames, gdb_symbols, knowledge, module_symbols
from kdump_elftool.jobs.frames import FrameFile
from kdump_elftool.jobs.gdb_script import Names
from kdump_elftool.jobs.gdb_session import Session
from kdump_elftool.jobs.module_symbols import ModuleSymbols, Refused
from kdump_elftool.kernel.facts import Knowledge

DAMAGED = "the list of modules is damaged: 3 were reached from its two ends"
ADVICE = "pyelftools is not installed"


def test_what_was_left_out_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    """Damage of modules and frames; not once more what the conversion has said of the kernel."""
    refused = (Refused("a b", "a module of that name is given to no debugger"),)
    found = ModuleSymbols((), (), (), refused, (ADVICE, DAMAGED))
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(knowledge, "knowledge", lambda *_: Knowledge((), [ADVICE]))
    monkeypatch.setattr(module_symbols, "module_symbols", lambda *_: found)
    monkeypatch.setattr(
        frames, "frame_file", lambda *_, **__: FrameFile(b"frames", 1, ("2 entries make no sense",))
    )
    (tmp_path / "velf").write_text("")
    session = Session(str(tmp_path / "velf"), None, None, None, False)
    kernel: Any = SimpleNamespace(vmlinux=object())
    made, warnings = gdb_symbols.with_symbols(session, None, [], Names(None), lambda: (None, kernel))
    assert warnings == (
        DAMAGED,
        "module a b: a module of that name is given to no debugger",
        "2 entries make no sense",
    )
    assert len(made.before) == 1
