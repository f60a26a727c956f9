"""crash and drgn on what this tool wrote: the same tasks and the same backtraces as on the dump itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from lab.roots import run_in_root
from tests.lab.dumps import LabDump, drgn_says, kdump_elftool, selected_dumps, tool_root

pytestmark = [pytest.mark.lab, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")
STOPPED = [dump for dump in selected_dumps() if dump.scenario in ("panic", "live")]
KERNEL_HALF = 1 << 63
CORES = {
    "pelf": ("topelf",),
    "velf": ("tovelf",),
    "velf without a page left out": ("tovelf", "-l", "all"),
    "velf with a thread for each task": ("tovelf", "-p"),
}


def run_crash(root: Path, core: Path, scratch: Path, vmlinux: Path) -> subprocess.CompletedProcess[str]:
    commands = scratch / "commands"
    commands.write_text("ps\nbt -a\nquit\n")
    binds = {vmlinux.parent: "/mnt/kernel", core.parent.resolve(): "/mnt/core", scratch: "/mnt/scratch"}
    kernel = f"/mnt/kernel/{vmlinux.name}"
    argv = ["crash", "-i", "/mnt/scratch/commands", kernel, f"/mnt/core/{core.name}"]
    return run_in_root(root, argv, binds=binds, timeout=300)


def ask_crash(root: Path, core: Path, scratch: Path, vmlinux: Path = DUMP.vmlinux) -> str:
    done = run_crash(root, core, scratch, vmlinux)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout[done.stdout.index("crash> ps") :]


@pytest.fixture(scope="module")
def of_the_dump(tmp_path_factory: pytest.TempPathFactory) -> str:
    DUMP.check()
    return ask_crash(tool_root("sid"), DUMP.path, tmp_path_factory.mktemp("scratch"))


@pytest.mark.root
@pytest.mark.parametrize("name", CORES)
def test_crash_sees_the_dump(name: str, of_the_dump: str, tmp_path: Path) -> None:
    core, scratch = tmp_path / "core", tmp_path / "scratch"
    scratch.mkdir()
    command, *options = CORES[name]
    done = kdump_elftool(command, *options, "-i", DUMP.path, "-o", core, "-q")
    assert done.returncode == 0, done.stderr
    answer = ask_crash(tool_root("sid"), core, scratch)
    core.unlink()
    assert answer == of_the_dump
    assert len(re.findall(r"^[> ]+\d+ ", answer, re.M)) > 40
    assert "sysrq_handle_crash" in answer


@pytest.mark.root
def test_crash_without_the_debug_package(of_the_dump: str, tmp_path: Path) -> None:
    made, scratch = tmp_path / "vmlinux.dump", tmp_path / "scratch"
    scratch.mkdir()
    done = kdump_elftool("mkvmlinux", DUMP.path, "-o", made, "-q")
    assert done.returncode == 0, done.stderr
    # the state of idle workers is told from others by task_state_array, whose length BTF does not have
    expected = of_the_dump.replace("  ID  ", "  UN  ")
    assert expected != of_the_dump
    assert ask_crash(tool_root("sid"), DUMP.path, scratch, made) == expected


def on_cpus(core: Path, vmlinux: Path, scratch: Path) -> dict[str, list[int] | None]:
    """drgn's frames of what each CPU runs; of user mode the first alone, since its stack is not kept."""
    found = drgn_says("oracle_tasks.py", core, vmlinux, scratch, "running")["running"]
    return {cpu: frames and as_far_as_kept(frames) for cpu, frames in found.items()}


def as_far_as_kept(frames: list[int]) -> list[int]:
    """Up to the first address of user space, that included."""
    of_user = (index for index, pc in enumerate(frames) if pc < KERNEL_HALF)
    return frames[: next(of_user, len(frames)) + 1]


@pytest.mark.parametrize("dump", STOPPED, ids=lambda dump: dump.id)
def test_drgn_wants_the_numbers_of_qemu(dump: LabDump, tmp_path: Path) -> None:
    """It looks a CPU's registers up by number: right in a velf, not in one with task threads.  The documents
    say so, and this shows it."""
    dump.check()
    velf = tmp_path / "velf"
    original = on_cpus(dump.path, dump.vmlinux, tmp_path)
    assert any(original.values())
    for options, same in (((), True), (("-p",), False)):
        done = kdump_elftool("tovelf", "-i", dump.path, *options, "-o", velf, "-q")
        assert done.returncode == 0, done.stderr
        assert (on_cpus(velf, dump.vmlinux, tmp_path) == original) is same
        velf.unlink()
