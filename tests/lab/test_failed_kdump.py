"""A crash kernel that hung, dumped from outside: two kernels in one memory, and no VMCOREINFO note.

The first kernel's account is truth.json, the second's what its init printed on the console.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from lab.truth import task_comm
from tests.lab.dumps import LabDump, drgn_says, gdb, kdump_elftool, selected_rows

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMPS = [
    LabDump(row.name, row.scenario, "qemu.elf") for row in selected_rows() if row.scenario == "failed-kdump"
]
CRASHED, CRASH = "1", "2"
MINE = ("init", "sleep", "worker", "spinner", "crasher", "sh")
"""Tasks of the guest's own: they don't come and go as kernel workers do."""


@dataclass(frozen=True)
class Failed:
    """The dump, and what ``info --json`` says of it."""

    dump: LabDump
    info: dict[str, Any]

    @cached_property
    def console(self) -> str:
        return (self.dump.directory / "console.log").read_text("utf-8", "replace")

    def tasks(self, kernel: str) -> set[tuple[int, str]]:
        """Thread numbers and names as the kernel's own guest listed them."""
        if kernel == CRASHED:
            return {(task["tid"], task["comm"]) for task in self.dump.truth["tasks"]}
        listed = re.findall(r"LAB-SECOND task (\d+) ([^\r\n]*)", self.console)
        return {(int(pid), task_comm(name)) for pid, name in listed}

    def text(self, kernel: str) -> int:
        """Where ``_text`` is by the kernel's own /proc/kallsyms."""
        if kernel == CRASHED:
            return int(self.dump.truth["kallsyms"]["_text"], 16)
        (address,) = re.findall(r"LAB-SECOND _text ([0-9a-f]{16})", self.console)
        return int(address, 16)

    def vmcoreinfo(self, kernel: str, scratch: Path) -> Path:
        """The text of one of the two, cut out of the dump where ``info`` says it is."""
        where = self.info["kernels"][int(kernel) - 1]["vmcoreinfo"]
        paddr = int(where.rpartition(" ")[2], 16)
        with self.dump.path.open("rb") as file:
            for segment in ELFFile(file).iter_segments("PT_LOAD"):
                if 0 <= paddr - segment["p_paddr"] < segment["p_filesz"]:
                    file.seek(segment["p_offset"] + paddr - segment["p_paddr"])
                    data = file.read(4096)
        path = scratch / "vmcoreinfo"
        path.write_bytes(re.match(rb"[\n -~]*", data)[0])
        return path


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def failed(request: pytest.FixtureRequest) -> Failed:
    dump: LabDump = request.param
    dump.check()
    done = kdump_elftool("info", dump.path, "--json")
    assert done.returncode == 0, done.stderr
    return Failed(dump, json.loads(done.stdout))


