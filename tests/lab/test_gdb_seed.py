"""The seed's commands in gdb on real dumps: dmesg, ps, lsmod, vminfo_*, without a vmlinux.

Judges: the guest's own account (truth.json), its console, and drgn.  A core with hostile names in it does
nothing but show them, escaped.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.plain.needs import READERS
from kdump_elftool.safe_text import log_text, printable
from tests.builders.recording import asked_by, beyond_needs
from tests.lab.dumps import (
    GDB_MULTIARCH,
    PAGING,
    LabDump,
    drgn_says,
    gdb,
    kdump_elftool,
    one_of_each_row,
    selected_dumps,
    tells_all,
)
from tests.lab.hostile import plant
from tests.lab.in_gdb import shown_in_gdb

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

OTHERS = {"i386": "i386", "aarch64": "arm64", "arm": "arm"}
OTHERS |= dict.fromkeys(("mipsel", "mips64el", "mips", "mips64"), "mips")
"""Architectures that selected_dumps() leaves out, and what the commands call them."""
FOREIGN = [dump for dump in one_of_each_row() if dump.arch in OTHERS]
DUMPS = [dump for dump in (*selected_dumps(), *FOREIGN) if dump.file != PAGING]
COMMANDS = ("dmesg", "dmesg -r", "ps", "ps_old", "ps -a", "ps -t -a", "lsmod", "lsmod -l", "vminfo_qemu_all")
NEVER = "Traceback|^(warning: (?!Unexpected)|Error|Python)"


@dataclass(frozen=True)
class Seen:
    """A dump and what each of COMMANDS printed, lines; ``words`` are what the command line needs of it."""

    dump: LabDump
    machine: str
    words: tuple[str | Path, ...]
    velf: Path
    shown: dict[str, list[str]]

    def command_line(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = kdump_elftool(*words, *self.words)
        assert done.returncode == 0, done.stderr
        return done


def machine_of(dump: LabDump) -> str:
    return OTHERS.get(dump.arch, "x86_64")


KNOWN_TO_DRGN = [dump for dump in DUMPS if machine_of(dump) not in ("i386", "mips")]
"""Of the others it does not know how far the kernel was moved."""
SLOW = [dump for dump in one_of_each_row() if "ci" not in dump.made_by.sets and dump.arch == "x86_64"]
"""gdb reads all types of a vmlinux: not in CI."""


def words_for(dump: LabDump) -> tuple[str | Path, ...]:
    """Dumps with BTF tell their layout and their symbols themselves; others by the vmlinux."""
    if tells_all(dump):
        return (dump.path,)
    return ("-m", dump.vmlinux, *dump.operands)


def columns_of(line: str) -> tuple[bool, list[str]]:
    """Whether a row of ps is marked as running, and what it says: PID TID PPID ST CPU TASK COMM."""
    return line.startswith(">"), line.lstrip("> ").split(None, 6)


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("seed") / "velf"
    words, machine = words_for(dump), machine_of(dump)
    # gdb 13 does not get along with a core of MIPS that has no thread at all
    threads = ("-p",) if dump.file == "qemu.raw" else ()
    done = kdump_elftool("tovelf", *words, *threads, "-o", velf)
    assert done.returncode == 0, done.stderr
    shown = shown_in_gdb(velf, (*COMMANDS, f"thread_vminfo_{machine}"), never=NEVER)
    yield Seen(dump, machine, words, velf, {each: text.splitlines() for each, text in shown.items()})
    velf.unlink()


def test_dmesg_is_what_the_guest_read_from_its_kernel(seen: Seen) -> None:
    """klogctl() just before the dump gave the same lines; what came after is on the console."""
    guest = [log_text(line.encode()) for line in seen.dump.truth["dmesg"]]
    raw = seen.shown["dmesg -r"]
    first = guest.index(raw[0])
    assert len(guest) > (60 if seen.dump.is_small else 100)
    assert raw[: len(guest) - first] == guest[first:]
    added = [re.sub(r"^<\d+>", "", line) for line in raw[len(guest) - first :]]
    console = (seen.dump.directory / "console.log").read_text("utf-8", "replace")
    shown = {line.rstrip("\r") for line in console.splitlines()}
    if seen.dump.scenario not in ("live", "machine"):
        assert [line for line in added if line not in shown] == []
        assert any("Kernel panic - not syncing" in line for line in added)
    assert seen.shown["dmesg"] == [re.sub(r"^<\d+>", "", line) for line in raw]


def test_ps_lists_the_guests_tasks(seen: Seen) -> None:
    """Workers of the kernel come and go by themselves: those may differ."""
    told = {(task["tid"], printable(task["comm"].encode())) for task in seen.dump.truth["tasks"]}
    rows = [columns_of(line)[1] for line in seen.shown["ps -a"][1:]]
    listed = {(int(row[1]), row[6]) for row in rows if row[1] != "0"}
    assert len(told) > (25 if seen.dump.is_small else 30)
    assert {name for _, name in told ^ listed if not name.startswith("kworker")} == set()
    states = {task["tid"]: task["state"] for task in seen.dump.truth["tasks"]}
    same = [row for row in rows if states.get(int(row[1])) == row[3]]
    assert len(same) > 0.8 * len(states)  # the others woke up or went to sleep since
    assert [int(row[1]) for row in rows].count(0) == len({row[4] for row in rows})  # an idle task each CPU
    threads = re.findall(r"^ *(\d+)\t.*\(\(struct task_struct \*\) 0x", "\n".join(seen.shown["ps"]), re.M)
    assert sorted(map(int, threads)) == sorted(int(row[1]) for row in rows if row[1] != "0")
    assert seen.shown["ps_old"] == seen.shown["ps"]
    assert sorted(line.split()[:2] for line in seen.shown["ps -t -a"]) == sorted(
        line.split()[:2] for line in seen.shown["ps -a"]
    )


def test_ps_is_that_of_the_command_line(seen: Seen) -> None:
    assert seen.shown["ps -a"] == seen.command_line("ps").stdout.splitlines()


@pytest.mark.parametrize("seen", KNOWN_TO_DRGN, ids=lambda dump: dump.id, indirect=True)
def test_ps_is_drgns(seen: Seen, tmp_path: Path) -> None:
    """Parents, CPUs and states too.  It walks the tables of x86_64 and arm64 itself."""
    core = seen.dump.path if seen.machine in ("x86_64", "arm64") else seen.velf
    theirs: list[dict[str, Any]] = drgn_says("oracle_ps.py", core, seen.dump.vmlinux, tmp_path)
    ours = {row[5]: (marked, row) for marked, row in map(columns_of, seen.shown["ps -a"][1:])}
    assert len(theirs) == len(ours) > 30
    for task in theirs:
        comm = printable(task["comm"].encode("latin-1"))
        numbers = [str(task[name]) for name in ("pid", "tid", "ppid", "state", "cpu", "task")]
        assert ours[task["task"]] == (task["on_cpu"], [*numbers, comm]), task


def test_lsmod_is_proc_modules(seen: Seen) -> None:
    """The same modules in the same order, with the same base addresses, sizes and users."""
    modules = seen.dump.truth["modules"]
    rows = [line.split(None, 2) for line in seen.shown["lsmod"][1:]]
    assert [(row[0], int(row[1], 16)) for row in rows] == [(m["name"], int(m["addr"], 16)) for m in modules]
    long = [line.split() for line in seen.shown["lsmod -l"][1:]]
    assert [(row[0], int(row[1]), int(row[4], 16)) for row in long] == [
        (module["name"], module["size"], int(module["addr"], 16)) for module in modules
    ]
    assert all(row[3] == "Live" for row in long)


def test_vminfo_is_complete_and_usable(seen: Seen, tmp_path: Path) -> None:
    """As the command line prints it; and it overrides every source there without a change."""
    threads = f"thread_vminfo_{seen.machine}"
    told = seen.command_line("vminfo").stdout.splitlines()
    lines = [*seen.shown["vminfo_qemu_all"], *seen.shown[threads]]
    assert list(dict.fromkeys(lines)) == told
    assert not any("?" in line for line in lines)
    assert len(lines) > 60
    extra = tmp_path / "vminfo"
    extra.write_text("\n".join(lines) + "\n")
    assert seen.command_line("ps", "-e", extra).stdout.splitlines() == seen.shown["ps -a"]


def test_vminfo_of_a_vmlinux_serves_a_kernel_that_was_moved(seen: Seen, tmp_path: Path) -> None:
    """The original's own way: its lines have the addresses of linking."""
    extra = tmp_path / "vminfo"
    extra.write_text(kdump_elftool("vminfo", seen.dump.vmlinux).stdout)
    assert seen.command_line("ps", "-e", extra).stdout.splitlines() == seen.shown["ps -a"]


