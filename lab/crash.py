"""The scenarios: how a guest ends, and which files its memory goes to.

kdump  the crash kernel copies /proc/vmcore to a disk                -> vmcore
panic  no crash kernel; the panicked machine is stopped from outside -> qemu.elf, qemu-paging.elf
live   the machine is stopped while it runs normally                 -> qemu.elf, qemu-paging.elf
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.boot import Machine, Running
from lab.collect import dig_holes
from lab.config import BootError, Row
from lab.truth import is_complete

BOOT_SECONDS = 240.0
COPY_SECONDS = 300.0
DUMP_SECONDS = 120.0
DISK_BYTES = 8 << 30
"""More than any vmcore here; the file is cut to the size of /proc/vmcore afterwards."""
SETTLE_SECONDS = 0.5
PANIC_BEFORE_TRUTH = ("LAB-FAILED", "Kernel panic")


def kernel_command_line(row: Row) -> str:
    """panic=-1 makes a crash that does not reach the crash kernel end QEMU at once; panic=0 waits."""
    arch = row.guest.arch
    words = [f"console={arch.console}", f"lab.scenario={row.scenario}", f"lab.port={arch.port}"]
    if row.crashkernel:
        words += [f"crashkernel={row.crashkernel}", "panic=-1"]
    else:
        words.append("panic=0" if row.scenario == "panic" else "panic=-1")
    return " ".join([*words, *row.guest.cmdline.split()])


def machine_of(row: Row, kernel: Path) -> Machine:
    return Machine(row, kernel, kernel_command_line(row), "vmcore" if row.crashkernel else None)


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    machine = machine_of(row, kernel)
    if machine.disk:
        with (work / machine.disk).open("wb") as disk:
            disk.truncate(DISK_BYTES)
    with Running(machine, work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        SCENARIOS[row.scenario](running)
        return running.argv


def _kdump(running: Running) -> None:
    vmcore = running.work / "vmcore"

    def powered_off() -> bool:
        return "LAB-VMCORE " in running.console() and running.process.poll() is not None

    running.wait("the copy of /proc/vmcore", powered_off, COPY_SECONDS)
    match = re.search(r"LAB-VMCORE (\d+)", running.console())
    if match is None:
        raise running.fail("no size of /proc/vmcore on the console")
    size = int(match[1])
    if not 0 < size < DISK_BYTES:
        raise running.fail(f"/proc/vmcore has {size} bytes")
    with vmcore.open("r+b") as file:
        if file.read(4) != b"\x7fELF":
            raise running.fail("the copy of /proc/vmcore is no ELF file")
        file.truncate(size)
    dig_holes(vmcore)


def _panic(running: Running) -> None:
    running.wait("the end of the panic", lambda: "end Kernel panic" in running.console(), BOOT_SECONDS)
    _dump_stopped(running)


def _live(running: Running) -> None:
    time.sleep(SETTLE_SECONDS)  # for the crasher to fall asleep
    _dump_stopped(running)


def _dump_stopped(running: Running) -> None:
    qmp = running.connect(DUMP_SECONDS)
    qmp.execute("stop")
    (running.work / "registers.txt").write_text(qmp.human("info registers -a").replace("\r\n", "\n"))
    for name, paging in (("qemu.elf", False), ("qemu-paging.elf", True)):
        path = running.work / name
        qmp.execute("dump-guest-memory", paging=paging, protocol=f"file:{path}")
        if not path.exists() or path.stat().st_size == 0:
            raise BootError(f"QEMU wrote no {name}")
        dig_holes(path)
    qmp.close()


SCENARIOS: Mapping[str, Callable[[Running], None]] = {"kdump": _kdump, "panic": _panic, "live": _live}
