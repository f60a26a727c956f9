"""Commands that walk, in a real gdb, on what a hostile machine may have left: its names are escaped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import kdump_elftool
from tests.builders.tools import gdb_batch

pytestmark = pytest.mark.gdb

HERE = Path(__file__).parent
FOLDERS = [HERE.parents[1], Path(kdump_elftool.__file__).parents[1]]
SHOWN = "\\x1b]0;own\\x07\\x0d\\x0a\"quote'; shell id\\x0a\\xff\\x9b31m\\\\"
"""EVIL of plain_world.py, escaped."""


def shown(monkeypatch, *commands: str) -> str:
    monkeypatch.setenv("KD_FOLDERS", os.pathsep.join(map(str, FOLDERS)))
    monkeypatch.setenv("KD_WANTED", json.dumps(commands))
    text = gdb_batch(["set width 0", "set python print-stack full", f"source {HERE / 'plain_world.py'}"])
    assert "Traceback" not in text, text
    assert all(char.isascii() and (char.isprintable() or char == "\n") for char in text)
    return text


def test_names_of_files_and_tasks_are_escaped(monkeypatch):
    lines = shown(monkeypatch, "kd-files {task}", "kd-vmas {task}").splitlines()
    comm = 'task 7 \\x1b]0;own\\x07\\x0d\\x0a"quote'
    assert lines.count(comm) == 2
    assert sum(line.endswith(f" REG  /usr/bin/{SHOWN}") for line in lines) == 1
    assert sum(line.endswith(f" r--p 00000000 /usr/bin/{SHOWN}") for line in lines) == 1
    assert any(line.split()[1:] == ["0x0000000000001230", "0x0000000000000000", "?", "?"] for line in lines)
    assert not any(line.startswith("uid=") for line in lines)


def test_a_damaged_list_is_shown_up_to_there(monkeypatch):
    lines = shown(monkeypatch, "kd-list {head}").splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("stopped after 3 nodes: the list is damaged: ")
