"""Raw memory of MIPS guests: threads, backtraces and addresses against what the guest itself said."""

from __future__ import annotations

import json
import mmap
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.arch.walker import translate
from kdump_elftool.errors import FaultError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from tests.builders.mips_tables import Shape, plain_pages, plain_translate
from tests.lab.dumps import GDB_MULTIARCH, LabDump, gdb, kdump_elftool, selected_rows
from tests.lab.in_gdb import by_thread

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

SHAPES = {
    # CONFIG_CPU_HAS_RIXI; with CONFIG_MIPS_HUGE_TLB_SUPPORT little-endian 64-bit
    "mipsel": Shape(4, "<", 12, (10, 10), 12),
    "mips64el": Shape(8, "<", 12, (10, 9, 9), 14, 16),
    "mips": Shape(4, ">", 12, (10, 10), 12),
    "mips64": Shape(8, ">", 12, (10, 9, 9), 13),
}
ROWS = [row for row in selected_rows() if row.guest.arch.name in SHAPES and row.scenario == "machine"]
BUILT = {row.name for row in ROWS if row.guest.fragments}
"""Rows of small kernels that the lab builds: fewer threads of the kernel's own, hardly any vmalloc space."""
SAMPLES = 10_000
UNITS = ("kernel/sched/core.c", "kernel/sched/idle.c", "init/main.c")


