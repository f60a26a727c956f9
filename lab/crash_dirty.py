"""The scenario dirty: a guest is migrated while it runs and rewrites its memory, so that the stream holds
pages more than once; then the machine, stopped for good, is saved in the other ways. By the QEMU of a
newer Debian: that of Debian 12 (7.2) loses writes of emulated CPUs during a migration, so that some pages
of its stream are older than the machine's memory.
                     -> qemu.stream, qemu.elf, qemu.raw, registers.txt, migration.json

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from lab.boot import Qmp, Running
from lab.collect import write_json
from lab.compile import compiled
from lab.config import LAB_DIR, BootError, Config, Row, load_config
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, SETTLE_SECONDS, kernel_command_line
from lab.crash_machine import save_memory, wait_for_file
from lab.crash_newer import INSIDE, SUITE, InRoot
from lab.guest import Cpio, GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.roots import locked_root
from lab.truth import is_complete

SCENARIO = "dirty"
SOURCES = ("compile.py", "crash_dirty.py", "crash_machine.py", "crash_newer.py", "dirty.c")
ROUNDS = 4
"""QEMU goes over the memory this often while the guest runs, before it may stop the guest and finish."""
SLOW_BYTES_PER_SECOND = 32 << 20
SLOW_DOWNTIME_MS = 1
POLL_SECONDS = 0.1


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a guest that runs normally, and a second archive with the writer in the crasher's place."""
    cpio = Cpio()
    cpio.file("sbin/crasher", compiled(LAB_DIR / "dirty.c", row.guest.arch.compiler, files.programs), 0o755)
    cpio.file("lab/crasher", (files.programs / "crasher").read_bytes(), 0o755)
    first = build_common_initrd(config, replace(row, scenario="live"), files)
    # the kernel reads archives one behind the other; the later file of a name wins
    return first + b"\0" * (-len(first) % 512) + cpio.finish()


def migrate_running(qmp: Qmp, path: Path) -> dict[str, int]:
    """Writes the stream of the running machine to `path`: slowly, until QEMU has gone over the memory
    ROUNDS times, then as fast as it can, which lets QEMU stop the machine and finish. Returns QEMU's
    account of the memory it sent."""
    slow = {"max-bandwidth": SLOW_BYTES_PER_SECOND, "downtime-limit": SLOW_DOWNTIME_MS}
    qmp.execute("migrate-set-parameters", **slow)
    qmp.execute("migrate", uri=f"exec:cat >part && mv part {path.name}")
    end, hurried = time.monotonic() + DUMP_SECONDS, False
    while (told := qmp.execute("query-migrate")).get("status") != "completed":
        status, ram = told.get("status"), told.get("ram", {})
        if status in ("failed", "cancelled") or time.monotonic() > end:
            raise BootError(f"migration to {path.name}: {status}")
        if not hurried and ram.get("dirty-sync-count", 0) > ROUNDS:
            if qmp.execute("query-status")["status"] != "running":
                raise BootError("the machine stopped before its memory was sent several times")
            qmp.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 30000})
            hurried = True
        time.sleep(POLL_SECONDS)
    if not hurried:
        raise BootError("the migration ended before the memory was sent several times")
    wait_for_file(path)
    return {name: value for name, value in told["ram"].items() if isinstance(value, int)}


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, migrates and saves once; returns QEMU's command line. The work folder holds the initrd."""
    live = replace(row, scenario="live")
    root = locked_root(load_config(), SUITE)
    machine = InRoot(live, kernel, kernel_command_line(live), None, root, work)
    with Running(machine, work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        time.sleep(SETTLE_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        write_json(work / "migration.json", migrate_running(qmp, work / "qemu.stream"))
        if (status := qmp.execute("query-status")["status"]) != "postmigrate":
            raise BootError(f"after the migration the machine is {status}")
        (work / "registers.txt").write_text(qmp.human("info registers -a").replace("\r", ""))
        save_memory(qmp, row, work, Path(INSIDE))
        qmp.close()
    return machine.inner()
