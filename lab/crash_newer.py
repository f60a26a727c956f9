"""The scenario newer: as formats, by the QEMU of a newer Debian in a tool root.
                   -> qemu.elf, qemu.kdump-zlib, qemu.kdump-raw-zlib, ..., qemu.stream

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lab import crash_formats
from lab.boot import Machine, Running
from lab.config import Config, Row, load_config
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, kernel_command_line
from lab.crash_machine import migrate
from lab.guest import GuestFiles
from lab.roots import chroot_argv, locked_root
from lab.truth import is_complete

SCENARIO = "newer"
SUITE = "trixie"
SOURCES = ("crash_formats.py", "crash_machine.py", "crash_newer.py")
INSIDE, _KERNEL = "/mnt/work", "/mnt/kernel"
"""Where a row's folder and its kernel's are in the root."""


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of a guest that panics without a crash kernel."""
    return crash_formats.build_initrd(config, row, files)


@dataclass(frozen=True)
class InRoot(Machine):
    """A machine whose QEMU runs in the tool root ``root``, with the folder ``work`` of the row."""

    root: Path
    work: Path

    def inner(self) -> list[str]:
        """QEMU's command line as it is in there."""
        return super().argv()

    def argv(self) -> list[str]:
        binds = {self.work: INSIDE, self.kernel.parent: _KERNEL}
        inside = replace(self, kernel=Path(_KERNEL) / self.kernel.name).inner()
        return chroot_argv(self.root, ["env", "-C", INSIDE, *inside], binds)


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps once; returns QEMU's command line. The work folder holds the initrd."""
    panics = replace(row, scenario="panic")
    root = locked_root(load_config(), SUITE)
    machine = InRoot(panics, kernel, kernel_command_line(panics), None, root, work)
    with Running(machine, work) as running:
        running.wait(
            "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
        )
        running.wait("the end of the panic", lambda: "end Kernel panic" in running.console(), BOOT_SECONDS)
        qmp = running.connect(DUMP_SECONDS)
        qmp.execute("stop")
        crash_formats.dump_in_each_format(qmp, work, Path(INSIDE))
        migrate(qmp, work / "qemu.stream")
        qmp.close()
    return machine.inner()
