"""What gdb shows of a core: frames by thread, and what each of several commands prints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tests.lab.dumps import GDB, GDB_MULTIARCH, HERE, gdb, kdump_elftool

KERNEL_HALF = 1 << 63
"""Of 64-bit machines."""


def gdbinit() -> Path:
    """What users are told to source."""
    done = kdump_elftool("gdbinit")
    assert (done.returncode, done.stderr) == (0, "")
    return Path(done.stdout.strip())


def stacks_in_gdb(
    core: Path, scratch: Path, *commands: str, program: str = GDB
) -> tuple[dict[int, list[int]], str]:
    """Return addresses of each thread's frames after these commands, and what those print."""
    answer = scratch / "stacks.json"
    answer.unlink(missing_ok=True)
    shown = gdb(
        "set width 0",
        f"core-file {core}",
        *commands,
        f"source {HERE / 'gdb_stacks.py'}",
        program=program,
        KD_ANSWER=str(answer),
    )
    assert answer.exists(), shown.stdout[-2000:] + shown.stderr[-2000:]
    assert "warning" not in shown.stderr.lower(), shown.stderr[-2000:]
    return {int(lwp): frames for lwp, frames in json.loads(answer.read_text()).items()}, shown.stdout


def kernel_part(frames: list[int]) -> list[int]:
    """Up to the first address outside of the kernel half."""
    return frames[: next((at for at, pc in enumerate(frames) if pc < KERNEL_HALF), len(frames))]


def by_thread(shown: str) -> dict[int, str]:
    """What ``thread apply all bt`` prints of each."""
    parts = re.split(r"^Thread \d+ \(.*?LWP (-?\d+).*$", shown, flags=re.M)
    return dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))


def shown_in_gdb(
    core: Path,
    commands: Sequence[str],
    *before: str,
    program: str = GDB_MULTIARCH,
    never: str = "Traceback|Error|Exception|not known|unknown",
    **environment: str,
) -> dict[str, str]:
    """What each command prints, in one gdb with kdump_gdbinit; standard error says nothing of ``never``."""
    marked = [each for number, command in enumerate(commands) for each in (rf"echo \n@{number}@\n", command)]
    start = ("set width 0", "set python print-stack full", f"core-file {core}", *before)
    done = gdb(*start, f"source {gdbinit()}", *marked, program=program, **environment)
    assert not re.search(never, done.stderr, re.M), done.stderr[-2000:]
    parts = re.split(r"\n@\d+@\n", done.stdout)[1:]
    return dict(zip(commands, parts, strict=True))
