"""The scenario machine: a running guest is stopped and saved in every way a machine can be.
                     -> qemu.elf, qemu.stream[.gz] (migrate exec:), qemu.raw (pmemsave), registers.txt

qemu.raw begins with the machine's memory, wherever that is. Where QEMU has no dump-guest-memory there is
no qemu.elf.

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from lab.boot import Qmp, Running
from lab.collect import dig_holes
from lab.config import BootError, Config, Row
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, SETTLE_SECONDS, machine_of
from lab.guest import GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.truth import is_complete

SCENARIO = "machine"
SOURCES = ("crash_machine.py",)
POLL_SECONDS = 0.2


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a guest that runs normally."""
    return build_common_initrd(config, replace(row, scenario="live"), files)


def migrate(qmp: Qmp, path: Path) -> None:
    """Writes the machine's stream to `path` and waits for its end; beside it, the same packed by gzip.

    One stream for both: QEMU migrates a stopped machine once only.
    """
    packed = path.with_name(f"{path.name}.gz")
    qmp.execute("migrate", uri=f"exec:tee {path.name} | gzip -1 >part.gz && mv part.gz {packed.name}")
    wait_for_migration(qmp, path.name)
    wait_for_file(packed)


def wait_for_migration(qmp: Qmp, name: str) -> None:
    """Waits for the end of the migration to the file of that name."""
    end = time.monotonic() + DUMP_SECONDS
    while (status := qmp.execute("query-migrate").get("status")) != "completed":
        if status in ("failed", "cancelled") or time.monotonic() > end:
            raise BootError(f"migration to {name}: {status}")
        time.sleep(POLL_SECONDS)


def wait_for_file(path: Path) -> None:
    """A migration is completed before the program that writes the stream down has ended."""
    end = time.monotonic() + DUMP_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise BootError(f"no {path.name} in {DUMP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def save_memory(qmp: Qmp, row: Row, work: Path, inside: Path) -> None:
    """Writes qemu.elf, where QEMU can, and qemu.raw into `work`, which is `inside` for QEMU."""
    arch = row.guest.arch
    if arch.guest_dump:
        qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{inside / 'qemu.elf'}")
        dig_holes(work / "qemu.elf")
    size = qmp.execute("query-memory-size-summary")["base-memory"]
    qmp.execute("pmemsave", val=arch.ram_base, size=size, filename=str(inside / "qemu.raw"))
    dig_holes(work / "qemu.raw")


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, stops and saves once; returns QEMU's command line. The work folder holds the initrd."""
    with Running(machine_of(replace(row, scenario="live"), kernel), work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        time.sleep(SETTLE_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        qmp.execute("stop")
        (work / "registers.txt").write_text(qmp.human("info registers -a").replace("\r", ""))
        save_memory(qmp, row, work, work)
        migrate(qmp, work / "qemu.stream")
        qmp.close()
        return running.argv