@pytest.mark.parametrize("dump", SLOW, ids=lambda dump: dump.id)
def test_vminfo_of_a_vmlinux_alone(dump: LabDump) -> None:
    """Before there is a core, by gdb's symbols and types: what the command line reads out of the file."""
    gdbinit = kdump_elftool("gdbinit").stdout.strip()
    machine = machine_of(dump)
    commands = ("vminfo_qemu_all", f"thread_vminfo_{machine}")
    shown = gdb(f"file {dump.vmlinux}", f"source {gdbinit}", *commands, program=GDB_MULTIARCH)
    assert "no core is open: addresses are the vmlinux's" in shown.stderr
    told = kdump_elftool("vminfo", dump.vmlinux).stdout.splitlines()
    assert len(told) > 60
    assert list(dict.fromkeys(line for line in shown.stdout.splitlines() if "=" in line)) == told


def test_readers_ask_nothing_beyond_what_a_core_answers(seen: Seen) -> None:
    with InputFile.open(str(seen.velf)) as file, InputFile.open(str(seen.dump.vmlinux)) as linked:
        vmlinux = read_vmlinux(linked) if len(seen.words) > 1 else None
        dump = open_dump(file)
        target = DumpTarget.of(dump, open_kernel(dump, KernelRequest(vmlinux=vmlinux)))
        for reader in READERS:
            assert beyond_needs(reader, asked_by(reader, target)) == set(), reader


