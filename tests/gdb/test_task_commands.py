"""The commands about tasks on a synthetic core, which needs no symbols: what they show, and nonsense."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, SymbolColumns, symbol_file
from tests.builders import btf as b
from tests.builders.check import read_core
from tests.builders.dwarf_text import debug_file
from tests.builders.random_btf import converted
from tests.builders.task_kernel import AREAS, IDLE_1, PERCPU, RQ, RUNQUEUES, TaskKernel, make_task_kernel
from tests.builders.tasks import OFFSETS
from tests.builders.tools import GDB, gdb_batch, run_command
from tests.gdb.test_commands import HOSTILE

pytestmark = pytest.mark.gdb

WAITER, LOCK = 0x2000, 0x1000
LAYOUT = {
    "mutex.owner": 0,
    "mutex.wait_list": 16,
    "mutex_waiter.list": 0,
    "mutex_waiter.task": 16,
    "task_struct.flags": 0x2C,
}
COMMANDS = ("kd-info", "kd-bt all", "kd-bt 2", "kd-task 1 2 -1", "kd-blocked", "kd-percpu runqueues")


def make_core(folder: Path, made: TaskKernel, *options: str) -> Path:
    (folder / "dump").write_bytes(made.kernel.dump())
    lines = "".join(f"OFFSET({name})={value}\n" for name, value in LAYOUT.items())
    (folder / "extra").write_text(made.extra + lines)
    velf = folder / "velf"
    words = (str(folder / "dump"), "-e", str(folder / "extra"), "-o", str(velf), *options)
    assert run_command("tovelf", *words).returncode == 0
    return velf


def in_gdb(core: Path, *commands: str) -> list[str]:
    """What each command shows, errors included."""
    assert GDB is not None
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    marked = [each for command in commands for each in ("echo ==\\n", command)]
    argv = [GDB, "-nx", "-batch"]
    for command in (f"source {gdbinit}", f"core-file {core}", *marked):
        argv += ["-ex", command]
    run = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=60
    )
    assert "Traceback" not in run.stdout and "Python Exception" not in run.stdout, run.stdout
    return run.stdout.split("==\n")[1:]


def block(made: TaskKernel, tid: int, holder: int) -> int:
    """A task in state D at a mutex that another one holds; returns where the mutex is."""
    stack = made.tasks.base + 0x10000 * (tid + 1)
    lock, waiter = stack + LOCK, stack + WAITER
    made.put(tid, "__state", struct.pack("<I", 2))
    made.write(lock, struct.pack("<QQQQ", made.task_of(holder) | 1, 0, waiter, waiter))
    made.write(waiter, struct.pack("<QQQ", lock + 16, lock + 16, made.task_of(tid)))
    return lock


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Path:
    return make_core(tmp_path_factory.mktemp("core"), make_task_kernel([1, 3, 1, 2]), "-p")


def test_each_task_has_a_backtrace(core):
    (shown,) = in_gdb(core, "kd-bt all")
    owners = re.findall(r"(-?\d+) (\S+(?: \d+)?) \(\S(, on CPU \d)?\)", shown)
    # of the idle task of CPU 0 no registers were saved
    assert sorted(int(lwp) for lwp, _, _ in owners) == [-2, 1, 2, 3, 4, 5, 6, 7]
    assert {int(lwp) for lwp, _, cpu in owners if cpu} == {1, -2}
    for lwp in (2, 3, 4):
        assert f"#0  0x{0x1000 * lwp + 6:016x} in ?? ()" not in shown  # no kernel's address: user space
        assert f"(in user space at {0x1000 * lwp + 6:#x})" in shown


def test_a_process_is_all_its_threads(core):
    process, thread, cpu, sleeping, none = in_gdb(
        core, "kd-bt 2", "kd-bt 3", "kd-bt cpu=1", "kd-bt state=DS", "kd-bt state=D"
    )
    assert re.findall(r"(\d) task \d", process) == ["2", "3", "4"]
    assert re.findall(r"(\d) task \d", thread) == ["3"]
    assert re.findall(r"(-?\d) (?:swapper/\d|task \d)", cpu) == ["1", "-2"]
    assert len(re.findall(r"(-?\d) (?:swapper/\d|task \d)", sleeping)) == 8
    assert none == "there is no such task\n"


def test_cpus_of_a_core_without_tasks(tmp_path):
    """Its threads are the CPUs in their order, whatever gdb's numbers are."""
    core = make_core(tmp_path, make_task_kernel([1, 3, 1, 2]))
    threads, both, first, second, none = in_gdb(
        core, "info threads", "kd-bt all", "kd-bt cpu=0", "kd-bt cpu=1", "kd-bt cpu=2"
    )
    lwps = re.findall(r"LWP (-?\d+)", threads)
    assert len(lwps) == 2
    for cpu, shown in enumerate((first, second)):
        owner = f"{lwps[cpu]} CPU (?, on CPU {cpu})"
        assert shown.startswith(f"1 task: {owner}\n#0 ") and owner in both
        assert "tovelf -p" in shown
    assert none.startswith("there is no such task; the core has what the CPUs ran and no other task")


