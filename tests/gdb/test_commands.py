"""The commands of ``kdump_gdbinit`` on a synthetic core: what they show, and what they say to nonsense."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import pytest

from kdump_elftool.elf.structs import ElfKind
from tests.builders import btf as b
from tests.builders.dwarf_text import debug_file
from tests.builders.random_btf import converted
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


LINE = re.compile(r"(?:[A-Z]+\([A-Za-z0-9_.]+\)|OSRELEASE|PAGESIZE)=.*")


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("vminfo_qemu_base", ("base",)),
        ("vminfo_qemu_all", ("base", "qemu")),
        ("thread_vminfo_x86_64", ("thread",)),
    ],
)
def test_vminfo_is_that_of_the_command_line(core, command, keys):
    """The same lines in the same order, each once; and they are taken back by -e."""
    words = (str(core.parent / "dump"), "-e", str(core.parent / "extra"))
    printed = "".join(run_command("vminfo", *words, "--keys", key).stdout.decode() for key in keys)
    told = list(dict.fromkeys(printed.splitlines()))
    shown = in_gdb(core, command).partition(f"== {command}")[2].splitlines()[1:]
    assert shown == told
    assert len(told) > 3
    assert all(LINE.fullmatch(line) for line in told)
    extra = core.parent / command
    extra.write_text("\n".join(shown) + "\n")
    done = run_command("vminfo", str(core.parent / "dump"), "-e", str(extra), "--verbose")
    assert done.returncode == 0
    assert set(told) <= set(done.stdout.decode().splitlines())
    assert f"(-e {extra})".encode() in done.stderr


def test_vminfo_of_another_machine(core):
    shown = in_gdb(core, "thread_vminfo_arm")
    assert "warning: this core is not of arm" in shown
    assert "cpu_context_save" not in shown


def test_lsmod_where_the_modules_are_not_known(core):
    """The synthetic kernel has no modules, and says so; the lab's have some."""
    shown = in_gdb(core, "lsmod", "lsmod -l", "lsmod all")
    assert shown.count("the address of the list of modules is not known") == 1  # the script ends there
    assert "that makes no sense to lsmod" in in_gdb(core, "lsmod all")


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


HOSTILE = (b"\x1b[2J\nshell >x", b"\n!>pwned\n", b'"\r\x9b2J\x07', b"$(>pwned)`x`%s", b"\\n\x7f'{0}")


def test_hostile_names_are_shown_and_do_nothing(tmp_path, monkeypatch):
    """The lab's test of this name has modules and the log too."""
    made = make_task_kernel([1, 3, 1, 2])
    for tid, comm in enumerate(HOSTILE, 2):
        made.put(tid, "comm", comm.ljust(16, b"\0"))
    (tmp_path / "dump").write_bytes(made.kernel.dump())
    (tmp_path / "extra").write_text(made.extra)
    velf = tmp_path / "velf"
    words = (str(tmp_path / "dump"), "-e", str(tmp_path / "extra"))
    assert run_command("tovelf", *words, "-p", "-o", str(velf)).returncode == 0
    monkeypatch.chdir(tmp_path)
    shown = in_gdb(velf, "ps", "ps -a", "ps -t -a", "ps -n *pwned*")
    assert re.findall(r"[^ -~\n\t]", shown) == []
    assert shown.count(r"\x1b[2J\x0ashell >x") == 3
    assert {path.name for path in tmp_path.iterdir()} == {"dump", "extra", "velf", "script"}


TARGET = "python from kdump_elftool.gdbside.target import target"


