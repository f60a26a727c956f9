"""The table of tasks in a core's notes, as long as it may be."""

from __future__ import annotations

import json
from pathlib import Path

from kdump_elftool.elf.notes import HELD_IN_MEMORY, Note
from kdump_elftool.elf.own_notes import OWNER, TYPE_TASKS
from kdump_elftool.elf.task_table import TaskRow, as_json, noted_tasks
from kdump_elftool.files import FileSlice, InputFile

ROW = TaskRow(1, 1, 1, 0, "S", 0, False, "0xffff888000000000", "init")


def test_of_several_the_last() -> None:
    tables = [json.dumps(as_json([ROW] * count)).encode() for count in (1, 2)]
    found = noted_tasks([Note(OWNER, TYPE_TASKS, table) for table in tables])
    assert found == [ROW, ROW]
    assert noted_tasks([]) is None
    assert noted_tasks([Note(OWNER, TYPE_TASKS, b"{}")]) is None


def test_a_large_machines_is_left_in_the_file(tmp_path: Path) -> None:
    rows = [ROW] * 12_000
    table = json.dumps(as_json(rows)).encode()
    assert len(table) > HELD_IN_MEMORY
    path = tmp_path / "core"
    path.write_bytes(b"before" + table)
    with InputFile.open(str(path)) as file:
        assert noted_tasks([Note(OWNER, TYPE_TASKS, FileSlice(file, 6, len(table)))]) == rows
        assert noted_tasks([Note(OWNER, TYPE_TASKS, FileSlice(file, 6, 1 << 40))]) is None