def test_task(core):
    (shown,) = in_gdb(core, "kd-task 3")
    made = make_task_kernel([1, 3, 1, 2])
    assert shown.splitlines() == [
        f"task:      {made.task_of(3):#x}",
        "comm:      task 3",
        "pid:       3, process 2",
        "state:     S, last on CPU 1",
        "flags:     0x0",
        f"stack:     {made.tasks.base + 0x40000:#x}",
        f"parent:    0 swapper/0, {made.tasks.base:#x}",
    ]


def test_what_has_ended(tmp_path):
    """The only thread of a process, and the first one of another: they are there, and have no backtrace."""
    made = make_task_kernel([1, 3, 1, 2])
    for tid in (2, 5):
        made.bury(tid)
    for options in (("-p",), ()):
        core = make_core(tmp_path, made, *options)
        listed, task, blocked, info, *traces = in_gdb(
            core, "ps -s Z", "kd-task 5", "kd-blocked 5", "kd-info", "kd-bt 5", "kd-bt 2", "kd-bt state=Z"
        )
        assert re.findall(r"^ +\d+ +(\d+) +\d+ +Z +\d (0x\w+) task", listed, re.M) == [
            (str(tid), f"{made.task_of(tid):#x}") for tid in (2, 5)
        ]
        assert "state:     Z, last on CPU 1\n" in task
        assert "stack:     none: the task has ended\n" in task
        assert blocked.startswith("5 task 5 (Z) has ended\n")
        assert re.search(r"^tasks: +\d: .*\b2 Z", info, re.M)
        if options:
            one, process, both = traces
            assert one == "5 task 5 (Z) has ended: it has no stack\n"
            assert re.findall(r"(\d) task \d", process) == ["3", "4", "2"]
            assert both.splitlines() == [f"{tid} task {tid} (Z) has ended: it has no stack" for tid in (2, 5)]
        else:
            assert all("the core has what the CPUs ran and no other task" in each for each in traces)


def test_percpu(core):
    base = make_task_kernel([1, 3, 1, 2]).kernel.bases["page_offset"]
    every, one, other, typed = in_gdb(
        core, "kd-percpu runqueues", "kd-percpu runqueues 1", "kd-percpu nothing", "kd-percpu runqueues.curr"
    )
    addresses = [base + area + RUNQUEUES for area in AREAS]
    assert every.splitlines() == [f"CPU {cpu}: {at:#x}" for cpu, at in enumerate(addresses)]
    assert one.splitlines() == [f"CPU 1: {addresses[1]:#x}"]
    assert "no symbol nothing" in other
    assert "the type of runqueues is not known to gdb" in typed


def test_functions(core):
    made = make_task_kernel([1, 3, 1, 2])
    task, current, percpu, container, nobody = in_gdb(
        core,
        "output/x $kd_task(3)",
        "output/x $kd_current(0)",
        'output/x $kd_percpu("runqueues", 1)',
        'output $kd_container_of(16, "struct task_struct", "tasks")',
        "output $kd_task(99)",
    )
    assert int(task, 16) == made.task_of(3)
    assert int(current, 16) == made.task_of(1)
    assert int(percpu, 16) == made.kernel.bases["page_offset"] + AREAS[1] + RUNQUEUES
    assert "gdb knows no struct task_struct with a member tasks" in container
    assert "there is no task 99" in nobody