ARGUMENTS = {
    "dmesg": ("", "-r"),
    "ps": ("", "-a", "-t -a", "-n *pwn*"),
    "lsmod": ("", "-l"),
}
"""What else a command is tried with but nothing, and a process."""
EVERYTHING = f"""python
import kdump_elftool.gdbside.loader as loader
for command in loader.COMMANDS:
    for words in {ARGUMENTS!r}.get(command.NAME, ("", "1", "all")):
        try:
            gdb.execute(command.NAME + " " + words)
        except gdb.error as error:
            print(error)
end
"""


@pytest.mark.parametrize(
    "dump", [dump for dump in DUMPS if machine_of(dump) == "x86_64"][:1], ids=lambda dump: dump.id
)
def test_hostile_names_are_shown_and_do_nothing(
    dump: LabDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escape sequences, newlines, quotes, commands: in names of tasks and modules, and in the log."""
    velf, script = tmp_path / "velf", tmp_path / "script"
    done = kdump_elftool("tovelf", "-p", dump.path, "-o", velf)
    assert done.returncode == 0, done.stderr
    texts = [re.sub(r"^<\d+>\[ *[\d.]+\] ", "", line) for line in dump.truth["dmesg"]]
    lines = [text.encode() for text in texts if len(text) > 30 and texts.count(text) == 1][-40:]
    plant(velf, lines)
    script.write_text(EVERYTHING)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    gdbinit = kdump_elftool("gdbinit").stdout.strip()
    shown = gdb(f"source {gdbinit}", f"core-file {velf}", f"source {script}")
    assert [
        char for char in shown.stdout + shown.stderr if not " " <= char <= "~" and char not in "\n\t"
    ] == []
    assert "Traceback" not in shown.stderr
    assert sorted(tmp_path.iterdir()) == before
    named, logged = (shown.stdout.count(each) for each in (r"\x1b]0;pwn\x07\x0d", "\\x0ashell >pwned"))
    assert named > 5 and logged > 5
    assert not re.search(r"^(?:shell|!)", shown.stdout, re.M)
    velf.unlink()
