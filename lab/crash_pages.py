"""The scenario pages: a kdump of a machine whose memory holds pages of every kind that dump tools
tell apart: free, page cache clean, dirty and private, anonymous, huge, hugetlb, shared, swap cache,
in a balloon, poisoned.                                                                  -> vmcore

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lab.boot import Machine, Running
from lab.compile import compiled
from lab.config import LAB_DIR, Config, Row
from lab.crash import BOOT_SECONDS, DISK_BYTES, PANIC_BEFORE_TRUTH, SCENARIOS, kernel_command_line
from lab.guest import Cpio, GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.kernels import load_order, module_files
from lab.truth import is_complete

SCENARIO = "pages"
SOURCES = ("compile.py", "crash_pages.py", "make-pages", "pages.c")
MORE_MODULES = ("crc32c_generic",)
"""What a file system asks for at mount time; built into some kernels."""
SWAP_BYTES = 256 << 20
BALLOON_BYTES = 16 << 20


@dataclass(frozen=True)
class WithBalloon(Machine):
    """A machine with a disk to swap to and a balloon."""

    def argv(self) -> list[str]:
        drive = "if=none,id=d1,format=raw,file=swap"
        disk = f"{self.row.guest.arch.disk},drive=d1"
        return [*super().argv(), "-drive", drive, "-device", disk, "-device", "virtio-balloon-pci"]


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a kdump guest, and a second archive that puts make-pages in the place of the crasher."""
    cpio = Cpio()
    cpio.file("sbin/crasher", (LAB_DIR / "make-pages").read_bytes(), 0o755)
    cpio.file("lab/crasher", (files.programs / "crasher").read_bytes(), 0o755)
    cpio.file("lab/pages", compiled(LAB_DIR / "pages.c", row.guest.arch.compiler, files.programs), 0o755)
    order = load_order(MORE_MODULES, module_files(files.kernel / "modules"))
    for path in order:
        cpio.file(f"lab/more/{path.name}", path.read_bytes())
    cpio.file("lab/more.list", "".join(f"{path.stem}\n" for path in order).encode())
    first = build_common_initrd(config, row, files)
    # the kernel reads archives one behind the other; the later file of a name wins
    return first + b"\0" * (-len(first) % 512) + cpio.finish()


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    append = kernel_command_line(replace(row, scenario="kdump"))
    for name, size in (("vmcore", DISK_BYTES), ("swap", SWAP_BYTES)):
        with (work / name).open("wb") as disk:
            disk.truncate(size)
    with Running(WithBalloon(row, kernel, append, "vmcore"), work) as running:
        running.wait(
            "QEMU's control socket",
            (work / "qmp.sock").exists,
            BOOT_SECONDS,
        )
        qmp = running.connect(BOOT_SECONDS)
        memory = qmp.execute("query-balloon")["actual"]
        qmp.execute("balloon", value=memory - BALLOON_BYTES)
        qmp.close()
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        SCENARIOS["kdump"](running)
        (work / "swap").unlink()
        return running.argv
