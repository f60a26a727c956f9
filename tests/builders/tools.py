"""Run the tools that judge what the package writes: readelf, gdb, and the package in a process."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

READELF = shutil.which("readelf")
GDB = shutil.which("gdb")


def readelf_complaints(path: Path | str) -> list[str]:
    """What ``readelf -lnW`` has to say against the file (nothing is good)."""
    if READELF is None:
        pytest.skip("readelf is not installed")
    run = subprocess.run([READELF, "-hlnW", str(path)], capture_output=True, text=True, errors="replace")
    lines = [*run.stderr.splitlines(), *run.stdout.splitlines()]
    bad = [line for line in lines if re.search(r"readelf: (Warning|Error)|<corrupt|out of range", line)]
    return bad + ([f"exit code {run.returncode}"] if run.returncode else [])


def gdb_batch(commands: Sequence[str], timeout: int = 60) -> str:
    """gdb's output for these commands, nothing read from the user's files."""
    assert GDB is not None, "a test that calls gdb must carry the marker gdb"
    argv = [GDB, "-nx", "-batch", "-ex", "set confirm off"]
    for command in commands:
        argv += ["-ex", command]
    run = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=timeout)
    return run.stdout + run.stderr


def command(*argv: str) -> list[str]:
    """The command line of ``kdump-elftool`` in a process of its own, with this Python."""
    return [sys.executable, "-m", "kdump_elftool", *argv]


def run_command(
    *argv: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None, timeout: int = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run ``kdump-elftool`` and catch its streams."""
    return subprocess.run(
        command(*argv), input=stdin, capture_output=True, timeout=timeout, env=dict(env) if env else None
    )