@pytest.fixture(params=[CRASHED, CRASH], ids=["crashed", "crash kernel"])
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def converted(failed: Failed, velf: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The summary and gdb's command for symbols."""
    vmlinux = failed.dump.vmlinux
    done = kdump_elftool(
        "tovelf", *options, "-i", failed.dump.path, "-m", vmlinux, "-o", velf, "-l", "all", "--json"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    return summary, f"symbol-file -o {summary['kaslr_offset']} {vmlinux}"


def test_the_dump_has_no_note_and_two_kernels(failed: Failed) -> None:
    shown = subprocess.run(["readelf", "-nW", failed.dump.path], capture_output=True, text=True, check=True)
    assert "VMCOREINFO" not in shown.stdout
    assert shown.stdout.count("NT_PRSTATUS") == 2
    crashed, crash = failed.info["kernels"]
    release = failed.dump.truth["release"]
    assert (crashed["release"], crash["release"]) == (release, release)
    assert crashed["build_id"] == crash["build_id"]
    assert (crashed["verified"], crash["verified"]) == (True, True)
    assert crashed["pgt_root"] != crash["pgt_root"]
    assert (crashed["crash_kernel_of"], crash["crash_kernel_of"]) == (None, 1)
    for kernel, found in ((CRASHED, crashed), (CRASH, crash)):
        assert int(found["kaslr_offset"], 16) == failed.text(kernel) - 0xFFFFFFFF81000000
    # the crash kernel has all it needs within what the first kernel reserved
    (reserve,) = [entry for entry in failed.dump.truth["iomem"] if entry["name"] == "Crash kernel"]
    start, last = int(reserve["start"], 16), int(reserve["end"], 16)
    assert [start <= int(found["pgt_root"], 16) <= last for found in (crashed, crash)] == [False, True]


def test_the_default_is_the_crashed_one_and_why(failed: Failed) -> None:
    assert [kernel["chosen"] for kernel in failed.info["kernels"]] == [True, False]
    (warning,) = failed.info["warnings"]
    assert "more than one kernel is in memory: taken is 1, as its crash kernel is 2; --kernel N" in warning
    assert failed.info["panic_message"] == "sysrq triggered crash"
    assert failed.info["panic_pid"] == failed.dump.truth["crasher"]["pid"]
    shown = kdump_elftool("info", failed.dump.path).stdout
    assert re.search(r"(?m)^cpus: +2, 1 of them in another kernel$", shown)
    assert len(re.findall(r"(?m)^kernel [12]: ", shown)) == 2


def test_dmesg(failed: Failed, kernel: str) -> None:
    done = kdump_elftool("dmesg", "--kernel", kernel, failed.dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert ("Kernel panic - not syncing: sysrq triggered crash" in done.stdout) == (kernel == CRASHED)
    assert ("lab: the crash kernel saves nothing" in lines[-1]) == (kernel == CRASH)
    assert ("elfcorehdr=" in done.stdout) == (kernel == CRASH)
    console = set(failed.console.replace("\r", "").splitlines())
    assert len(console.intersection(lines)) > 200


def test_ps(failed: Failed, kernel: str) -> None:
    done = kdump_elftool("ps", "--kernel", kernel, "--json", failed.dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    ours = {(task["tid"], task["comm"]) for task in json.loads(done.stdout)["tasks"] if task["lwp"] > 0}
    truth = failed.tasks(kernel)
    assert len(truth) > 40
    # kernel workers come and go by themselves
    assert all(comm.startswith("kworker") for _, comm in ours ^ truth), ours ^ truth
    assert {task for task in truth if task[1] in MINE} <= ours


def test_ps_is_drgns(failed: Failed, kernel: str, tmp_path: Path) -> None:
    """drgn reads the original file, given the text that the file itself has in memory."""
    note = failed.vmcoreinfo(kernel, tmp_path)
    judged = drgn_says("oracle_tasks.py", failed.dump.path, failed.dump.vmlinux, tmp_path, str(note))
    theirs = judged["tasks"]
    done = kdump_elftool("ps", "--kernel", kernel, "--json", failed.dump.path)
    ours = {
        str(task["lwp"]): [task["pid"], task["comm"], int(task["task"], 16)]
        for task in json.loads(done.stdout)["tasks"]
    }
    assert ours == {lwp: [tgid, comm, at] for lwp, (tgid, comm, _, at) in theirs.items()}


@pytest.mark.parametrize("options", [(), ("-p",)], ids=["cpus", "tasks"])
def test_the_crashed_kernels_cpus(failed: Failed, tmp_path: Path, options: tuple[str, ...]) -> None:
    """What it saved of them when it died: the panic in one, the busy loop in the other."""
    velf = tmp_path / "velf"
    summary, symbols = converted(failed, velf, "--kernel", CRASHED, *options)
    (warning,) = summary["warnings"]
    assert "1 of 2 CPUs were in another kernel: the registers are those that this one saved" in warning
    assert int(summary["kaslr_offset"], 16) == failed.text(CRASHED) - 0xFFFFFFFF81000000
    shown = gdb(f"core-file {velf}", symbols, "info threads", "thread apply 1 2 bt")
    crasher = failed.dump.truth["crasher"]["pid"]
    stack = re.search(rf"(?ms)^Thread \d \(LWP {crasher}\):\n(.*?)(?=^Thread |\Z)", shown.stdout)
    assert stack, shown.stdout
    for function in ("__crash_kexec", "panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", stack[1]), shown.stdout + shown.stderr
    threads = re.findall(r"(?m)^.{2}\d+ +LWP (-?\d+) ", shown.stdout)
    assert len(threads) == len(set(threads)) == (2 if not options else summary["nr_threads"])
    other = next(int(lwp) for lwp in threads[:2] if int(lwp) != crasher)
    assert other == -1 or other in {tid for tid, comm in failed.tasks(CRASHED)}
    velf.unlink()


@pytest.mark.parametrize("options", [(), ("-p",)], ids=["cpus", "tasks"])
def test_the_crash_kernels_cpu(failed: Failed, tmp_path: Path, options: tuple[str, ...]) -> None:
    """It has one CPU, whose registers are QEMU's; the other one's are not its business."""
    velf = tmp_path / "velf"
    summary, symbols = converted(failed, velf, "--kernel", CRASH, *options)
    (warning,) = summary["warnings"]
    assert "1 of 2 CPUs were in another kernel: their registers are left out" in warning
    assert int(summary["kaslr_offset"], 16) == failed.text(CRASH) - 0xFFFFFFFF81000000
    shown = gdb(f"core-file {velf}", symbols, "info threads", "thread apply 1 bt")
    assert re.search(r"\bdo_idle\b.* at [^\n]*idle\.c:\d+", shown.stdout), shown.stdout + shown.stderr
    threads = re.findall(r"(?m)^.{2}\d+ +LWP (-?\d+) ", shown.stdout)
    assert threads[0] == ("-1" if options else "1")  # its CPU 0, whatever QEMU's number
    assert len(threads) == summary["nr_threads"]
    velf.unlink()


def test_a_pelf_has_the_crashed_kernels_cpus(failed: Failed, tmp_path: Path) -> None:
    """Its registers, and its VMCOREINFO: nothing is left of the other kernel's."""
    pelf, velf = tmp_path / "pelf", tmp_path / "velf"
    done = kdump_elftool("topelf", "--kernel", CRASHED, "-i", failed.dump.path, "-o", pelf)
    assert done.returncode == 0, done.stderr
    assert pelf.stat().st_size < failed.dump.path.stat().st_size / 2
    again = kdump_elftool("tovelf", "-i", pelf, "-m", failed.dump.vmlinux, "-o", velf, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    offset = json.loads(again.stdout)["kaslr_offset"]
    shown = gdb(f"core-file {velf}", f"symbol-file -o {offset} {failed.dump.vmlinux}", "thread apply all bt")
    assert re.search(r"\bsysrq_handle_crash\b.* at ", shown.stdout), shown.stdout
    os.unlink(velf)
    os.unlink(pelf)