def test_symbols_that_come_later_answer(core, tmp_path):
    """The hint says to load the vmlinux: what was not known before is then."""
    bare = tmp_path / "bare"
    assert run_command("tovelf", str(core.parent / "dump"), "-o", str(bare)).returncode == 0
    w = b.BtfWriter()
    w.struct("task_struct", 64, [("comm", w.array(w.integer("char", 1, 1), 16), 40)])
    types = tmp_path / "types.elf"
    types.write_bytes(debug_file(converted(w.finish()), ElfKind(64, "<")))
    ask = "python print('told', target().offset('task_struct.comm'))"
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    words = [f"source {gdbinit}", f"core-file {bare}", TARGET, ask, f"symbol-file {types}", ask, ask]
    assert re.findall(r"^told .*", gdb_batch(words), re.M) == ["told None", "told 40", "told 40"]


def test_another_core_of_the_same_name(core, tmp_path):
    velf = tmp_path / "velf"
    shutil.copy(core.parent / "cpus", velf)
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    ask = "python print('threads', len(target().tasks()))"
    copy = f"python import shutil; shutil.copy({str(core)!r}, {str(tmp_path / 'new')!r})"
    move = f"python import os; os.replace({str(tmp_path / 'new')!r}, {str(velf)!r})"
    words = [f"source {gdbinit}", f"core-file {velf}", TARGET, ask, copy, move, f"core-file {velf}", ask]
    assert re.findall(r"^threads .*", gdb_batch(words), re.M) == ["threads 0", "threads 8"]


def test_notes_that_cannot_be(core, tmp_path):
    """Nowhere in any file, or together too large: left out."""
    size = 40 << 20
    notes, headers = {}, b""
    for number in range(3):
        at = 0x1000 + number * size
        text = b"OSRELEASE=%d\n" % number
        note = struct.pack("<III", 11, size - 24, 0) + b"VMCOREINFO\0\0" + text
        notes[at] = note
        file_offset = 1 << 63 if number == 0 else at
        headers += struct.pack("<IIQQQQQQ", 4, 0, file_offset, 0, 0, size, 0, 4)
    path = tmp_path / "forged"
    with path.open("wb") as file:
        ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
        file.write(
            ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0) + headers
        )
        for at, note in notes.items():
            file.seek(at)
            file.write(note)
        file.truncate(0x1000 + 3 * size)
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    shown = gdb_batch(
        [
            f"source {gdbinit}",
            "python from kdump_elftool.gdbside.core_file import CoreFile",
            f"python print('found', CoreFile({str(path)!r}).vmcoreinfo[:12])",
        ]
    )
    assert re.findall(r"^found .*", shown, re.M) == [r"found b'OSRELEASE=1\n'"], shown


def test_a_file_that_ends_in_its_first_bytes(tmp_path):
    """As a core that was cut off while gdb had it open: no core, whatever is asked of its bytes."""
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    sizes = (0, 4, 5, 6, 15, 16)
    (tmp_path / "script.py").write_text(
        "from kdump_elftool.gdbside.core_file import CoreFile\n"
        f"for size in {sizes}:\n"
        "    try:\n"
        f"        CoreFile({str(tmp_path)!r} + '/%d' % size)\n"
        "    except ValueError as error:\n"
        "        print('ends:', error)\n"
    )
    for size in sizes:
        (tmp_path / str(size)).write_bytes(ident[:size])
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    shown = gdb_batch([f"source {gdbinit}", f"source {tmp_path / 'script.py'}"])
    assert shown.count("ends: no ELF file") == len(sizes) - 1, shown
    assert shown.count("ends: ") == len(sizes), shown


@pytest.mark.parametrize("command", ["ps", "kd-task 1", "kd-bt all"])
def test_silent_work_is_heard_of(core, command):
    """A clock by which all is slow; a terminal in the place of what gdb prints, which else hears nothing."""
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    slow = "python from kdump_elftool.gdbside.at_work import patience as p; p.quiet = 0"
    terminal = "python p.write = gdb.write"
    shown = gdb_batch(
        [f"source {gdbinit}", f"core-file {core}", slow, command, "echo --\\n", terminal, command]
    )
    said = f"({command.split()[0]} is still at work after 0 s; Ctrl-C ends it)"
    assert [said in part for part in shown.split("--\n")] == [False, True]