@pytest.fixture(scope="module")
def types(tmp_path_factory) -> Path:
    """A file of debugging information; ``record`` is a task by other names."""
    w = b.BtfWriter()
    char, byte = w.integer("char", 1, 1), w.integer("unsigned char", 1)
    node = w.struct("list_head", 16, [("next", w.pointer(0), 0), ("prev", w.pointer(0), 8)])
    tasks, comm = ("tasks", node, OFFSETS["task_struct.tasks"]), OFFSETS["task_struct.comm"]
    w.struct("task_struct", 0x240, [tasks, ("comm", w.array(char, 16), comm)])
    u8 = w.add(b.TYPEDEF, "u8", byte)
    w.struct("record", 0x240, [tasks, ("address", w.array(u8, 8), comm)])
    path = tmp_path_factory.mktemp("types") / "types.elf"
    path.write_bytes(debug_file(converted(w.finish()), ElfKind(64, "<"), c.EM_X86_64))
    return path


def test_fields_of_bytes(core, types):
    """Only char is text: in an address of a device a zero ends nothing."""
    head = make_task_kernel([1, 3, 1, 2]).task_of(1) + OFFSETS["task_struct.tasks"]
    loaded = f"symbol-file {types}"
    _, text, numbers = in_gdb(
        core, loaded, f"kd-list {head:#x} task_struct tasks comm", f"kd-list {head:#x} record tasks address"
    )
    assert text.splitlines()[0].endswith('  comm = "task 2"')
    assert numbers.splitlines()[0].endswith("  address = {0x74, 0x61, 0x73, 0x6b, 0x20, 0x32, 0x0, 0x0}")


def test_in_code_of_another_language(core, types):
    """gdb's language is that of the selected frame's code: what is shown is the same in Rust."""
    head = make_task_kernel([1, 3, 1, 2]).task_of(1) + OFFSETS["task_struct.tasks"]
    commands = (
        *COMMANDS,
        f"kd-list {head:#x} task_struct tasks comm",
        "python print(hex(int(gdb.parse_and_eval('$kd_current(0)'))))",
    )
    loaded = (f"symbol-file {types}",)
    in_c, in_rust = (
        in_gdb(core, *loaded, f"set language {language}", *commands, "show language")[len(loaded) + 1 :]
        for language in ("auto", "rust")
    )
    assert in_rust[:-1] == in_c[:-1]
    assert 'comm = "task 2"' in in_rust[len(COMMANDS)]
    assert '"auto; currently c"' in in_c[-1] and '"rust"' in in_rust[-1]


def test_frames_in_code_of_another_language(tmp_path):
    """Where the kernel is is asked of gdb, which in Rust knows no symbol without debugging information."""
    text = Section(".text", c.SHF_ALLOC | c.SHF_EXECINSTR, 0x81000000, 0x2000, align=16)
    symbols = SymbolColumns.of([("_stext", 0x81000000, 0x20, c.STT_FUNC, c.STB_GLOBAL, 0)])
    path, script = tmp_path / "symbols.elf", tmp_path / "script.py"
    path.write_bytes(symbol_file(ElfKind(64, "<"), c.EM_X86_64, [text], symbols))
    script.write_text(
        "import types\n"
        "import kdump_elftool.gdbside.frame_files as f\n"
        "f._file_of = lambda pc: 'vmlinux'\n"
        "f._load = lambda name: (types.SimpleNamespace(row=hex), 0x1000)\n"
        "files = f.FrameFiles()\n"
    )
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    ask = "python print('row', files.row(0x91000010))"
    words = [f"source {gdbinit}", f"source {script}", ask, f"symbol-file -o 0x10000000 {path}", ask]
    shown = gdb_batch([*words, "set language rust", ask])
    assert re.findall("^row .*", shown, re.M) == ["row None", "row 0x1010", "row 0x1010"]


