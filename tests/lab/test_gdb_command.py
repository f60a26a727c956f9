"""``kdump-elftool gdb`` on real dumps: the crash with files and lines, the guest's names on the threads.

Judges: what the guest printed before it died, and gdb itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.dumps import HERE, IN_CI, LabDump, kdump_elftool, one_of_each_row, selected_rows

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

# CI has no time for the other scenarios
DUMPS = [
    dump for dump in one_of_each_row(("kdump", "panic", "live")) if not IN_CI or dump.scenario == "kdump"
]
IN_AN_ENVIRONMENT = [dump for dump in DUMPS if dump.scenario == "kdump" and dump.arch == "x86_64"]
PANIC = ("panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger")
README = HERE.parents[1] / "README.md"
DOCUMENT = HERE.parents[1] / "docs" / "gdb.md"
MEMBERS = ("kd-list modules module list name", "kd-list init_task.tasks task_struct tasks pid comm")
"""With types of the vmlinux, which gdb finds at once where it has an index: in the second run."""


@dataclass(frozen=True)
class Shown:
    """What two runs with --batch printed: the first converts, the second uses what is there."""

    dump: LabDump
    words: tuple[str | Path, ...]
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    velf: Path

    @property
    def out(self) -> str:
        return self.second.stdout.partition("--members--\n")[0]

    @property
    def members(self) -> list[list[str]]:
        """The lines of each of MEMBERS."""
        parts = self.second.stdout.partition("--members--\n")[2].split("--next--\n")
        return [part.splitlines() for part in parts[:-1]]


def state_of(path: Path) -> tuple[int, ...]:
    """All that reading a file does not change."""
    found = path.stat()
    return (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("gdb") / "the core.velf"
    words = ("gdb", "--batch", "--velf", velf, "-m", dump.vmlinux, *dump.operands)
    more = ["--", "-ex", "echo \\n--threads--\\n", "-ex", "info threads", "-ex", "echo --modules--\\n"]
    for symbol in functions_of_modules(dump):
        more += ["-ex", f"info symbol {symbol['addr']}"]
    types = ["-ex", "echo --members--\\n"]
    for command in MEMBERS if dump in IN_AN_ENVIRONMENT else ():
        types += ["-ex", command, "-ex", "echo --next--\\n"]
    with pytest.MonkeyPatch.context() as patch:
        # where nothing is in it: the first run makes the index
        patch.setenv("XDG_CACHE_HOME", str(velf.parent / "cache"))
        kernel = state_of(dump.vmlinux)
        first, second = kdump_elftool(*words, *more), kdump_elftool(*words, *more, *types)
        assert state_of(dump.vmlinux) == kernel, "the vmlinux stays as it is"
        yield Shown(dump, words, first, second, velf)
    shutil.rmtree(velf.parent)


def test_the_second_run_uses_the_core_again(shown: Shown) -> None:
    assert (shown.first.returncode, shown.second.returncode) == (0, 0), shown.first.stderr
    assert "used again" not in shown.first.stderr
    assert "was made of this dump before: used again" in shown.second.stderr
    assert shown.out == shown.first.stdout
    for done in (shown.first, shown.second):
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr


def test_the_summary_is_the_guests(shown: Shown) -> None:
    truth, lines = shown.dump.truth, shown.out.splitlines()[:5]
    assert [line.partition(":")[0] for line in lines] == [
        "release",
        "panic message",
        "task",
        "tasks",
        "commands",
    ]
    for document in (README, DOCUMENT):
        assert lines[4] in document.read_text(encoding="utf-8"), "the number of commands"
    told = [line.partition(":")[2].strip() for line in lines]
    assert told[0] == truth["release"]
    if shown.dump.scenario in ("kdump", "panic"):
        assert told[1] == "sysrq triggered crash"
        assert f"pid {truth['crasher']['pid']}," in told[2]
    else:
        assert told[1] == "none in the log"
    count, _, running = told[3].partition(", ")
    assert int(count) >= len(truth["tasks"])
    cpus = 1 if shown.dump.file == "qemu.raw" else 2
    assert running.startswith(f"{cpus} of them on a CPU")


def test_the_backtrace_has_files_and_lines(shown: Shown) -> None:
    frames, _, _ = shown.out.partition("--threads--")
    if shown.dump.scenario not in ("kdump", "panic"):
        assert re.search(r"^#0 ", frames, re.M), shown.out
        return
    for function in PANIC:
        assert re.search(rf"\b{function} \(.*\) at [^\n]*\.c:\d+", frames), shown.out
    if shown.dump.arch == "x86_64":
        # what has the registers of the process has its own name and line, whatever gdb takes it for
        assert re.search(
            r"\bentry_SYSCALL_64 \(\) at [^\n]*\.S:\d+\n#\d+ +0x[0-9a-f]{16} in \?\? \(\)", frames
        ), shown.out
    assert "signal handler" not in frames


def test_threads_have_the_guests_names(shown: Shown) -> None:
    listed = shown.out.partition("--threads--")[2].partition("--modules--")[0]
    found = dict(re.findall(r'^[* ] +\d+ +.*?LWP (-?\d+)\)? "(.*?)" ', listed, re.M))
    comms = {str(task["tid"]): task["comm"] for task in shown.dump.truth["tasks"]}
    common = found.keys() & comms.keys()
    assert len(common) >= 0.9 * len(comms)
    assert len(common) > 25
    # a task that begins another program changes its name, and its id may be used again
    others = {tid: (found[tid], comms[tid]) for tid in common if found[tid] != comms[tid]}
    assert len(others) <= 2, others
    assert sum(name.startswith("swapper") for name in found.values()) >= 1


def functions_of_modules(dump: LabDump) -> list[dict[str, str]]:
    """One of each module that the guest listed, the first that no other has the name of."""
    chosen: dict[str, dict[str, str]] = {}
    for symbol in dump.truth["module_symbols"]:
        if symbol["type"] == "t" and re.fullmatch(r"[a-z]\w+", symbol["name"]):
            chosen.setdefault(symbol["module"], symbol)
    return list(chosen.values())


def test_functions_of_modules_are_known(shown: Shown) -> None:
    wanted = functions_of_modules(shown.dump)
    answers = shown.out.partition("--modules--\n")[2].splitlines()
    assert len(answers) == len(wanted) >= 3
    names = [answer.partition(" ")[0] for answer in answers]
    # symbols that share an address are told apart by nobody
    assert sum(name == symbol["name"] for name, symbol in zip(names, wanted, strict=True)) > 0.8 * len(wanted)


@pytest.mark.parametrize("shown", IN_AN_ENVIRONMENT, ids=lambda dump: dump.id, indirect=True)
def test_lists_have_members_by_the_types_of_the_vmlinux(shown: Shown) -> None:
    """Modules in the order of the guest's own list; of the tasks those that others belong to."""
    modules, tasks = shown.members
    names = [module["name"] for module in shown.dump.truth["modules"]]
    assert [line.partition("  ")[2] for line in modules[:-1]] == [f'name = "{name}"' for name in names]
    assert modules[-1] == f"{len(names)} nodes"
    assert tasks[-1] == f"{len(tasks) - 1} nodes"
    found = {line.partition("  ")[2] for line in tasks[:-1]}
    leaders = [task for task in shown.dump.truth["tasks"] if task["pid"] == task["tid"]]
    expected = {f'pid = {task["tid"]}  comm = "{task["comm"]}"' for task in leaders}
    assert len(expected) > 25
    # these come and go
    assert [line for line in found ^ expected if not re.search('"(kworker|sleep"|sh")', line)] == []


