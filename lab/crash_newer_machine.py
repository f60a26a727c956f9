"""The scenario newer-machine: as machine, by the QEMU of a newer Debian in a tool root, which also
writes its stream as a file with fixed places for the pages.
                     -> qemu.elf, qemu.raw, qemu.stream, qemu.mapped (mapped-ram), registers.txt

QEMU migrates a stopped machine once only, so the stream is loaded into a second one, which never runs,
and that writes the other file. Apart from lab.crash, so that a change here makes the rows of this
scenario anew and no others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from lab.boot import Qmp, Running
from lab.config import BootError, Config, Row, load_config
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, SETTLE_SECONDS, kernel_command_line
from lab.crash_machine import POLL_SECONDS, migrate, save_memory, wait_for_migration
from lab.crash_machine import build_initrd as build_machine_initrd
from lab.crash_newer import INSIDE, SUITE, InRoot
from lab.guest import GuestFiles
from lab.roots import locked_root
from lab.truth import is_complete

SCENARIO = "newer-machine"
SOURCES = ("crash_machine.py", "crash_newer.py", "crash_newer_machine.py")


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a guest that runs normally."""
    return build_machine_initrd(config, row, files)


@dataclass(frozen=True)
class Incoming(InRoot):
    """A machine that takes over the state of another and stays stopped."""

    def inner(self) -> list[str]:
        return [*super().inner(), "-S", "-incoming", "defer"]


def _load_stream(qmp: Qmp) -> None:
    qmp.execute("migrate-incoming", uri="exec:cat qemu.stream")
    end = time.monotonic() + DUMP_SECONDS
    while qmp.execute("query-status")["status"] == "inmigrate":
        if time.monotonic() > end:
            raise BootError("the stream was not loaded in time")
        time.sleep(POLL_SECONDS)


def _save_mapped(machine: Incoming, work: Path) -> None:
    """Writes qemu.mapped; the first machine's console and truth stay what they are."""
    kept = {name: (work / name).read_bytes() for name in ("console.log", "truth.raw")}
    with Running(machine, work) as running:
        running.wait("QEMU's control socket", (work / "qmp.sock").exists, BOOT_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        _load_stream(qmp)
        qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])
        qmp.execute("migrate", uri=f"file:{INSIDE}/qemu.mapped")
        wait_for_migration(qmp, "qemu.mapped")
        qmp.close()
    for name, data in kept.items():
        (work / name).write_bytes(data)


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, stops and saves once; returns QEMU's command line. The work folder holds the initrd."""
    live = replace(row, scenario="live")
    parts = (live, kernel, kernel_command_line(live), None, locked_root(load_config(), SUITE), work)
    machine = InRoot(*parts)
    with Running(machine, work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        time.sleep(SETTLE_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        qmp.execute("stop")
        (work / "registers.txt").write_text(qmp.human("info registers -a").replace("\r", ""))
        save_memory(qmp, row, work, Path(INSIDE))
        migrate(qmp, work / "qemu.stream")
        qmp.close()
    _save_mapped(Incoming(*parts), work)
    return machine.inner()