def test_blocked(tmp_path):
    """Each holds what the other waits for; a third one waits for one of them."""
    made = make_task_kernel([1, 3, 1, 2])
    locks = {tid: block(made, tid, holder) for tid, holder in ((2, 3), (3, 2), (5, 3))}
    for options in (("-p",), ()):
        core = make_core(tmp_path, made, *options)
        (shown,) = in_gdb(core, "kd-blocked")
        lines = shown.splitlines()
        assert f"    mutex at {locks[2]:#x}, held by 3 task 3 (D)" in lines
        assert f"    mutex at {locks[5]:#x}, held by 3 task 3 (D)" in lines
        assert "deadlock: 2 waits for 3 waits for 2" in lines
        assert sum(line.startswith("    mutex") for line in lines) == 3
        assert ("tovelf -p" in shown) == (not options)


@pytest.mark.parametrize(
    ("panicked", "runs", "options", "shown"),
    [
        (1, 5, ("-p",), "task 5, pid 5, on CPU 1 (thread 2)"),
        (1, 0, ("-p",), "swapper/1, pid 0, on CPU 1 (thread 2)"),
        (1, 5, (), "thread 2"),
        (0xFFFFFFFF, 5, ("-p",), "task 1, pid 1, on CPU 0 (thread 1)"),
    ],
)
def test_a_crash_that_no_log_tells_of(tmp_path, panicked, runs, options, shown):
    """Of this one there is no log: the kernel's panic_cpu has where it was, or that there was none."""
    made = make_task_kernel([1, 3, 1, 2])
    made.put(1, "cpu", bytes(4))
    if runs:
        made.kernel.ram.write(AREAS[1] + RUNQUEUES + RQ["curr"], struct.pack("<Q", made.task_of(runs)))
        made.put(runs, "on_cpu", struct.pack("<i", 1))
        made.kernel.ram.write(IDLE_1 + OFFSETS["task_struct.on_cpu"], bytes(4))
    panic_cpu = made.kernel.bases["page_offset"] + PERCPU + 0x100
    made.write(panic_cpu, struct.pack("<I", panicked))
    extra = made.extra + f"SYMBOL(panic_cpu)={panic_cpu:x}\n"
    (start,) = in_gdb(make_core(tmp_path, replace(made, extra=extra), *options), "kd-start")
    assert re.findall(r"^task: +(.*)$", start, re.M) == [shown]


def test_idle_tasks_have_names(core):
    """Their number is 0 on every CPU, so that commands have -(CPU + 1) for them, as kd-task has."""
    for command in ("kd-files", "kd-vmas"):
        first, second, third = in_gdb(core, f"{command} -1", f"{command} -2", f"{command} 3")
        assert first.startswith("task -1 swapper/0\n")
        assert second.startswith("task -2 swapper/1\n")
        assert third.startswith("task 3 task 3\n")


def test_nobody_is_blocked(core):
    assert in_gdb(core, "kd-blocked") == ["no task waits uninterruptibly\n"]


@pytest.mark.parametrize("options", [("-p",), ()], ids=["threads of all tasks", "of CPUs"])
def test_lists_that_are_damaged(tmp_path, options):
    """Every command that goes by them says so, in the same words."""
    made = make_task_kernel([1, 3, 1, 2])
    made.put(5, "tasks", struct.pack("<Q", 0x1234))
    shown = in_gdb(
        make_core(tmp_path, made, *options), "ps", "kd-task 2", "kd-blocked", "kd-info", "kd-task 7"
    )
    said = "warning: a list of tasks is damaged: some tasks may be missing\n"
    # a core with a thread for each task has a table of them
    assert [each.count(said) for each in shown] == [1, 1, 1, 0 if options else 1, 1], shown
    assert "no task waits" in shown[2]
    # 6 and 7 are reached from the other end
    assert "process" in shown[4]