OOPSES = {
    "oops.elf": ("panic", "asm_exc_page_fault", "sysrq_handle_crash", "__handle_sysrq"),
    "irq.elf": ("panic", "sysrq_handle_crash", "asm_common_interrupt", "do_idle"),
    "nmi.elf": ("panic", "nmi_panic", "exc_nmi", "asm_exc_nmi"),
}
"""Functions of each crash, the last called first; an NMI comes whatever the CPU is doing."""
OOPSED = [
    LabDump(row.name, row.scenario, file)
    for row in selected_rows()
    if row.scenario == "oops" and not IN_CI
    for file in OOPSES
]


@pytest.mark.parametrize("dump", OOPSED, ids=lambda dump: dump.id)
def test_the_whole_path_of_a_crash(dump: LabDump, tmp_path: Path) -> None:
    """Down to the code that was interrupted, with its file and line."""
    dump.check()
    done = kdump_elftool("gdb", "-q", "--batch", "--velf", tmp_path / "velf", "-m", dump.vmlinux, dump.path)
    (tmp_path / "velf").unlink()
    assert (done.returncode, done.stderr) == (0, "")
    frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(\S+) \(.*\) at \S+:\d+$", done.stdout, re.M)
    places = [frames.index(function) for function in OOPSES[dump.file]]
    assert places == sorted(places), done.stdout
    beyond = done.stdout.partition(f" {OOPSES[dump.file][-1]} (")[2]
    assert re.search(r"^#\d+ ", beyond, re.M), "what was interrupted"


