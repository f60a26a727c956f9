"""Every command that ``kdump_gdbinit`` adds, on a dump of every row: an answer, or a plain refusal.

Whether an answer is right, other tests ask of some dumps; this one asks of all whether there is one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.dumps import (
    GDB,
    GDB_MULTIARCH,
    HERE,
    IN_CI,
    RAW,
    LabDump,
    gdb,
    kdump_elftool,
    selected_rows,
)

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

FILES = {"kdump": "vmcore", "pages": "vmcore", "topelf": "vmcore", "oops": "oops.elf"}
"""By scenario; of the others it is QEMU's ELF, of machines whose memory QEMU gives as it is that."""
OF_CI = ("x64-61-l4.kdump",)
ROWS = [row for row in selected_rows() if not IN_CI or row.name in OF_CI]
DUMPS = [
    LabDump(
        row.name,
        row.scenario,
        "qemu.raw" if row.guest.arch.name in RAW else FILES.get(row.scenario, "qemu.elf"),
    )
    for row in ROWS
]
BROKEN = re.compile("Traceback|Python Exception|Error occurred|Error while executing Python|internal-error")
REFUSED = re.compile(r"[^\n]+(\nhint: [^\n]+)?")
"""A refusal: one line, and one with what to do."""


def questions(dump: LabDump) -> dict[str, list[str]]:
    """What each command is asked, by its name: what somebody would who looks into this machine."""
    truth = dump.truth
    # every kernel says where its text begins, some nothing but functions
    text = truth["kallsyms"].get("linux_banner") or truth["kallsyms"]["_stext"]
    marker = truth["markers"][0]
    asked = {
        "dmesg": ["", "-r"],
        "ps": ["", "-a", "-t", "-s RD", "-n init", "1 2"],
        "ps_old": [""],
        "lsmod": ["", "-l"],
        "vminfo_qemu_base": [""],
        "vminfo_qemu_all": [""],
        **{f"thread_vminfo_{arch}": [""] for arch in ("x86_64", "i386", "arm64", "arm", "mips")},
        "kd-bt": ["", "all", "1", "state=D", "cpu=0"],
        "kd-blocked": ["", "1 2"],
        "kd-info": [""],
        "kd-percpu": ["runqueues.nr_running", "runqueues 0"],
        "kd-task": ["1 2"],
        "kd-mods": [""],
        "kd-vtop": [text, f"-p {marker['pid']} {marker['vaddr']}"],
        "kd-page": [f"0x1000 {text}"],
        "kd-list": ["modules module list name", "init_task.tasks task_struct tasks pid comm"],
        "kd-rbtree": ["vmap_area_root vmap_area rb_node va_start va_end"],
        "kd-xarray": ["&cgroup_hierarchy_idr.idr_rt"],
        "kd-files": ["1"],
        "kd-vmas": ["1"],
        "kd-start": [""],
    }
    return {name: [f"{name} {words}".rstrip() for words in each] for name, each in asked.items()}


FUNCTIONS = (
    "p $kd_task(1)->comm",
    "p $kd_current(0)->pid",
    'p $kd_percpu("runqueues", 0)',
    'p $kd_container_of($kd_task(1)->tasks.next, "struct task_struct", "tasks")->pid',
)

ANSWERED_ALWAYS = (
    "dmesg",
    "kd-blocked",
    "kd-files",
    "kd-info",
    "kd-start",
    "kd-task",
    "kd-vmas",
    "ps",
    "ps_old",
)
"""Of what the core itself knows: without any symbols too."""


@dataclass(frozen=True)
class Session:
    """What gdb showed for each command line: its output, or else its error."""

    dump: LabDump
    kind: str
    names: frozenset[str]
    shown: dict[str, tuple[str, str]]
    stderr: str

    @property
    def arch(self) -> str:
        return self.dump.arch

    def may_refuse(self, line: str) -> bool:
        """What has no answer on this machine, or in a session with this little."""
        name = line.partition(" ")[0]
        if name.startswith("thread_vminfo_") or line == "kd-bt state=D":
            return True
        if self.kind != "vmlinux":
            return name not in ANSWERED_ALWAYS
        # since v6.9 the areas are in several trees; small kernels have no cgroups; of MIPS a page of a
        # process is not looked for
        gone = {"kd-rbtree": "vmap_area_root", "kd-xarray": "cgroup_hierarchy_idr"}
        if name in gone and f'No symbol "{gone[name]}"' in self.shown[line][1]:
            return True
        return self.arch in RAW and line.startswith("kd-vtop")


