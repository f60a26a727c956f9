"""Dumps of arm64 guests: threads and frames in a gdb that knows signed addresses, translations, commands.

Judges: drgn, and the guests' own accounts.  gdb 13 clears the top of a signed return address instead of
filling it up, so it stops at the first one: the frames are looked at with the gdb of the root trixie.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.kernel.pages import Category
from kdump_elftool.safe_text import log_text
from lab.roots import run_in_root
from tests.lab.dumps import (
    GDB_MULTIARCH,
    HERE,
    PAGING,
    LabDump,
    drgn_says,
    files_of,
    kdump_elftool,
    selected_rows,
    tool_root,
)
from tests.lab.in_gdb import by_thread
from tests.lab.test_addresses import ADDRESSES, SEED, ask_drgn, mapped_addresses
from tests.lab.test_pages import classified

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.root, pytest.mark.slow]

FILES = {
    "kdump": ("vmcore",),
    "live": ("qemu.elf", "qemu-paging.elf"),
    "machine": ("qemu.elf", "qemu.stream", "qemu.raw"),
}
ROWS = [row for row in selected_rows() if row.guest.arch.name == "aarch64" and row.scenario in FILES]
DUMPS = [LabDump(row.name, row.scenario, file) for row in ROWS for file in files_of(row, FILES)]
KDUMPS = [dump for dump in DUMPS if dump.file == "vmcore"]
WITH_NOTES = [dump for dump in DUMPS if dump.file in ("vmcore", "qemu.elf", PAGING)]
"""drgn reads these."""
FORMS = {
    "a64-612-16k": "arm64 16 KB pages, 52-bit",
    "a64-7x": "arm64 4 KB pages, 52-bit",
    "a64-64k": "arm64 64 KB pages, 52-bit",
    "a64-va39": "arm64 4 KB pages, 39-bit",
}
BUILT = {row.name for row in ROWS if row.guest.fragments}
"""Rows of small kernels that the lab builds: no BTF, fewer threads of the kernel's own."""
CPUS, FRAMES = 2, 20_000
KERNEL = (1 << 64) - (1 << 52)


def words_for(dump: LabDump) -> list[str | Path]:
    """What a command needs to know of a dump: raw memory says nothing itself, types are in BTF or vmlinux."""
    if dump.row in BUILT:
        return ["-m", dump.vmlinux, dump.path]
    if dump.file != "qemu.raw":
        return [dump.path]
    return ["-I", "raw", "--arch", "arm64", "--ram-base", "0x40000000", dump.path]


def few(dump: LabDump) -> int:
    """Every guest has more tasks."""
    return 40 if dump.row in BUILT else 80


def newer_gdb(core: Path, offset: str, vmlinux: Path, *commands: str) -> tuple[dict[int, list[int]], str]:
    """Return addresses of each thread's frames, and what ``commands`` print."""
    given = [
        "set debuginfod enabled off",
        "set width 0",
        f"core-file /mnt/core/{core.name}",
        f"symbol-file -o {offset} /mnt/kernel/{vmlinux.name}",
        "python import os; os.environ['KD_ANSWER'] = '/mnt/core/stacks.json'",
        "source /mnt/tests/gdb_stacks.py",
        *commands,
    ]
    argv = [GDB_MULTIARCH, "-nx", "-nh", "-batch"]
    for command in given:
        argv += ["-ex", command]
    binds = {core.parent: "/mnt/core", vmlinux.parent: "/mnt/kernel", HERE: "/mnt/tests"}
    shown = run_in_root(tool_root("trixie"), argv, binds=binds, timeout=600)
    assert "internal-error" not in shown.stdout + shown.stderr
    answer = core.parent / "stacks.json"
    assert answer.exists(), shown.stdout[-2000:] + shown.stderr[-2000:]
    assert "warning" not in shown.stderr.lower(), shown.stderr[-2000:]
    stacks = {int(lwp): frames for lwp, frames in json.loads(answer.read_text()).items()}
    answer.unlink()
    return stacks, shown.stdout


@dataclass(frozen=True)
class Threads:
    """A velf with a thread a task, and what gdb shows of each: return addresses, and the text of ``bt``."""

    dump: LabDump
    summary: dict
    stacks: dict[int, list[int]]
    shown: dict[int, str]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def threads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threads]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("arm64") / "velf"
    more: list[str | Path] = ["-p", "-m", dump.vmlinux, "--json", "-o", velf]
    if dump.file == "qemu.raw":
        more += ["--cpu-regs", dump.directory / "registers.txt"]
    done = kdump_elftool("tovelf", *words_for(dump), *more)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["warnings"] == []
    stacks, shown = newer_gdb(velf, summary["kaslr_offset"], dump.vmlinux, "thread apply all bt")
    velf.unlink()
    yield Threads(dump, summary, stacks, by_thread(shown))


