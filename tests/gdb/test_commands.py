"""The commands of ``kdump_gdbinit`` on a synthetic core: what they show, and what they say to nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.task_kernel import make_task_kernel
from tests.builders.tools import gdb_batch, run_command

pytestmark = pytest.mark.gdb


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Path:
    """A velf with a thread a task, of four processes; and one without, beside it."""
    folder = tmp_path_factory.mktemp("core")
    made = make_task_kernel([1, 3, 1, 2])
    (folder / "dump").write_bytes(made.kernel.dump())
    (folder / "extra").write_text(made.extra)
    for name, *options in (("tasks", "-p"), ("cpus",)):
        words = ("-e", str(folder / "extra"), "-o", str(folder / name), *options)
        assert run_command("tovelf", str(folder / "dump"), *words).returncode == 0
    return folder / "tasks"


def in_gdb(core: Path, *commands: str) -> str:
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    script = core.parent / "script"
    script.write_text("".join(f"echo == {command}\\n\n{command}\n" for command in commands))
    shown = gdb_batch([f"source {gdbinit}", f"core-file {core}", f"source {script}"])
    assert "Traceback" not in shown
    assert "Python Exception" not in shown
    return shown


@pytest.mark.parametrize("name", ["tasks", "cpus"])
def test_ps_is_that_of_the_command_line(core, name):
    """With and without threads in the core; ps_old is the same."""
    velf = core.parent / name
    told = run_command("ps", str(core.parent / "dump"), "-e", str(core.parent / "extra")).stdout.decode()
    shown = in_gdb(velf, "ps -a", "ps", "ps_old")
    _, everything, rows, old = shown.split("== ps")
    assert everything.partition("\n")[2] == told
    assert rows.partition("\n")[2] == old.partition("\n")[2]
    assert rows.count("struct task_struct *") == 7
    assert [line.split()[0] for line in rows.splitlines()[2:]] == ["1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("words", ["-x", "-s", "-n", "1 -", "-s D -n"])
def test_words_that_make_no_sense(core, words):
    assert "that makes no sense to ps" in in_gdb(core, f"ps {words}")


def test_without_a_core(tmp_path):
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    shown = gdb_batch([f"source {gdbinit}", "ps"])
    assert "no core is open" in shown
    assert "Traceback" not in shown


def test_a_core_that_tells_nothing(core):
    """What is missing is named, with what to do."""
    bare = core.parent / "bare"
    assert run_command("tovelf", str(core.parent / "dump"), "-o", str(bare)).returncode == 0
    shown = in_gdb(bare, "ps")
    assert "the address of init_task is not known" in shown
    assert "hint: make the core with 'tovelf -m vmlinux'" in shown
