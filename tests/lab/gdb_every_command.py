"""Sourced by gdb, where our commands are loaded: what each of those in the file KD_WANTED shows, and which
commands there are, as JSON into KD_ANSWER: {"names": [...], "shown": [[output, error]...]}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import gdb

from kdump_elftool.gdbside.loader import COMMANDS


def shown(command: str) -> tuple[str, str]:
    try:
        return str(gdb.execute(command, to_string=True)), ""
    except gdb.error as error:
        return "", str(error)


wanted = json.loads(Path(os.environ["KD_WANTED"]).read_text())
answer = {"names": [each.NAME for each in COMMANDS], "shown": [shown(command) for command in wanted]}
Path(os.environ["KD_ANSWER"]).write_text(json.dumps(answer))
