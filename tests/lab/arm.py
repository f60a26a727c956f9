"""The dumps of 32-bit ARM guests as test parameters, and what judges them.

drgn where a dump has what drgn needs (a kdump's VMCOREINFO and program headers), the walkers of
tests/builders/arm_tables.py, which know nothing of the package, and the guests' own accounts.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.dumps import LabDump, files_of, selected_rows

FILES = {
    "kdump": ("vmcore",),
    "live": ("qemu.elf", "qemu-paging.elf"),
    "machine": ("qemu.elf", "qemu.stream", "qemu.raw"),
}
ROWS = [row for row in selected_rows() if row.guest.arch.name == "arm"]
DUMPS = [LabDump(row.name, row.scenario, file) for row in ROWS for file in files_of(row, FILES)]
KDUMPS = [dump for dump in DUMPS if dump.file == "vmcore"]
HEADED = [dump for dump in DUMPS if dump.file != "qemu.raw"]
"""Whose files say what they are."""
SEED, ADDRESSES, FRAMES, PAGE = 20261124, 10_000, 20_000, 4096
CPUS = 2


def words_for(dump: LabDump) -> list[str | Path]:
    """What a command needs to know of a dump: raw memory says nothing itself."""
    return ["-I", "raw", "--arch", "arm", dump.path] if dump.file == "qemu.raw" else [dump.path]