def launch_commands(script: Path) -> list[str]:
    """What docs/gdb.md tells VS Code's C++ debugger to do, and what that does by itself before."""
    (block,) = re.findall(r"(?ms)^```json\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"))
    (configuration,) = json.loads(block)["configurations"]
    assert configuration["coreDumpPath"].endswith(".velf")
    texts = [entry["text"] for entry in configuration["customLaunchSetupCommands"]]
    assert texts == ["source /var/crash/vmcore.gdb"]
    return ["set pagination off", *(text.replace("/var/crash/vmcore.gdb", str(script)) for text in texts)]


@pytest.mark.parametrize("dump", IN_AN_ENVIRONMENT, ids=lambda dump: dump.id)
def test_in_a_development_environment(dump: LabDump, tmp_path: Path) -> None:
    """gdb's machine interface, as VS Code speaks it: threads with names, frames with lines."""
    dump.check()
    script, velf = tmp_path / "open.gdb", tmp_path / "velf"
    options = ("-p", "-q", "-m", dump.vmlinux, "-o", velf, "--gdb-script", script)
    done = kdump_elftool("tovelf", *options, dump.path)
    assert done.returncode == 0, done.stderr
    lines = [f'-interpreter-exec console "{line}"' for line in launch_commands(script)]
    lines += ["-thread-info", "-stack-list-frames 0 1000", "-gdb-exit"]
    answer = subprocess.run(
        ["gdb", "-nx", "--interpreter=mi"],
        input="".join(f"{number}{line}\n" for number, line in enumerate(lines, 1)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    velf.unlink()
    results = dict(re.findall(r"^(\d+)\^(.*)$", answer.stdout, re.M))
    assert [results[str(number)].partition(",")[0] for number in range(1, 5)] == ["done"] * 4, answer.stdout
    assert 'name="kthreadd"' in results["3"]
    crasher = dump.truth["crasher"]["pid"]
    (number,) = re.findall(rf'id="(\d+)",target-id="LWP {crasher}",name="crasher"', results["3"])
    assert f'current-thread-id="{number}"' in results["3"]
    for function in PANIC:
        assert re.search(rf'func="{function}",[^{{}}]*file="[^"]+\.c",[^{{}}]*line="\d+"', results["4"])


ENTRIES = {"x86_64": r"entry_SYSCALL_64\w*", "aarch64": "el0t_64_sync"}
WITHOUT = [dump for dump in DUMPS if dump.scenario == "kdump" and dump.arch in ENTRIES]


@pytest.mark.parametrize("dump", WITHOUT, ids=lambda dump: dump.id)
def test_without_a_vmlinux(dump: LabDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, arguments and frames out of the dump alone."""
    dump.check()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # an earlier run remembers where the vmlinux was
    done = kdump_elftool("gdb", "--batch", "--velf", tmp_path / "velf", dump.path)
    shutil.rmtree(tmp_path / "velf.symbols")
    (tmp_path / "velf").unlink()
    assert done.returncode == 0, done.stderr
    assert "names and types are the dump's own" in done.stderr
    notes = subprocess.run(["readelf", "-n", dump.vmlinux], capture_output=True, text=True).stdout
    (build_id,) = re.findall(r"Build ID: ([0-9a-f]+)", notes)
    assert re.search(
        rf"^line numbers are not in a dump: .* debuginfod-find debuginfo {build_id}$", done.stderr, re.M
    )
    assert f"pid {dump.truth['crasher']['pid']}," in done.stdout
    for function, argument in zip(PANIC, ("fmt", "key", "key", "file"), strict=True):
        # also what the compiler split off: __handle_sysrq.cold
        shown = re.search(rf"^#\d+ .* in {function}(\.\w+)? \({argument}=[^)]*\)$", done.stdout, re.M)
        assert shown, done.stdout
    assert re.search(rf"^#\d+ .* in {ENTRIES[dump.arch]} \(\)$", done.stdout, re.M), done.stdout
