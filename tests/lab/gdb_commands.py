"""Sourced by gdb: what each of the commands in the file KD_WANTED shows, as JSON into KD_ANSWER."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gdb


def shown(command: str) -> str:
    try:
        return str(gdb.execute(command, to_string=True))
    except gdb.error as error:
        return f"error: {error}"


commands = json.loads(Path(os.environ["KD_WANTED"]).read_text())
Path(os.environ["KD_ANSWER"]).write_text(json.dumps([shown(command) for command in commands]))