def sessions() -> list[tuple[LabDump, str]]:
    """``vmlinux``: as ``gdb`` opens it with that; ``made``: without, where the dump has types, and tables to
    unwind with; ``bare``: a core alone in a gdb that knows nothing else."""
    kinds = {
        dump: ("vmlinux", "made", "bare")
        if dump.arch == "x86_64" and dump.scenario != "failed-kdump"
        else ("vmlinux", "bare")
        for dump in DUMPS
    }
    return [(dump, kind) for dump, each in kinds.items() for kind in (each if not IN_CI else ("bare",))]


@pytest.fixture(scope="module", params=sessions(), ids=lambda param: f"{param[0].id}-{param[1]}")
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    dump, kind = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("every")
    lines = [line for each in questions(dump).values() for line in each] + [*FUNCTIONS]
    wanted, answer, velf = folder / "wanted.json", folder / "answer.json", folder / "velf"
    wanted.write_text(json.dumps(lines))
    script = f"source {HERE / 'gdb_every_command.py'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_WANTED", str(wanted))
        patch.setenv("KD_ANSWER", str(answer))
        if kind == "bare":
            # but of kernels that don't describe themselves the core has to be told
            linked = [] if dump.arch == "x86_64" and dump.scenario != "failed-kdump" else ["-m", dump.vmlinux]
            done = kdump_elftool("tovelf", "-q", "-p", *linked, "-o", velf, *dump.operands)
            assert done.returncode == 0, done.stderr
            init = kdump_elftool("gdbinit").stdout.strip()
            program = GDB if dump.arch in ("x86_64", "i386") else GDB_MULTIARCH
            start = ("set python print-stack full", f"source {init}", f"core-file {velf}")
            done = gdb(*start, script, program=program)
        else:
            if kind == "made":
                # nobody has told this one where the vmlinux is
                patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            linked = ["-m", dump.vmlinux] if kind == "vmlinux" else []
            words = ["gdb", "--batch", "--velf", velf, *linked, *dump.operands]
            if kind == "vmlinux":
                # the first time that gdb reads it leaves an index, with which types take no time
                assert kdump_elftool(*words).returncode == 0
            done = kdump_elftool(*words, "--", "-ex", "set python print-stack full", "-ex", script)
    assert answer.exists(), done.stdout[-1000:] + done.stderr[-2000:]
    told = json.loads(answer.read_text())
    shown = dict(zip(lines, map(tuple, told["shown"]), strict=True))
    yield Session(dump, kind, frozenset(told["names"]), shown, done.stderr)
    shutil.rmtree(folder)


def test_all_commands_are_asked(session: Session) -> None:
    assert session.names == questions(session.dump).keys()


def test_none_breaks(session: Session) -> None:
    assert not BROKEN.search(session.stderr), session.stderr[-2000:]
    broken = {line: each for line, each in session.shown.items() if any(map(BROKEN.search, each))}
    assert not broken


def test_each_answers_or_refuses_plainly(session: Session) -> None:
    """One of the two; what is refused could not be answered."""
    for line, (output, error) in session.shown.items():
        assert bool(output.strip()) != bool(error), line
        assert not error or REFUSED.fullmatch(error), (line, error)
    refused = {line: error for line, (_, error) in session.shown.items() if error}
    assert not [(line, error) for line, error in refused.items() if not session.may_refuse(line)]
    own = "mips" if session.arch in RAW else {"aarch64": "arm64"}.get(session.arch, session.arch)
    assert session.shown[f"thread_vminfo_{own}"][0] or session.kind != "vmlinux"
