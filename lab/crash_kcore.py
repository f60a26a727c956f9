"""The scenario kcore: a guest runs our program on the /proc/kcore of its own kernel and writes what came of
it to a disk; then the machine, which still runs, is stopped and saved by QEMU, so that both can be compared.
                                                        -> live/ (see kcore_guest.py), qemu.elf

Apart from lab.crash, so that a change of our program makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

import json
import re
import tarfile
import time
from dataclasses import replace
from pathlib import Path

from lab.boot import Machine, Running
from lab.collect import dig_holes, disk_usage
from lab.config import LAB_DIR, BootError, Config, Row, say
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, SETTLE_SECONDS, kernel_command_line
from lab.crash_topelf import NO_CX16
from lab.guest import Cpio, GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.kcore_guest import ACCOUNT
from lab.tool import ensure_tool
from lab.truth import is_complete

SCENARIO = "kcore"
SOURCES = ("crash_kcore.py", "kcore-crasher", "kcore_guest.py", "tool.py")
DUMP, RESULTS = "qemu.elf", "live"
DISK, DISK_BYTES = "results.tar", 1 << 30
TOOL_SECONDS = 900.0


def machine_of(row: Row, kernel: Path) -> Machine:
    # numpy's wheels want a CPU with cmpxchg16b: see lab/crash_topelf.py
    guest = replace(row.guest, arch=replace(row.guest.arch, cpu_options=()))
    append = f"{kernel_command_line(replace(row, scenario='live'))} {NO_CX16}"
    return Machine(replace(row, guest=guest), kernel, append, DISK)


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a guest that runs normally, and a second archive with our program and kcore-crasher."""
    cpio = Cpio()
    cpio.file("sbin/crasher", (LAB_DIR / "kcore-crasher").read_bytes(), 0o755)
    cpio.file("lab/crasher", (files.programs / "crasher").read_bytes(), 0o755)
    cpio.file("lab/kcore_guest.py", (LAB_DIR / "kcore_guest.py").read_bytes())
    tree = ensure_tool()
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            cpio.file(str(path.relative_to(tree)), path.read_bytes(), path.stat().st_mode & 0o777)
    first = build_common_initrd(config, replace(row, scenario="live"), files)
    # the kernel reads archives one behind the other; the later file of a name wins
    return first + b"\0" * (-len(first) % 512) + cpio.finish()


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, runs the program, dumps; returns QEMU's command line. The work folder holds the initrd."""
    with (work / DISK).open("wb") as disk:
        disk.truncate(DISK_BYTES)
    with Running(machine_of(row, kernel), work) as running:
        running.wait("the program's start", lambda: "LAB-KCORE-BEGIN" in running.console(), BOOT_SECONDS)
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), TOOL_SECONDS, PANIC_BEFORE_TRUTH
        )
        time.sleep(SETTLE_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        qmp.execute("stop")
        (work / "registers.txt").write_text(qmp.human("info registers -a").replace("\r\n", "\n"))
        qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{work / DUMP}")
        qmp.close()
        dig_holes(work / DUMP)
        console = running.console()
    unpack(work, console)
    return running.argv


def unpack(work: Path, console: str) -> None:
    """The disk becomes the folder that was written to it.  Raises BootError."""
    size = re.search(r"LAB-KCORE-BYTES (\d+)", console)
    if size is None or not 0 < int(size[1]) < DISK_BYTES:
        raise BootError(f"the guest wrote {size[1] if size else 'an unknown number of'} bytes of results")
    try:
        with tarfile.open(work / DISK) as archive:
            archive.extractall(work / RESULTS, filter="data")
        account = json.loads((work / RESULTS / ACCOUNT).read_text())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise BootError(f"the guest's results can't be read: {error}") from error
    (work / DISK).unlink()
    for name, run in account.items():
        say(f"{name}: status {run['status']}, {run['seconds']:.1f} s, {run['max_rss_kb'] / 1000:.0f} MB")
    say(f"results of {disk_usage(work / RESULTS) / 1e6:.0f} MB")