@dataclass(frozen=True)
class Converted:
    """A row's raw memory, and the velf with a thread a task that was made of it."""

    dump: LabDump
    arch: str
    velf: Path
    summary: dict[str, Any]

    @property
    def options(self) -> list[str | Path]:
        return ["-I", "raw", "--arch", self.arch, "-m", self.dump.vmlinux]

    @property
    def operands(self) -> list[str | Path]:
        return [*self.options, "-i", self.dump.path]

    @property
    def is_small(self) -> bool:
        return self.dump.row in BUILT

    @property
    def shape(self) -> Shape:
        return SHAPES[self.arch]

    def full(self, raw: int) -> int | None:
        """The kernel's virtual address of one that its tables decode; None for a process's."""
        if self.shape.word == 4:
            return raw if raw >= 0xC0000000 else None
        top = 1 << 40
        return raw + ((1 << 64) - top if raw >= top - 0x40000000 else 0xC000000000000000)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    row = request.param
    dump = LabDump(row.name, row.scenario, "qemu.raw")
    dump.check()
    velf = tmp_path_factory.mktemp("mips") / "velf"
    registers = dump.path.with_name("registers.txt")
    made = Converted(dump, row.guest.arch.name, velf, {})
    done = kdump_elftool("tovelf", *made.operands, "-p", "--cpu-regs", registers, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["warnings"] == []
    yield Converted(dump, made.arch, velf, summary)
    velf.unlink()


@pytest.fixture(scope="module")
def memory(converted: Converted) -> Iterator[mmap.mmap]:
    with (
        converted.dump.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
    ):
        yield whole


def plain_pairs(converted: Converted, memory: mmap.mmap) -> dict[int, int]:
    """Every page that the kernel's tables map in RAM, by the plain reader."""
    root = int(converted.summary["pgt_root"], 16)
    pages = plain_pages(lambda at, size: memory[at : at + size], converted.shape, root)
    return {
        vaddr: paddr
        for raw, paddr, _size in pages
        if (vaddr := converted.full(raw)) is not None and paddr < len(memory)
    }


def backtraces(converted: Converted) -> dict[int, str]:
    # gdb finds the units of 32-bit addresses only once they are read
    expand = [f"maint expand-symtabs {unit}" for unit in UNITS]
    listed = gdb(
        f"core-file {converted.velf}",
        f"symbol-file -o {converted.summary['kaslr_offset']} {converted.dump.vmlinux}",
        *expand,
        "thread apply all bt",
        program=GDB_MULTIARCH,
    )
    assert listed.returncode == 0, listed.stderr[-2000:]
    return by_thread(listed.stdout)


def test_threads_and_backtraces(converted: Converted) -> None:
    stacks = backtraces(converted)
    assert set(stacks) == {task["tid"] for task in converted.dump.truth["tasks"]} | {-1}
    assert len(stacks) == converted.summary["nr_threads"] > (20 if converted.is_small else 40)
    idle = stacks[-1]
    for function in ("__schedule", "rest_init", "start_kernel"):
        assert function in idle
    # the idle task may never have had the CPU since it gave it to init
    for function in () if "schedule_preempt_disabled" in idle else ("schedule_idle", "cpu_startup_entry"):
        assert function in idle
    assert re.search(
        r"(do_idle|cpu_startup_entry|rest_init) \(.*\) at (kernel/sched/idle|init/main)\.c:\d+", idle
    )
    running = [lwp for lwp, stack in stacks.items() if "__schedule" not in stack]
    assert len(running) == 1
    for lwp, stack in stacks.items():
        if lwp not in running:
            assert re.search(r"__schedule \(.*\) at kernel/sched/core.c:\d+", stack), (lwp, stack)
            assert re.search(r"schedule(_idle)? \(.*\) at kernel/sched/core.c:\d+", stack), (lwp, stack)


def test_flags_of_the_abi(converted: Converted) -> None:
    where = 0x24 if converted.shape.word == 4 else 0x30
    flags = []
    for path in (converted.velf, converted.dump.vmlinux):
        with path.open("rb") as file:
            flags.append(file.read(64)[where : where + 4])
    assert flags[0] == flags[1] != bytes(4)


def test_translations(converted: Converted, memory: mmap.mmap) -> None:
    """Random addresses of the windows, vmalloc space and modules, by us and by the plain reader."""
    choice, shape = random.Random(7), converted.shape
    pairs = plain_pairs(converted, memory)
    assert len(pairs) > (15 if converted.is_small else 300)
    sign = 0 if shape.word == 4 else 0xFFFFFFFF00000000
    windows = [sign + 0x80000000, sign + 0xA0000000]
    windows += [] if shape.word == 4 else [0x9000000000000000, 0x9800000000000000, 0xA800000000000000]
    places = list(pairs)
    addresses = [choice.choice(places) + choice.randrange(4096) for _ in range(SAMPLES // 2)]
    addresses += [choice.choice(windows) + choice.randrange(len(memory)) for _ in range(SAMPLES // 2 - 100)]
    base = converted.full(0xC0000000 if shape.word == 4 else 0) or 0
    addresses += [base + choice.randrange(1 << 24) for _ in range(100)]
    root = int(converted.summary["pgt_root"], 16)
    answers = translated(converted, addresses)
    expected = [
        plain_translate(lambda at, size: memory[at : at + size], shape, root, address)
        for address in addresses
    ]
    assert answers == expected
    assert sum(answer is not None for answer in answers) >= SAMPLES - 100


def translated(converted: Converted, addresses: list[int]) -> list[int | None]:
    with InputFile.open(str(converted.velf)) as file:
        # the velf keeps the tables themselves, so that it is read like any dump
        dump = open_dump(file)
        kernel = open_kernel(dump, KernelRequest())
        found: list[int | None] = []
        for address in addresses:
            try:
                found.append(
                    translate(dump.memory, kernel.identity.form, kernel.identity.pgt_root, address).paddr
                )
            except FaultError:
                found.append(None)
    return found


def test_module_text(converted: Converted, memory: mmap.mmap) -> None:
    """Names of modules, in memory that tables map: __this_module begins with state, list and name."""
    pairs, word = plain_pairs(converted, memory), converted.shape.word
    found = 0
    for module, sections in converted.dump.truth["module_sections"].items():
        at = int(sections[".gnu.linkonce.this_module"], 16) + 3 * word
        done = kdump_elftool("dumpmem", *converted.operands, f"{at:#x}", "56")
        assert done.returncode == 0, done.stderr
        assert pairs[at & -4096] < len(memory)
        paddr = pairs[at & -4096] + at % 4096
        assert memory[paddr : paddr + len(module) + 1] == module.encode() + b"\0"
        found += 1
        if found == 3:
            break
    assert found == 3


def test_other_commands(converted: Converted) -> None:
    truth = converted.dump.truth
    log = kdump_elftool("dmesg", *converted.options, converted.dump.path)
    assert (log.returncode, log.stderr) == (0, "")
    said = [re.sub(r"^<\d+>", "", line) for line in truth["dmesg"]]
    assert log.stdout.splitlines()[: len(said)][:50] == said[:50]
    ps = json.loads(kdump_elftool("ps", *converted.options, converted.dump.path, "--json").stdout)
    comms = {task["lwp"]: task["comm"] for task in ps["tasks"]}
    assert {task["tid"] for task in truth["tasks"]} <= set(comms)
    info = json.loads(kdump_elftool("info", *converted.options, converted.dump.path, "--json").stdout)
    assert info["release"] == truth["release"]
    assert info["categories"]["free"] > 30_000
    assert info["coverage"]["covered_pages"] == info["memory"]["present_pages"]


def test_levels_and_topelf(converted: Converted, tmp_path: Path) -> None:
    """The smaller dump of physical memory, without registers, leads to the same kernel."""
    sizes = []
    for level in ("kernel", "user"):
        small = tmp_path / level
        done = kdump_elftool("topelf", *converted.operands, "-l", level, "-o", small)
        assert done.returncode == 0, done.stderr
        sizes.append(small.stat().st_size)
        info = json.loads(kdump_elftool("info", small, "-m", converted.dump.vmlinux, "--json").stdout)
        assert info["pgt_root"] == converted.summary["pgt_root"]
    assert sizes[0] < sizes[1]
