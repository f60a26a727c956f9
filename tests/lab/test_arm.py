"""Dumps of 32-bit ARM guests: tasks and frames in gdb, translations, page counts, every command.

Judges: drgn where a dump has what drgn needs (a kdump's VMCOREINFO and program headers), the walkers of
tests/builders/arm_tables.py, which know nothing of the package, and the guests' own accounts.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.arch.walker import translate
from kdump_elftool.errors import FaultError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.kernel.pages import Category
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.safe_text import log_text
from tests.builders.arm_tables import walk_long, walk_short
from tests.lab.dumps import GDB_MULTIARCH, HERE, LabDump, gdb, gdb_bytes, kdump_elftool, selected_rows
from tests.lab.test_pages import classified

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

FILES = {
    "kdump": ("vmcore",),
    "live": ("qemu.elf", "qemu-paging.elf"),
    "machine": ("qemu.elf", "qemu.stream", "qemu.raw"),
}
ROWS = [row for row in selected_rows() if row.guest.arch.name == "arm"]
DUMPS = [
    LabDump(row.name, row.scenario, file)
    for row in ROWS
    if row.scenario in FILES
    for file in FILES[row.scenario]
]
KDUMPS = [dump for dump in DUMPS if dump.file == "vmcore"]
HEADED = [dump for dump in DUMPS if dump.file != "qemu.raw"]
"""Whose files say what they are."""
SEED, ADDRESSES, FRAMES, PAGE = 20261124, 10_000, 20_000, 4096
CPUS = 2


def words_for(dump: LabDump) -> list[str | Path]:
    """What a command needs to know of a dump: raw memory says nothing itself."""
    return ["-I", "raw", "--arch", "arm", dump.path] if dump.file == "qemu.raw" else [dump.path]


def answer_of(script: str, dump: LabDump, scratch: Path, request: dict[str, object]) -> dict:
    """What drgn says of a dump."""
    answer = scratch / "answer.json"
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(dump.path), str(dump.vmlinux), str(answer)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text())


@dataclass(frozen=True)
class Threads:
    """A velf with a thread a task, and what gdb shows of each: return addresses, and the text of ``bt``."""

    dump: LabDump
    velf: Path
    summary: dict
    stacks: dict[int, list[int]]
    shown: dict[int, str]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def threads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threads]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("arm")
    velf, answer = folder / "velf", folder / "stacks.json"
    more: list[str | Path] = ["-p", "-m", dump.vmlinux, "--json", "-o", velf]
    if dump.file == "qemu.raw":
        more += ["--cpu-regs", dump.directory / "registers.txt"]
    done = kdump_elftool("tovelf", *words_for(dump), *more)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["warnings"] == []
    shown = gdb(
        f"core-file {velf}",
        f"symbol-file -o {summary['kaslr_offset']} {dump.vmlinux}",
        f"source {HERE / 'gdb_stacks.py'}",
        "set width 0",
        "thread apply all bt",
        program=GDB_MULTIARCH,
        KD_ANSWER=str(answer),
    )
    assert answer.exists(), shown.stdout[-2000:] + shown.stderr[-2000:]
    assert "warning" not in shown.stderr.lower(), shown.stderr[-2000:]
    stacks = {int(lwp): frames for lwp, frames in json.loads(answer.read_text()).items()}
    parts = re.split(r"^Thread \d+ \(.*?LWP (-?\d+)\).*$", shown.stdout, flags=re.M)
    yield Threads(dump, velf, summary, stacks, dict(zip(map(int, parts[1::2]), parts[2::2], strict=True)))
    velf.unlink()


def test_every_task_of_the_guest_is_a_thread(threads: Threads) -> None:
    """And an idle task for each CPU; workers of the kernel come and go by themselves."""
    told = {task["tid"]: task["comm"] for task in threads.dump.truth["tasks"]}
    expected = set(told) | {-cpu - 1 for cpu in range(CPUS)}
    listed = kdump_elftool("ps", *words_for(threads.dump), "-m", threads.dump.vmlinux, "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    comms = {task["lwp"]: task["comm"] for task in json.loads(listed.stdout)["tasks"]}
    assert set(comms) == set(threads.stacks)
    for lwp in set(comms) ^ expected:
        assert comms.get(lwp, told.get(lwp, "")).startswith("kworker"), lwp
    same = [lwp for lwp in told if comms.get(lwp) == told[lwp]]
    assert len(same) > 70
    assert threads.summary["nr_threads"] == len(comms)


def test_frames_have_names_and_lines(threads: Threads) -> None:
    """Sleeping tasks stand in schedule; each CPU in its panic, its idle loop, or wherever it was stopped."""
    on_cpu = {thread["lwp"] for thread in threads.summary["threads"]}
    assert len(on_cpu) == CPUS
    for lwp, text in threads.shown.items():
        if lwp not in on_cpu:
            assert re.search(
                r"^#[1-3] .*\bschedule(_idle|_timeout)? \(.* at kernel/sched/core\.c:\d+$", text, re.M
            ), (
                lwp,
                text,
            )
            assert len(threads.stacks[lwp]) >= 4
    whole = "\n".join(threads.shown.values())
    if threads.dump.scenario == "kdump":
        crasher = threads.dump.truth["crasher"]["pid"]
        for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger", "vfs_write"):
            assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", threads.shown[crasher]), function
    assert re.search(r"\bdo_idle\b.* at kernel/sched/idle\.c:\d+", whole)
    assert re.search(r"\bdo_wait\b.* at kernel/exit\.c:\d+", threads.shown[1])


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_translations_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    """Also user memory of a process, by its own table."""
    dump.check()
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        form, root, mapped = kernel.identity.form, kernel.identity.pgt_root, kernel.walked.mappings
        assert form.name == ("arm LPAE" if "lpae" in dump.row else "arm short")
        chance = random.Random(SEED)
        vaddr, size = mapped.vaddr.tolist(), mapped.size.tolist()
        rows = [chance.randrange(len(vaddr)) for _ in range(ADDRESSES)]
        addresses = [vaddr[row] + chance.randrange(size[row]) & ~0xF for row in rows]
        pids = [marker["pid"] for marker in dump.truth["markers"]]
        judged = answer_of("oracle_translate.py", dump, tmp_path, {"addresses": addresses, "pids": pids})
        assert [translate(opened.memory, form, root, address).paddr for address in addresses] == judged[
            "paddrs"
        ]
        blocks, there = kernel.virtual(opened).gather(np.array(addresses, dtype=np.uint64), 16)
    ours = [bytes(block).hex() if present else None for block, present in zip(blocks, there, strict=True)]
    known = [index for index, value in enumerate(judged["bytes"]) if value is not None]
    assert len(known) > 0.9 * ADDRESSES
    assert [ours[index] for index in known] == [judged["bytes"][index] for index in known]
    for marker in dump.truth["markers"]:
        pgd = judged["pgds"][str(marker["pid"])]
        velf = tmp_path / "user.velf"
        done = kdump_elftool("tovelf", "-q", "-l", "all", "-P", f"{pgd:#x}", "-o", velf, dump.path)
        assert (done.returncode, done.stderr) == (0, "")
        at = int(marker["vaddr"], 16)
        got = gdb_bytes(velf, [at], tmp_path, program=GDB_MULTIARCH)[at]
        assert got is not None and bytes.fromhex(got) == marker["text"].encode()[:8]


@pytest.mark.parametrize("dump", HEADED, ids=lambda dump: dump.id)
def test_mappings_are_a_plain_walkers(dump: LabDump) -> None:
    """Every page of the kernel's half, and that modules are where the guest says."""
    dump.check()
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        form, root, mapped = kernel.identity.form, kernel.identity.pgt_root, kernel.walked.mappings
        plain = walk_long if form.name == "arm LPAE" else walk_short
        expected = {
            leaf.vaddr + done: leaf.paddr + done
            for leaf in plain(lambda at, size: read_or_none(opened.memory, at, size), root)
            if leaf.vaddr >= form.kernel.start
            for done in range(0, leaf.size, PAGE)
        }
        ours = {
            vaddr + done: paddr + done
            for vaddr, paddr, size in zip(
                mapped.vaddr.tolist(), mapped.paddr.tolist(), mapped.size.tolist(), strict=True
            )
            for done in range(0, size, PAGE)
        }
        assert ours == expected
        assert len(ours) > ADDRESSES
        memory = kernel.virtual(opened)
        for module in dump.truth["modules"]:
            at = dump.truth["module_sections"][module["name"]][".gnu.linkonce.this_module"]
            assert module["name"].encode() + b"\0" in memory.read(int(at, 16), 64)


