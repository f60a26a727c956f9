"""The scenario topelf: the crash kernel copies /proc/vmcore to one disk, then runs our topelf on it and
writes the result, packed, to another, so that both can be compared.       -> vmcore, pmcore.gz

Apart from lab.crash, so that a change of our program makes the rows of this scenario anew and no others.
The first kernel does exactly what it does for kdump.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.boot import Machine, Running
from lab.collect import dig_holes, write_json
from lab.config import LAB_DIR, BootError, Config, Row
from lab.crash import (
    BOOT_SECONDS,
    COPY_SECONDS,
    DISK_BYTES,
    PANIC_BEFORE_TRUTH,
    kernel_command_line,
)
from lab.guest import CRASH_CMDLINE, PROGRAMS, Cpio, GuestFiles, add_program, find_program, wanted_modules
from lab.kernels import load_order, module_files
from lab.tool import ensure_tool
from lab.truth import is_complete

SCENARIO = "topelf"
DISKS = ("vmcore", "pmcore.gz")
FACTS = "crash-kernel.json"
NO_CX16 = "clearcpuid=cx16"
SOURCES = ("crash_topelf.py", "crash-init", "tool.py")


@dataclass(frozen=True)
class TwoDisks(Machine):
    """A machine with a second disk."""

    second: str

    def argv(self) -> list[str]:
        drive = f"if=none,id=d1,format=raw,discard=unmap,detect-zeroes=unmap,file={self.second}"
        return [*super().argv(), "-drive", drive, "-device", f"{self.row.guest.arch.disk},drive=d1"]


def machine_of(row: Row, kernel: Path) -> TwoDisks:
    # numpy's wheels want a CPU with cmpxchg16b, whose emulation the lab's guests have to do without: so
    # the CPU has it here and the kernels are told not to use it
    guest = replace(row.guest, arch=replace(row.guest.arch, cpu_options=()))
    append = f"{kernel_command_line(replace(row, scenario='kdump'))} {NO_CX16}"
    return TwoDisks(replace(row, guest=guest), kernel, append, DISKS[0], DISKS[1])


def _crash_initrd(config: Config, files: GuestFiles) -> bytes:
    """Packed, because it lies in the crash kernel's memory beside its contents while they are unpacked."""
    cpio = _base(files, config.disk_modules, "crash-init")
    tree = ensure_tool()
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            cpio.file(str(path.relative_to(tree)), path.read_bytes(), path.stat().st_mode & 0o777)
    return gzip.compress(cpio.finish(), 6, mtime=0)


def _base(files: GuestFiles, modules: tuple[str, ...], init: str) -> Cpio:
    cpio = Cpio()
    cpio.file("init", (LAB_DIR / init).read_bytes(), 0o755)
    cpio.file("bin/busybox", find_program(files.userland, "busybox").read_bytes(), 0o755)
    cpio.char_device("dev/console", 5, 1)
    order = load_order(modules, module_files(files.kernel / "modules"))
    for path in order:
        cpio.file(f"lab/modules/{path.name}", path.read_bytes())
    cpio.file("lab/modules.list", "".join(f"{path.stem}\n" for path in order).encode())
    return cpio


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """The initramfs of the first kernel, with the crash kernel and its own."""
    cpio = _base(files, wanted_modules(config, row), "init")
    for name in PROGRAMS:
        cpio.file(f"sbin/{name}", (files.programs / name).read_bytes(), 0o755)
    add_program(cpio, files.userland, "kexec")
    cpio.file("lab/vmlinuz", (files.kernel / "vmlinuz").read_bytes())
    cpio.file("lab/crash.img", _crash_initrd(config, files))
    cpio.file("lab/kexec.options", b"")
    cpio.file("lab/crash.cmdline", f"console={row.guest.arch.console} {CRASH_CMDLINE} {NO_CX16}".encode())
    return cpio.finish()


def parse_facts(console: str) -> dict[str, Any]:
    """What the crash kernel said of itself: kilobytes of memory, bytes of both files, seconds."""
    memory = {name: int(value) for name, value in re.findall(r"LAB-MEMORY (\w+) (\d+)", console)}
    vmcore = re.search(r"LAB-VMCORE (\d+)", console)
    pmcore = re.search(r"LAB-PMCORE ([\d.]+) ([\d.]+) (\d+)", console)
    wanted = ("MemTotal", "MemAvailable", "VmHWM", "LeastAvailable")
    if vmcore is None or pmcore is None or any(memory.get(name, 0) <= 0 for name in wanted):
        lines = [line for line in console.splitlines() if line.startswith("LAB-")]
        raise BootError(f"the crash kernel's account of topelf is not complete: {lines}")
    return {
        "mem_total_kb": memory["MemTotal"],
        "mem_available_kb": memory["MemAvailable"],
        "least_available_kb": memory["LeastAvailable"],
        "topelf_vm_hwm_kb": memory["VmHWM"],
        "topelf_gzip_seconds": round(float(pmcore[2]) - float(pmcore[1]), 2),
        "vmcore_bytes": int(vmcore[1]),
        "pmcore_gz_bytes": int(pmcore[3]),
    }


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    for name in DISKS:
        with (work / name).open("wb") as disk:
            disk.truncate(DISK_BYTES)
    with Running(machine_of(row, kernel), work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )

        def powered_off() -> bool:
            return "LAB-VMCORE " in running.console() and running.process.poll() is not None

        running.wait("both dumps of the crash kernel", powered_off, COPY_SECONDS)
        facts = parse_facts(running.console())
        _cut(running, DISKS[0], facts["vmcore_bytes"], b"\x7fELF")
        _cut(running, DISKS[1], facts["pmcore_gz_bytes"], b"\x1f\x8b")
        write_json(work / FACTS, facts)
        return running.argv


def _cut(running: Running, name: str, size: int, magic: bytes) -> None:
    """The disk becomes the file that was written to it."""
    if not 0 < size < DISK_BYTES:
        raise running.fail(f"{name} has {size} bytes")
    with (running.work / name).open("r+b") as file:
        if file.read(len(magic)) != magic:
            raise running.fail(f"{name} does not start with {magic!r}")
        file.truncate(size)
    dig_holes(running.work / name)