def test_every_task_of_the_guest_is_a_thread(threads: Threads) -> None:
    """And an idle task for each CPU; workers of the kernel come and go by themselves."""
    told = {task["tid"]: task["comm"] for task in threads.dump.truth["tasks"]}
    expected = set(told) | {-cpu - 1 for cpu in range(CPUS)}
    listed = kdump_elftool("ps", *words_for(threads.dump), "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    comms = {task["lwp"]: task["comm"] for task in json.loads(listed.stdout)["tasks"]}
    assert set(comms) == set(threads.stacks)
    for lwp in set(comms) ^ expected:
        assert comms.get(lwp, told.get(lwp, "")).startswith("kworker"), lwp
    assert threads.summary["nr_threads"] == len(comms) > few(threads.dump)


def test_frames_have_names_and_lines(threads: Threads) -> None:
    """Sleeping tasks stand in schedule; each CPU in its panic, its idle loop, or wherever it was stopped."""
    on_cpu = {thread["lwp"] for thread in threads.summary["threads"]}
    assert len(on_cpu) == CPUS
    schedule = r"^#[1-9] .*\b__schedule \(.* at kernel/sched/core\.c:\d+$"
    asleep = {lwp: text for lwp, text in threads.shown.items() if lwp not in on_cpu}
    new = [lwp for lwp, text in asleep.items() if not re.search(schedule, text, re.M)]
    assert len(new) <= 1, {lwp: asleep[lwp] for lwp in new}  # one that never ran is in ret_from_fork
    assert threads.dump.scenario != "kdump" or not new
    whole = "\n".join(threads.shown.values())
    if threads.dump.scenario == "kdump":
        crasher = threads.dump.truth["crasher"]["pid"]
        for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger", "vfs_write", "el0_svc"):
            assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", threads.shown[crasher]), function
    assert re.search(r"\bdo_idle\b.* at kernel/sched/idle\.c:\d+", whole)
    assert re.search(r"\bdo_wait\b.* at kernel/exit\.c:\d+", threads.shown[1])


@pytest.mark.parametrize("dump", WITH_NOTES, ids=lambda dump: dump.id)
def test_tasks_and_frames_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    """Return addresses of every sleeping task, signatures taken off, without vmlinux where there is BTF."""
    dump.check()
    judged = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, tmp_path)
    velf = tmp_path / "velf"
    done = kdump_elftool("tovelf", "-p", "-o", velf, *words_for(dump), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    stacks, _ = newer_gdb(velf, json.loads(done.stdout)["kaslr_offset"], dump.vmlinux)
    velf.unlink()
    assert set(stacks) == set(map(int, judged["tasks"]))
    compared = 0
    for lwp, frames in judged["stacks"].items():
        ours = stacks[int(lwp)]
        if int(lwp) < 0:  # gdb knows nothing of the code that started them, and goes on without a mask
            ours = list(itertools.takewhile(lambda pc: pc >= KERNEL, ours))
        length = min(len(frames), len(ours))
        assert length >= min(5, len(frames)), lwp
        assert ours[:length] == frames[:length], (lwp, list(map(hex, frames)), list(map(hex, ours)))
        compared += length
    assert compared > 5 * len(stacks)


@pytest.mark.parametrize("dump", WITH_NOTES, ids=lambda dump: dump.id)
def test_translations_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    """Also user memory of a process, by its own table, with the kernel's addresses beside it."""
    dump.check()
    addresses = mapped_addresses(dump)
    markers = dump.truth["markers"]
    judged = ask_drgn(dump, tmp_path, addresses=addresses, pids=[marker["pid"] for marker in markers])
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        assert kernel.identity.form.name == FORMS.get(dump.row.split(".")[0], "arm64 4 KB pages, 48-bit")
        assert kernel.identity.verified
        assert [kernel.translate(opened, address).paddr for address in addresses] == judged["paddrs"]
        memory = kernel.virtual(opened)
        data = [
            None if known is None else memory.read(at, 16).hex()
            for at, known in zip(addresses, judged["bytes"], strict=True)
        ]
    assert data == judged["bytes"]
    assert sum(known is not None for known in data) > 0.98 * ADDRESSES
    for marker in markers:
        table, at = f"{judged['pgds'][str(marker['pid'])]:#x}", marker["vaddr"].removeprefix("0x")
        stext = dump.truth["kallsyms"]["_stext"].removeprefix("0x")
        both = kdump_elftool("virttophys", "-P", table, "-i", dump.path, at, stext)
        assert both.returncode == 0, both.stderr
        own = kdump_elftool("virttophys", "-i", dump.path, stext)
        assert both.stdout.splitlines()[1] == f"{stext} {own.stdout.strip()}"
        read = kdump_elftool(
            "dumpmem", "-P", table, "-i", dump.path, at, f"{len(marker['text']):x}", "--json"
        )
        (piece,) = json.loads(read.stdout)["pieces"]
        assert bytes.fromhex(piece["hex"]).decode() == marker["text"]
        assert kdump_elftool("virttophys", "-i", dump.path, at).stdout == "unmapped\n"


@pytest.mark.parametrize("dump", WITH_NOTES, ids=lambda dump: dump.id)
def test_what_pages_are_is_drgns(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    judged = drgn_says("oracle_pages.py", dump.path, dump.vmlinux, tmp_path, seed=SEED, count=FRAMES)
    codes, known = classified(dump.path)
    wrong = [
        (hex(pfn), theirs, ours)
        for pfn, theirs in judged["frames"]
        if (ours := Category(codes[pfn]).name if known[pfn] else "UNKNOWN") != theirs
    ]
    assert not wrong, f"{len(wrong)} of {FRAMES}: {wrong[:10]}"
    seen = Counter(category for _, category in judged["frames"])
    assert all(seen[name] for name in ("KEPT", "FREE", "CACHE", "USER")), seen
    assert int((codes == Category.FREE).sum()) == judged["free"]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_info_and_log_are_the_guests(dump: LabDump) -> None:
    """Every one of these kernels was moved by KASLR."""
    done = kdump_elftool("info", *words_for(dump), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["arch"], told["release"]) == ("arm64", dump.truth["release"])
    assert int(told["kaslr_offset"], 16) != 0
    if dump.scenario == "kdump":
        assert told["panic_pid"] == dump.truth["crasher"]["pid"]
        assert told["panic_message"] == "sysrq triggered crash"
    done = kdump_elftool("dmesg", "-r", *words_for(dump))
    assert (done.returncode, done.stderr) == (0, "")
    lines, written = done.stdout.splitlines(), [log_text(line.encode()) for line in dump.truth["dmesg"]]
    first = written.index(lines[0])
    assert lines[: len(written) - first] == written[first:]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_vminfo_has_what_is_missing(dump: LabDump) -> None:
    done = kdump_elftool("vminfo", *words_for(dump))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines())
    size = re.search(r"-(\d+)k\.", dump.row)
    assert int(lines["PAGESIZE"]) == (int(size[1]) if size else 4) << 10
    assert {"OFFSET(thread_struct.cpu_context)", "OFFSET(cpu_context.pc)"} <= lines.keys()


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_reduced_and_in_place(dump: LabDump, tmp_path: Path) -> None:
    """topelf's file, as ELF and kdump-compressed; changed in place gdb shows all tasks; and back again."""
    small, packed = tmp_path / "small", tmp_path / "packed"
    done = kdump_elftool("topelf", "-q", "-l", "kernel", "--format", "kdump", "-o", packed, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    done = kdump_elftool("topelf", "-q", "-l", "kernel", "-o", small, packed)
    assert done.returncode == 0, done.stderr
    assert small.stat().st_size < dump.path.stat().st_size // 3
    checksum = hashlib.sha256(small.read_bytes()).hexdigest()
    done = kdump_elftool("tovelf", "--json", "--in-place", "-p", "-m", dump.vmlinux, small)
    assert done.returncode == 0, done.stderr
    offset = json.loads(done.stdout)["kaslr_offset"]
    stacks, shown = newer_gdb(small, offset, dump.vmlinux, "p linux_banner")
    assert dump.truth["release"] in shown
    assert len(stacks) > few(dump)
    assert sum(len(stack) > 4 for stack in stacks.values()) > 0.9 * len(stacks)
    done = kdump_elftool("tovelf", "-q", "--undo", small)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(small.read_bytes()).hexdigest() == checksum
