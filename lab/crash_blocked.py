"""The scenario blocked: tasks wait for locks that others hold; the kernel finds them hanging and panics,
and the machine is dumped from outside.                                                  -> qemu.elf

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab.boot import Machine, Running
from lab.collect import dig_holes
from lab.compile import compiled
from lab.config import LAB_DIR, BootError, Config, Row
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, kernel_command_line
from lab.guest import Cpio, GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.truth import is_complete

SCENARIO = "blocked"
SOURCES = ("blocked-crasher", "blocked.c", "compile.py", "crash_blocked.py")
DUMP = "qemu.elf"


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of every guest, and a second archive that puts blocked-crasher in the place of the crasher."""
    cpio = Cpio()
    cpio.file("sbin/crasher", (LAB_DIR / "blocked-crasher").read_bytes(), 0o755)
    cpio.file("lab/crasher", (files.programs / "crasher").read_bytes(), 0o755)
    program = compiled(LAB_DIR / "blocked.c", row.guest.arch.compiler, files.programs)
    cpio.file("lab/blocked", program, 0o755)
    first = build_common_initrd(config, row, files)
    # the kernel reads archives one behind the other; the later file of a name wins
    return first + b"\0" * (-len(first) % 512) + cpio.finish()


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, panics and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    append = kernel_command_line(replace(row, scenario="panic"))
    with Running(Machine(row, kernel, append, None), work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        running.wait("the end of the panic", lambda: "end Kernel panic" in running.console(), BOOT_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        qmp.execute("stop")
        path = work / DUMP
        qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{path}")
        qmp.close()
        if not path.exists() or path.stat().st_size == 0:
            raise BootError(f"QEMU wrote no {DUMP}")
        dig_holes(path)
        return running.argv
