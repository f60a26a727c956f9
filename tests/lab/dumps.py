"""The lab's dumps as test parameters, and the commands that look into them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab.config import CUT_BY_QEMU, Row, load_config, row_dir

DUMP_FILES = {
    "kdump": ("vmcore",),
    "pages": ("vmcore",),
    "panic": ("qemu.elf", "qemu-paging.elf"),
    "live": ("qemu.elf", "qemu-paging.elf"),
    "formats": ("qemu.elf",),  # the others are compared with it in test_qemu_formats.py
    "newer": (),
    "machine": (),  # its ELF dump is what its other files are compared with
    "newer-machine": (),
    "dirty": (),
    "topelf": (),  # the vmcore of another kdump, with files that test_crash_kernel.py compares
    "oops": (),  # of three boots with one truth: test_frames.py has its own questions
    "blocked": (),  # nobody wrote to sysrq-trigger: test_blocked.py has its own questions
    "kcore": (),  # of what the guest made of its own memory: test_kcore.py has its own questions
    "failed-kdump": (),  # two kernels and no note: test_failed_kdump.py has its own questions
}
IN_CI = os.environ.get("LAB_SET", "ci") == "ci"
PAGING = "qemu-paging.elf"
"""The same memory as in qemu.elf, with virtual addresses in its headers and cut accordingly."""
IN_FULL = ("x64-61-l4", "x64-7x-l5")
"""Guests, one for each number of levels, whose paging dumps CI tests too."""
RAW = ("mips", "mipsel", "mips64", "mips64el")
"""Architectures of which QEMU writes no ELF dump."""
CONVERTED = ("x86_64",)
"""The architectures whose dumps are converted; of the others, what is not about a kernel is tested."""
HERE = Path(__file__).parent
GDB = os.environ.get("GDB", "gdb")
GDB_MULTIARCH = "gdb-multiarch"
"""For cores of foreign machines; a newer one is in the root trixie, by the same name."""


@dataclass(frozen=True)
class LabDump:
    """One dump file of one row."""

    row: str
    scenario: str
    file: str

    @property
    def id(self) -> str:
        return f"{self.row}/{self.file}"

    @property
    def made_by(self) -> Row:
        return {row.name: row for row in load_config().rows}[self.row]

    @property
    def is_small(self) -> bool:
        """Of a kernel that the lab builds: it has fewer tasks, messages and objects than a distribution's."""
        return bool(self.made_by.guest.fragments)

    @property
    def arch(self) -> str:
        return self.made_by.guest.arch.name

    @property
    def directory(self) -> Path:
        return row_dir(self.made_by)

    @property
    def path(self) -> Path:
        return self.directory / self.file

    @property
    def operands(self) -> tuple[str | Path, ...]:
        """The file, and what raw memory does not say of itself."""
        return ("-I", "raw", "--arch", self.arch, self.path) if self.file == "qemu.raw" else (self.path,)

    @property
    def vmlinux(self) -> Path:
        return (self.directory / "vmlinux").resolve()

    @property
    def truth(self) -> dict[str, Any]:
        return json.loads((self.directory / "truth.json").read_text())

    def check(self) -> None:
        """A dump that is missing is a failure: the caller asked for it by running these tests."""
        assert self.path.exists(), f"{self.path} is missing: python3 -m lab ensure '{self.row}'"
        assert self.vmlinux.exists(), f"{self.vmlinux} is missing"


def selected_rows() -> list[Row]:
    """The rows of LAB_SET (default ci), narrowed by ROWS, that the lab makes for who we are."""
    patterns = os.environ.get("ROWS", "").split()
    chosen = load_config().select(os.environ.get("LAB_SET", "ci"), patterns)
    return [row for row in chosen if row.can_be_made]


def files_of(row: Row, files: Mapping[str, tuple[str, ...]] = DUMP_FILES) -> tuple[str, ...]:
    """The dumps of a row that are tested, of those of its scenario."""
    in_part = IN_CI and row.guest.name not in IN_FULL
    return tuple(file for file in files.get(row.scenario, ()) if not (in_part and file == PAGING))


