"""i386 dumps, with and without PAE, against the guest's own word, a plain walk and gdb's frames.

drgn and crash of our host read no i386 page tables, so the walk of tests.builders, written apart from
the tool's, judges addresses.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from lab.config import Row
from tests.builders.pagetables import Leaf
from tests.builders.pagetables32 import walk_plain32
from tests.lab.dumps import LabDump, files_of, gdb, gdb_bytes, kdump_elftool, selected_rows
from tests.lab.in_gdb import stacks_in_gdb
from tests.lab.variants import ROM_BYTES, both, loads_of, same_bytes, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

ROWS = [row for row in selected_rows() if row.guest.arch.name == "i386"]
DUMPS = [LabDump(row.name, row.scenario, file) for row in ROWS for file in files_of(row)]
KDUMPS = [dump for dump in DUMPS if dump.scenario == "kdump"]
MACHINES = [row for row in ROWS if row.scenario in ("machine", "newer-machine")]
PAGE_OFFSET = 0xC0000000
ADDRESSES = 10_000
SEED = 20261124


@dataclass(frozen=True)
class Tasks:
    """A dump's velf with a thread a task; frames and ids by gdb."""

    dump: LabDump
    velf: Path
    summary: dict[str, Any]
    shown: str
    stacks: dict[int, list[int]]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def tasks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasks]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("i386") / "velf"
    done = kdump_elftool("tovelf", "-p", "-m", dump.vmlinux, "-i", dump.path, "-o", velf, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    symbols = f"symbol-file -o {summary['kaslr_offset']} {dump.vmlinux}"
    stacks, shown = stacks_in_gdb(velf, velf.parent, symbols, "thread apply all bt")
    yield Tasks(dump, velf, summary, shown, stacks)
    velf.unlink()


def test_threads_are_the_guests_tasks(tasks: Tasks) -> None:
    """What the guest listed last, and an idle task for each of two CPUs; only kernel workers come and go."""
    expected = {task["tid"]: task["comm"] for task in tasks.dump.truth["tasks"]} | {-1: "idle", -2: "idle"}
    done = kdump_elftool("ps", "-m", tasks.dump.vmlinux, tasks.dump.path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {task["lwp"]: task["comm"] for task in json.loads(done.stdout)["tasks"]}
    assert set(listed) == set(tasks.stacks)
    assert len(listed) == tasks.summary["nr_threads"] > 40
    for lwp in set(listed) ^ set(expected):
        assert (listed.get(lwp) or expected[lwp]).startswith(("kworker", "sleep", "sh")), lwp


def test_frames(tasks: Tasks) -> None:
    """Panic or idle on the CPUs; every sleeping task ends in the scheduler and came from somewhere."""
    threads = dict(re.findall(r"^Thread \d+ \(LWP (-?\d+)\):\n((?:.+\n)+)", tasks.shown, re.M))
    running = {str(thread["lwp"]) for thread in tasks.summary["threads"]}
    if tasks.dump.scenario == "kdump":
        for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
            assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", tasks.shown), tasks.shown
    assert len(threads) == tasks.summary["nr_threads"]
    for lwp, frames in threads.items():
        if lwp not in running:
            assert re.search(r"^#[01] .*\b__schedule \(.* at kernel/sched/core\.c:\d+", frames, re.M), frames
    ends = ("ret_from_fork", "ret_from_exception", "entry_INT80_32", "entry_SYSENTER_32", "startup_32_smp")
    whole = [lwp for lwp, frames in threads.items() if any(f" {end} (" in frames for end in ends)]
    assert len(whole) >= len(threads) - len(running)


@dataclass(frozen=True)
class Memory:
    """Physical memory by the dump's own program headers."""

    file: Any
    loads: list[tuple[int, int, int]]

    def read(self, paddr: int, size: int) -> bytes | None:
        for start, offset, length in self.loads:
            if start <= paddr and paddr + size <= start + length:
                self.file.seek(offset + paddr - start)
                return self.file.read(size)
        return None


def symbols_of(dump: LabDump) -> dict[str, int]:
    """Run-time addresses: nm's of the vmlinux, moved as far as the guest's own _stext was."""
    shown = subprocess.run(["nm", dump.vmlinux], capture_output=True, text=True, check=True).stdout
    linked = {name: int(value, 16) for value, name in re.findall(r"^(\S+) \S (\S+)$", shown, re.M)}
    moved = int(dump.truth["kallsyms"]["_stext"], 16) - linked["_stext"]
    return {name: value + moved for name, value in linked.items()}


def leaves_of(dump: LabDump, memory: Memory) -> list[Leaf]:
    root = symbols_of(dump)["swapper_pg_dir"] - PAGE_OFFSET
    return [
        leaf
        for leaf in walk_plain32(memory.read, root, pae="pae" in dump.row)
        if memory.read(leaf.paddr, leaf.size) is not None
    ]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_addresses_and_memory_are_the_plain_walks(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    velf, chance = tmp_path / "velf", random.Random(SEED)
    done = kdump_elftool("tovelf", "-l", "all", "-i", dump.path, "-o", velf)
    assert done.returncode == 0, done.stderr
    with dump.path.open("rb") as file:
        elf = ELFFile(file)
        loads = [
            (part["p_paddr"], part["p_offset"], part["p_filesz"])
            for part in elf.iter_segments()
            if part["p_type"] == "PT_LOAD"
        ]
        memory = Memory(file, loads)
        leaves = leaves_of(dump, memory)
        rows = chance.choices(leaves, k=ADDRESSES // 2)
        rows += chance.choices(leaves, weights=[leaf.size for leaf in leaves], k=ADDRESSES // 2)
        drawn = [(leaf, chance.randrange(leaf.size - 7) & ~7) for leaf in rows]
        expected = {leaf.vaddr + at: (leaf.paddr + at, memory.read(leaf.paddr + at, 8)) for leaf, at in drawn}
    got = gdb_bytes(velf, list(expected), tmp_path)
    wrong = [hex(at) for at, (_, data) in expected.items() if got[at] != data.hex()]
    assert not wrong, f"{len(wrong)} of {len(expected)}: {wrong[:5]}"
    assert len(expected) > 0.9 * ADDRESSES
    with velf.open("rb") as file:
        core = ELFFile(file)
        assert (core.elfclass, core["e_machine"]) == (32, "EM_386")
    mapped = sum(size for _, _, size in loads_of(velf))
    assert mapped >= sum(leaf.size for leaf in leaves)
    chosen = chance.sample(list(expected), 50)
    done = kdump_elftool("virttophys", "-i", dump.path, *(f"{at:x}" for at in chosen))
    assert done.stdout.splitlines() == [f"{at:x} {expected[at][0]:x}" for at in chosen]
    velf.unlink()


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_what_is_at_known_addresses(dump: LabDump) -> None:
    """linux_banner and init_task's name where the guest's _stext and the vmlinux say; the guest's log."""
    dump.check()
    symbols = symbols_of(dump)
    done = kdump_elftool("dumpmem", "-i", dump.path, f"{symbols['linux_banner']:x}", "80", "--json")
    (piece,) = json.loads(done.stdout)["pieces"]
    assert bytes.fromhex(piece["hex"]).startswith(f"Linux version {dump.truth['release']} ".encode())
    told = json.loads(kdump_elftool("info", "--json", "-m", dump.vmlinux, dump.path).stdout)
    assert told["release"] == dump.truth["release"]
    logged = kdump_elftool("dmesg", dump.path)
    assert (logged.returncode, logged.stderr) == (0, "")
    said = [re.sub(r"^<\d+>", "", line) for line in dump.truth["dmesg"]]
    missing = [line for line in said if line not in logged.stdout]
    assert len(missing) < 0.02 * len(said), missing[:3]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_levels(dump: LabDump, tmp_path: Path) -> None:
    """Each level keeps what it says, and free pages are as many as the guest had."""
    dump.check()
    counted, sizes = {}, {}
    for level in ("all", "inuse", "user", "cache", "kernel"):
        velf = tmp_path / level
        done = kdump_elftool("tovelf", "-l", level, "-i", dump.path, "-o", velf, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        counted[level], sizes[level] = json.loads(done.stdout), velf.stat().st_size
        velf.unlink()
    kernel, total = counted["kernel"], counted["kernel"]["coverage"]["total_pages"]
    parts = [kernel[f"{name}_pages"] for name in ("free", "cache", "user")]
    assert min(parts) > 500
    assert sum(parts) < total
    assert counted["inuse"]["free_pages"] == kernel["free_pages"]
    free = dump.truth["meminfo"]["MemFree"] // 4
    assert abs(kernel["free_pages"] - free) < 0.05 * free + (40960 if dump.scenario == "kdump" else 0)
    assert sizes["kernel"] < sizes["user"] < sizes["inuse"] < sizes["all"]
    assert sizes["kernel"] < sizes["cache"] < sizes["inuse"]


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_the_memory_of_a_process(dump: LabDump, tmp_path: Path) -> None:
    """The marker of each worker, at its own address, through the process' own table: 32 bytes with PAE."""
    dump.check()
    kernel = tmp_path / "kernel"
    done = kdump_elftool("tovelf", "-m", dump.vmlinux, "-i", dump.path, "-o", kernel, "--json")
    symbols = f"symbol-file -o {json.loads(done.stdout)['kaslr_offset']} {dump.vmlinux}"
    listed = json.loads(kdump_elftool("ps", "-m", dump.vmlinux, dump.path, "--json").stdout)["tasks"]
    at = {task["tid"]: task["task"] for task in listed}
    markers = dump.truth["markers"]
    # gdb takes a minute to find the type, so it is asked once
    asked = gdb(
        f"core-file {kernel}",
        symbols,
        *(f"p/x (unsigned)((struct task_struct *){at[marker['pid']]})->mm->pgd" for marker in markers),
    )
    pgds = [int(value, 16) - PAGE_OFFSET for value in re.findall(r"= (0x[0-9a-f]+)", asked.stdout)]
    for marker, pgd in zip(markers, pgds, strict=True):
        vaddr, size = marker["vaddr"].removeprefix("0x"), len(marker["text"])
        read = kdump_elftool("dumpmem", "-P", hex(pgd), "-i", dump.path, vaddr, f"{size:x}", "--json")
        (piece,) = json.loads(read.stdout)["pieces"]
        assert bytes.fromhex(piece["hex"]).decode() == marker["text"]
        assert kdump_elftool("virttophys", "-i", dump.path, vaddr).stdout == "unmapped\n"
    kernel.unlink()


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.name)
@pytest.mark.parametrize("name", ["qemu.stream", "qemu.raw"])
def test_images_without_a_word_of_their_machine(row: Row, name: str, tmp_path: Path) -> None:
    """Streams and raw memory of x86 machines: the same memory without --arch or -m."""
    dump, image = both(row, name)
    words = ["-I", "raw"] if name == "qemu.raw" else []
    done = kdump_elftool("info", "--json", *words, image)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arch"] == "i386"
    original = tovelf([dump.path], tmp_path / "original", dump.vmlinux)
    variant = tovelf([image], tmp_path / "velf", dump.vmlinux, *words)
    whole = sum(size for _, _, size in loads_of(original.velf))
    assert whole - ROM_BYTES <= same_bytes(original, variant) <= whole
    original.velf.unlink()
    variant.velf.unlink()


@pytest.mark.parametrize(
    ("dump", "form"),
    [
        # kexec's ranges end within a page, and kdump-compressed dumps hold whole ones
        *((dump, "kdump") for dump in DUMPS if dump.scenario != "kdump"),
        *((dump, "elf") for dump in DUMPS),
    ],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_by_way_of_topelf(dump: LabDump, form: str, tmp_path: Path) -> None:
    """A smaller dump of physical memory, and that converted: what the level keeps, byte by byte."""
    dump.check()
    small, velf, direct = (tmp_path / name for name in ("small", "velf", "direct"))
    words = [] if form == "elf" else ["--format", form]
    done = kdump_elftool("topelf", "-l", "kernel", *words, "-i", dump.path, "-o", small)
    assert (done.returncode, done.stderr) == (0, "")
    assert small.stat().st_size < dump.path.stat().st_size / 2
    first = tovelf([small], velf, dump.vmlinux)
    second = tovelf([dump.path], direct, dump.vmlinux)
    assert first.summary["kaslr_offset"] == second.summary["kaslr_offset"]
    assert same_bytes(second, first) > 20 << 20
    for path in (small, velf, direct):
        path.unlink()


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_in_place(dump: LabDump, tmp_path: Path) -> None:
    """The file keeps its class; gdb reads it, and it can be had back."""
    dump.check()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "--sparse=always", dump.path, copy], check=True)
    copy.chmod(0o600)
    before = copy.stat().st_size
    done = kdump_elftool("tovelf", "-l", "all", "--in-place", "-m", dump.vmlinux, "-i", copy, "--json")
    assert done.returncode == 0, done.stderr
    with dump.path.open("rb") as old, copy.open("rb") as new:
        assert ELFFile(old).elfclass == ELFFile(new).elfclass
    offset = json.loads(done.stdout)["kaslr_offset"]
    shown = gdb(f"core-file {copy}", f"symbol-file -o {offset} {dump.vmlinux}", "p linux_banner")
    assert dump.truth["release"] in shown.stdout, shown.stdout + shown.stderr
    assert kdump_elftool("tovelf", "--undo", "-i", copy).returncode == 0
    assert copy.stat().st_size == before
    copy.unlink()
