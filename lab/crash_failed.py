"""The scenario failed-kdump: the crash kernel boots and then hangs instead of saving anything, and the
machine is dumped from outside: two kernels in one memory, and no VMCOREINFO note.      -> qemu.elf

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
The first kernel does exactly what it does for kdump.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from lab.boot import Machine, Running
from lab.collect import dig_holes
from lab.config import LAB_DIR, BootError, Config, Row
from lab.crash import (
    BOOT_SECONDS,
    DUMP_SECONDS,
    PANIC_BEFORE_TRUTH,
    SETTLE_SECONDS,
    kernel_command_line,
)
from lab.guest import Cpio, GuestFiles, find_program
from lab.guest import build_initrd as build_common_initrd
from lab.truth import is_complete

SCENARIO = "failed-kdump"
DUMP = "qemu.elf"
MARK = "LAB-HANGS"
SOURCES = ("crash_failed.py", "failed-init")


@dataclass(frozen=True)
class WithoutVmcoreinfo(Machine):
    """A machine that the guest can't tell where its VMCOREINFO is, as most are."""

    def argv(self) -> list[str]:
        argv = super().argv()
        at = argv.index("vmcoreinfo")
        assert argv[at - 1] == "-device"
        return argv[: at - 1] + argv[at + 1 :]


def machine_of(row: Row, kernel: Path) -> WithoutVmcoreinfo:
    append = kernel_command_line(replace(row, scenario="kdump"))
    return WithoutVmcoreinfo(row, kernel, append, None)


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a kdump guest, and a second archive that gives the crash kernel another initramfs."""
    crash = Cpio()
    crash.file("init", (LAB_DIR / "failed-init").read_bytes(), 0o755)
    crash.file("bin/busybox", find_program(files.userland, "busybox").read_bytes(), 0o755)
    crash.char_device("dev/console", 5, 1)
    cpio = Cpio()
    cpio.file("lab/crash.img", crash.finish())
    first = build_common_initrd(config, row, files)
    # the kernel reads archives one behind the other; the later file of a name wins
    return first + b"\0" * (-len(first) % 512) + cpio.finish()


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    with Running(machine_of(row, kernel), work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        running.wait("the end of the crash kernel's work", lambda: MARK in running.console(), BOOT_SECONDS)
        time.sleep(SETTLE_SECONDS)
        _dump(running)
        return running.argv


def _dump(running: Running) -> None:
    path = running.work / DUMP
    qmp = running.connect(DUMP_SECONDS)
    qmp.execute("stop")
    (running.work / "registers.txt").write_text(qmp.human("info registers -a").replace("\r\n", "\n"))
    qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{path}")
    qmp.close()
    if not path.exists() or path.stat().st_size == 0:
        raise BootError(f"QEMU wrote no {DUMP}")
    dig_holes(path)
