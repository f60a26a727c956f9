"""The scenario formats: a guest that has panicked and stopped, dumped by QEMU in each of its formats.
                                                     -> qemu.elf, qemu.kdump-zlib, -lzo, -snappy, ...

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab.boot import Qmp, Running
from lab.collect import dig_holes
from lab.config import BootError, Config, Row
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, machine_of
from lab.guest import GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.truth import is_complete

SCENARIO = "formats"
SOURCES = ("crash_formats.py",)
UNWANTED = ("win-dmp",)


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a guest that panics without a crash kernel."""
    return build_common_initrd(config, replace(row, scenario="panic"), files)


def dump_in_each_format(qmp: Qmp, work: Path, inside: Path) -> None:
    """Writes qemu.FORMAT into `work`, which is `inside` for QEMU."""
    for name in qmp.execute("query-dump-guest-memory-capability")["formats"]:
        if name not in UNWANTED:
            path = work / f"qemu.{name}"
            protocol = f"file:{inside / path.name}"
            qmp.execute("dump-guest-memory", paging=False, protocol=protocol, format=name)
            if not path.exists() or path.stat().st_size == 0:
                raise BootError(f"QEMU wrote no {path.name}")
            dig_holes(path)


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    with Running(machine_of(replace(row, scenario="panic"), kernel), work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        running.wait("the end of the panic", lambda: "end Kernel panic" in running.console(), BOOT_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        qmp.execute("stop")
        dump_in_each_format(qmp, work, work)
        qmp.close()
        return running.argv