def read_or_none(memory: PhysicalMemory, paddr: int, size: int) -> bytes | None:
    try:
        return memory.read(paddr, size)
    except FaultError:
        return None


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_tasks_and_frames_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    """Return addresses of every sleeping task, up to where drgn's unwinder stops."""
    dump.check()
    judged = answer_of("oracle_tasks.py", dump, tmp_path, {})
    velf, answer = tmp_path / "velf", tmp_path / "stacks.json"
    done = kdump_elftool("tovelf", "-q", "-p", "-m", dump.vmlinux, "-o", velf, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    gdb(
        f"core-file {velf}",
        f"symbol-file {dump.vmlinux}",
        f"source {HERE / 'gdb_stacks.py'}",
        program=GDB_MULTIARCH,
        KD_ANSWER=str(answer),
    )
    stacks = json.loads(answer.read_text())
    assert set(stacks) == set(judged["tasks"])
    compared = 0
    for lwp, frames in judged["stacks"].items():
        length = min(len(frames), len(stacks[lwp]))
        assert length >= min(4, len(frames)), lwp
        assert frames[:length] == stacks[lwp][:length], (
            lwp,
            list(map(hex, frames)),
            list(map(hex, stacks[lwp])),
        )
        compared += length
    assert compared > 4 * len(stacks)


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_what_pages_are_is_drgns(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    judged = answer_of("oracle_pages.py", dump, tmp_path, {"seed": SEED, "count": FRAMES})
    codes, known = classified(dump.path)
    wrong = [
        (hex(pfn), theirs, ours)
        for pfn, theirs in judged["frames"]
        if (ours := Category(codes[pfn]).name if known[pfn] else "UNKNOWN") != theirs
    ]
    assert not wrong, f"{len(wrong)} of {FRAMES}: {wrong[:10]}"
    assert len(judged["frames"]) == FRAMES
    seen = Counter(category for _, category in judged["frames"])
    assert all(seen[name] for name in ("KEPT", "FREE", "CACHE", "USER")), seen
    assert int((codes == Category.FREE).sum()) == judged["free"]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_the_log_is_the_guests(dump: LabDump) -> None:
    done = kdump_elftool("dmesg", "-r", *words_for(dump))
    assert (done.returncode, done.stderr) == (0, "")
    lines, told = done.stdout.splitlines(), [log_text(line.encode()) for line in dump.truth["dmesg"]]
    first = told.index(lines[0])
    assert lines[: len(told) - first] == told[first:]
    assert len(told) > 100
    assert (dump.scenario == "kdump") == any("Kernel panic - not syncing" in line for line in lines)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_info(dump: LabDump) -> None:
    done = kdump_elftool("info", *words_for(dump), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["arch"] == "arm"
    assert told["release"] == dump.truth["release"]
    assert told["page_table_levels"] == (3 if "lpae" in dump.row else 2)
    assert told["coverage"]["covered_pages"] == told["coverage"]["total_pages"]
    if dump.scenario == "kdump":
        assert told["panic_pid"] == dump.truth["crasher"]["pid"]
        assert told["panic_message"] == "sysrq triggered crash"


@pytest.mark.parametrize("dump", HEADED, ids=lambda dump: dump.id)
def test_addresses_of_the_guests_symbols(dump: LabDump) -> None:
    """virttophys and dumpmem of what the guest's /proc/kallsyms names."""
    names = ("_stext", "panic", "schedule", "__switch_to")
    vaddrs = [int(dump.truth["kallsyms"][name], 16) for name in names]
    done = kdump_elftool("virttophys", "-i", dump.path, *(f"{vaddr:x}" for vaddr in vaddrs))
    assert (done.returncode, done.stderr) == (0, "")
    # PAGE_OFFSET is mapped to where the machine's memory begins
    assert done.stdout.splitlines() == [f"{vaddr:x} {vaddr - 0xC0000000 + 0x40000000:x}" for vaddr in vaddrs]
    with dump.vmlinux.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        linked = section.data()[vaddrs[2] - section["sh_addr"] :][:16]
    done = kdump_elftool("dumpmem", "-i", dump.path, f"{vaddrs[2]:x}", "10")
    assert done.returncode == 0, done.stderr
    # behind the prologue ftrace patches the call of mcount
    assert " ".join(f"{byte:02x}" for byte in linked[:12]) in done.stdout


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_reduced_and_in_place(dump: LabDump, tmp_path: Path) -> None:
    """topelf's file is one for a 32-bit machine: changed in place gdb shows all tasks; and back again."""
    small, stacks = tmp_path / "small", tmp_path / "stacks.json"
    done = kdump_elftool("topelf", "-q", "-l", "kernel", "-o", small, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert small.stat().st_size < dump.path.stat().st_size // 4
    checksum = hashlib.sha256(small.read_bytes()).hexdigest()
    done = kdump_elftool("tovelf", "-q", "--in-place", "-p", "-m", dump.vmlinux, small)
    assert (done.returncode, done.stderr) == (0, "")
    shown = gdb(
        f"core-file {small}",
        f"symbol-file {dump.vmlinux}",
        f"source {HERE / 'gdb_stacks.py'}",
        "p linux_banner",
        program=GDB_MULTIARCH,
        KD_ANSWER=str(stacks),
    )
    assert dump.truth["release"] in shown.stdout
    frames = json.loads(stacks.read_text())
    assert len(frames) > 80
    assert sum(len(stack) > 3 for stack in frames.values()) > 0.9 * len(frames)
    done = kdump_elftool("tovelf", "-q", "--undo", small)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(small.read_bytes()).hexdigest() == checksum