def test_words_that_make_no_sense(core):
    commands = (
        *("kd-info x", "kd-bt x", "kd-bt all 1", "kd-bt cpu=x", "kd-task", "kd-task x", "kd-blocked x"),
        *("kd-percpu", "kd-percpu a b", "kd-percpu a 1 2"),
    )
    for command, shown in zip(commands, in_gdb(core, *commands), strict=True):
        assert f"that makes no sense to {command.split()[0]}" in shown


def test_only_names_are_variables(core):
    expressions = ("runqueues;shell", "&runqueues", "a->b", "1", "a[b]", "runqueues..x", "$pc", "a.b()")
    for shown in in_gdb(core, *(f"kd-percpu {expression}" for expression in expressions)):
        assert "that is no name of a variable" in shown


def test_hostile_names_are_shown_and_do_nothing(tmp_path, monkeypatch):
    made = make_task_kernel([1, 3, 1, 2])
    for tid, comm in enumerate(HOSTILE, 2):
        made.put(tid, "comm", comm.ljust(16, b"\0"))
        block(made, tid, tid % 6 + 2)
    core = make_core(tmp_path, made, "-p")
    monkeypatch.chdir(tmp_path)
    shown = "".join(in_gdb(core, *COMMANDS))
    assert re.findall(r"[^ -~\n\t]", shown) == []
    assert shown.count(r"\x1b[2J\x0ashell >x") >= 4
    assert {path.name for path in tmp_path.iterdir()} == {"dump", "extra", "velf"}


def with_table(core: Path, folder: Path, there: bytes, forged: bytes) -> bytes:
    """What its table of tasks is then, in a copy of the core."""
    data = core.read_bytes()
    assert there in data and len(there) == len(forged)
    (folder / "velf").write_bytes(data.replace(there, forged, 1))
    notes = read_core(folder / "velf").notes()
    (table,) = [desc for name, kind, desc in notes if (name, kind) == ("kdump-elftool", 2)]
    return table


@pytest.mark.parametrize(
    ("there", "forged"),
    [
        (b'"comm":"task 2"', b'"comm":["sk 2"]'),
        (b'"comm":"task 2"', b'"comm":"\\u001b"'),
        (b'"comm":"task 2"', b'"comm":"\\u202e"'),
        (b'"lwp":2,"ppid":0', b'"lwp":"","ppi":0'),
        (b'"lwp":2,"ppid":0', b'"lwp":[],"ppi":0'),
        (b'"lwp":2,', b'"lw":22,'),
        (b'"task":"0x', b'"task":"zx'),
        (b'"on_cpu":true', b'"on_cpu":1   '),
        (b'"state":"S"', b'"state":112'),
        (b'"cpu":1,"on', b'"cpu":{},"n'),
    ],
)
def test_forged_tables_are_no_traceback(core, tmp_path, there, forged):
    """The table of tasks in the core is anybody's."""
    assert json.loads(with_table(core, tmp_path, there, forged))
    shown = "".join(in_gdb(tmp_path / "velf", *COMMANDS))
    assert re.findall(r"[^ -~\n\t]", shown) == []


def test_a_table_that_is_no_json_is_none(core, tmp_path):
    with pytest.raises(ValueError):
        json.loads(with_table(core, tmp_path, b'"cpu":1', b'"cpu":{'))
    (shown,) = in_gdb(tmp_path / "velf", "kd-bt all")
    assert "the core has what the CPUs ran and no other task" in shown


def test_forged_answers_are_no_traceback(core):
    """What the core says of its kernel is anybody's as well: commands end, with errors that are meant."""
    (shown,) = in_gdb(core, f"source {Path(__file__).parent / 'forged_answers.py'}")
    assert shown.endswith("the end\n"), shown[-2000:]


def test_without_a_core():
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    shown = gdb_batch([f"source {gdbinit}", *COMMANDS, "output $kd_task(1)", "output $kd_current(0)"])
    assert shown.count("no core is open") == len(COMMANDS) + 2
    assert "Traceback" not in shown


def test_offsets_of_the_layout_are_free():
    """What these tests write does not overlap what the synthetic tasks have."""
    assert LAYOUT["task_struct.flags"] not in OFFSETS.values()