def selected_dumps() -> list[LabDump]:
    """The dumps of the selected rows that are converted."""
    return [
        LabDump(row.name, row.scenario, file)
        for row in selected_rows()
        if row.guest.arch.name in CONVERTED
        for file in files_of(row)
        if (row.name, file) not in CUT_BY_QEMU
    ]


def one_of_each_row(scenarios: tuple[str, ...] = ("kdump", "live")) -> list[LabDump]:
    """The first dump of each row, of any architecture: a machine's where QEMU writes none of a live guest."""
    chosen = [
        (row, "qemu.raw" if row.scenario == "machine" else DUMP_FILES[row.scenario][0])
        for row in selected_rows()
        if row.scenario in scenarios or (row.scenario == "machine" and row.guest.arch.name in RAW)
    ]
    return [LabDump(row.name, row.scenario, file) for row, file in chosen]


def tells_all(dump: LabDump) -> bool:
    """Whether a kernel's layout and symbols are all in the dump: those without BTF want a vmlinux."""
    (row,) = [row for row in selected_rows() if row.name == dump.row]
    return row.guest.arch.name == "x86_64" or (row.guest.arch.name == "aarch64" and not row.guest.fragments)


def one_of_each_kernel(dumps: list[LabDump]) -> list[LabDump]:
    """The first dump of each, for what neither machine nor format changes."""
    guests = {row.name: row.guest for row in selected_rows()}
    by_kernel: dict[tuple[str, ...], LabDump] = {}
    for dump in dumps:
        guest = guests[dump.row]
        by_kernel.setdefault((guest.arch.name, guest.package, *guest.fragments), dump)
    return list(by_kernel.values())


def kdump_elftool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    command = Path(sys.executable).parent / "kdump-elftool"
    return subprocess.run(
        [str(command), *map(str, args)], capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


@cache
def tool_root(suite: str) -> Path:
    """The lab's root with the newer tools of a Debian suite, made when missing."""
    made = subprocess.run(
        [sys.executable, "-m", "lab", "root", suite],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.split()[-1])


def gdb(
    *commands: str,
    program: str = GDB,
    args: tuple[str, ...] = (),
    timeout: int = 600,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run gdb on ``commands`` without any start-up file.

    The second time that it opens a vmlinux takes it a third of the CPU time, and types a tenth: its index of
    the first time is in the session's XDG_CACHE_HOME.
    """
    argv = [program, "-nx", "-nh", "-batch", "-iex", "set debuginfod enabled off"]
    argv += ["-iex", "set index-cache enabled on"]
    for command in commands:
        argv += ["-ex", command]
    return subprocess.run(
        [*argv, *args],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def gdb_bytes(core: Path, addresses: list[int], scratch: Path, program: str = GDB) -> dict[int, str | None]:
    """8 bytes at each address as gdb's Python reads them from the core alone; None where it can't."""
    wanted, answer = scratch / "addresses.json", scratch / "bytes.json"
    wanted.write_text(json.dumps(addresses))
    done = gdb(
        f"core-file {core}",
        f"source {HERE / 'gdb_read.py'}",
        program=program,
        KD_WANTED=str(wanted),
        KD_ANSWER=str(answer),
    )
    assert answer.exists(), done.stdout + done.stderr
    return dict(zip(addresses, json.loads(answer.read_text()), strict=True))


def drgn_says(script: str, core: Path, vmlinux: Path, scratch: Path, *options: str, **request: object) -> Any:
    """What one of the scripts oracle_*.py, which run drgn, answers."""
    answer = scratch / "drgn.json"
    answer.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(core), str(vmlinux), str(answer), *options],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text())


def drgn_oracle(core: Path, vmlinux: Path, request: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Ask drgn about a core; see oracle_drgn.py."""
    return dict(drgn_says("oracle_drgn.py", core, vmlinux, scratch, **request))
