"""The real /proc/kcore of a running guest, read by our program in that guest (lab/crash_kcore.py).

Judges: the guest's own /proc; gdb and drgn on the dump that QEMU made of the same machine, a little later.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.mkvmlinux import make_vmlinux
from kdump_elftool.safe_text import log_text
from lab.crash_kcore import DUMP, RESULTS
from lab.kcore_guest import ACCOUNT, COMMANDS
from tests.lab.dumps import HERE, LabDump, drgn_says, gdb, kdump_elftool, selected_rows
from tests.lab.in_gdb import kernel_part, stacks_in_gdb
from tests.lab.test_frames import whose
from tests.lab.test_mkvmlinux import symbols

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROWS = [LabDump(row.name, row.scenario, DUMP) for row in selected_rows() if row.scenario == "kcore"]
MOST_MB = 300
"""What the project allows mkvmlinux: no guest's memory may be needed for its kernel's."""
MEMBERS = {
    "task_struct": ("comm", "stack", "mm", "thread.sp", "tasks.next"),
    "page": ("flags", "_refcount"),
    "module": ("name", "list", "state"),
    "mm_struct": ("pgd", "arg_start"),
    "rq": ("curr", "clock", "idle"),
}


@dataclass(frozen=True)
class Live:
    """What the guest brought out, and the dump of the same machine."""

    dump: LabDump

    @property
    def folder(self) -> Path:
        return self.dump.directory / RESULTS

    @property
    def vmlinux(self) -> Path:
        """Made in the guest."""
        return self.folder / "vmlinux.live"

    def said(self, name: str) -> str:
        return (self.folder / name).read_text()

    @cached_property
    def account(self) -> dict[str, Any]:
        return dict(json.loads(self.said(ACCOUNT)))

    @cached_property
    def kallsyms(self) -> list[list[str]]:
        """Fields of each line: address, type, name, and a module's name in brackets."""
        return [line.split() for line in self.said("kallsyms").splitlines()]


@pytest.fixture(scope="module", params=ROWS, ids=lambda dump: dump.id)
def live(request: pytest.FixtureRequest) -> Live:
    request.param.check()
    return Live(request.param)


@pytest.fixture(scope="module")
def velf(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """QEMU's dump with a thread a task, made without any vmlinux."""
    path = tmp_path_factory.mktemp("kcore") / "velf"
    done = kdump_elftool("tovelf", "-p", live.dump.path, "-o", path)
    assert done.returncode == 0, done.stderr
    yield path
    path.unlink()


def test_every_command_read_it(live: Live) -> None:
    """In memory that does not grow with the machine's; what may change meanwhile is the only warning."""
    for name in COMMANDS:
        cost = live.account[name]
        print(f"{live.dump.row} {name}: {cost['max_rss_kb'] / 1000:.0f} MB, {cost['cpu_seconds']} s of CPU")
        assert cost["status"] == 0, live.said(f"{name}.err")
        warned = [line for line in live.said(f"{name}.err").splitlines() if line.startswith("warning: ")]
        assert len(warned) == (name == "tovelf"), warned
        assert all("ran on while its memory was read" in line for line in warned)
        assert 20 < cost["max_rss_kb"] / 1000 < MOST_MB
    for name in ("info", "mkvmlinux", "topelf"):
        assert json.loads(live.said(f"{name}.out"))["warnings"] == []


def test_info_says_what_the_guest_says(live: Live) -> None:
    info, truth = json.loads(live.said("info.out")), live.dump.truth
    assert (info["file"], info["format"], info["release"]) == ("/proc/kcore", "elf", truth["release"])
    ram = re.findall(r"^(\w+)-(\w+) : System RAM$", live.said("iomem"), re.MULTILINE)
    # /proc/kcore leaves out what is less than a page
    pages = sum((int(end, 16) + 1) // 4096 - -(-int(start, 16) // 4096) for start, end in ram)
    assert info["memory"]["present_pages"] == info["memory"]["declared_pages"] == pages
    assert info["coverage"]["lost"] == []
    own = {name: int(address, 16) for address, _, name, *module in live.kallsyms if not module}
    stext = {name: address for address, _, _, name in symbols(live.dump.vmlinux) if name == "_stext"}
    assert int(info["kaslr_offset"] or "0", 16) == own["_stext"] - stext["_stext"]


def build_id_of(notes: Path) -> str:
    """As readelf finds it in the kernel's own /sys/kernel/notes."""
    data = notes.read_bytes()
    at = data.index(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0")
    return data[at + 16 : at + 36].hex()


def test_build_id(live: Live, tmp_path: Path) -> None:
    """The kernel's; in a vmlinux for drgn, too, made of the copy."""
    wanted, linked = build_id_of(live.folder / "notes"), tmp_path / "vmlinux"
    assert json.loads(live.said("info.out"))["build_id"] == wanted
    done = kdump_elftool("mkvmlinux", "--link-addresses", live.folder / "kcore.kdump", "-o", linked)
    assert done.returncode == 0, done.stderr
    for path in (linked, live.dump.vmlinux):
        shown = subprocess.run(["readelf", "-nW", path], capture_output=True, text=True, errors="replace")
        assert f"Build ID: {wanted}" in shown.stdout


def test_symbols_are_those_of_proc_kallsyms(live: Live) -> None:
    """All of them, modules' too, at the same addresses; and no others but those that are known otherwise."""
    theirs = {(int(address, 16), name) for address, _, name, *_ in live.kallsyms}
    assert len(theirs) > 80_000 and sum(len(fields) == 4 for fields in live.kallsyms) > 1_000
    table = symbols(live.vmlinux)
    ours = {(address, name) for address, _, kind, name in table if kind != "FILE"}
    assert theirs <= ours, sorted(theirs - ours)[:10]
    more = {name for _, name in ours - theirs}
    assert more <= {"swapper_pg_dir"}, sorted(more)[:10]
    modules = {line.split()[0] for line in live.said("modules").splitlines()}
    assert {name for _, _, kind, name in table if kind == "FILE"} >= {f"[{name}]" for name in modules}


def test_it_is_the_vmlinux_of_the_dump(live: Live) -> None:
    """Byte by byte, in spite of all that went on between; what the CPUs are at, no vmlinux depends on."""
    with InputFile.open(str(live.dump.path)) as file:
        later = replace(open_dump(file), running=True)
        assert make_vmlinux(later, open_kernel(later, KernelRequest())).data == live.vmlinux.read_bytes()


@pytest.mark.gdb
def test_gdb_has_every_backtrace_with_it(live: Live, velf: Path, tmp_path: Path) -> None:
    """On the later dump: where drgn goes with the distribution's vmlinux, of all tasks."""
    found, shown = stacks_in_gdb(velf, tmp_path, f"symbol-file {live.vmlinux}", "thread apply all bt")
    said = drgn_says("oracle_tasks.py", live.dump.path, live.dump.vmlinux, tmp_path)
    judged = {lwp: kernel_part(frames) for lwp, frames in said["stacks"].items() if frames is not None}
    different = {lwp: (frames, found[int(lwp)]) for lwp, frames in judged.items()}
    different = {lwp: pair for lwp, pair in different.items() if pair[0] != kernel_part(pair[1])}
    assert not different, f"{len(different)} of {len(judged)}: {dict(list(different.items())[:3])}"
    assert sum(map(len, judged.values())) > 4 * len(judged) > 160
    running = drgn_says("oracle_tasks.py", live.dump.path, live.dump.vmlinux, tmp_path, "running")["running"]
    for frames in running.values():
        assert whose(found, kernel_part(frames)), list(map(hex, frames))
    tasks = {(task["tid"], task["comm"]) for task in live.dump.truth["tasks"]}
    assert {tid for tid, _ in tasks} <= found.keys()
    assert re.search(r"^#\d+ +0x\w+ in do_nanosleep \(", shown, re.M) or " schedule (" in shown


@pytest.mark.gdb
def test_gdb_shows_types_and_variables_with_it(live: Live, velf: Path, tmp_path: Path) -> None:
    """Types as drgn knows them by the distribution's vmlinux, values as the guest does."""
    questions = {f"SIZE({name})": f"sizeof(struct {name})" for name in MEMBERS}
    for name, members in MEMBERS.items():
        fields = {f"OFFSET({name}.{member})": f"&((struct {name} *)0)->{member}" for member in members}
        questions |= fields
    asked = [f'printf "{name} %lu\\n", (unsigned long){text}' for name, text in questions.items()]
    values = ("output init_task.comm", "output init_uts_ns.name.release", "info address panic")
    shown = gdb(f"core-file {velf}", f"symbol-file {live.vmlinux}", *asked, *values, "ptype /o struct page")
    assert "warning" not in shown.stderr, shown.stderr
    answer = tmp_path / "drgn.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "oracle_types.py"), str(live.dump.vmlinux), str(answer)],
        input=json.dumps(list(questions)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    ours = {name: int(value) for name, value in re.findall(r"^(\w+\([\w.]+\)) (\d+)$", shown.stdout, re.M)}
    assert ours == json.loads(answer.read_text())
    assert None not in ours.values() and len(ours) == len(questions)
    assert '"swapper/0' in shown.stdout and f'"{live.dump.truth["release"]}"' in shown.stdout
    panic = next(int(address, 16) for address, _, name, *_ in live.kallsyms if name == "panic")
    assert f"{panic:#x}" in shown.stdout
    assert "total size (bytes):   64" in shown.stdout


def test_log_and_tasks_of_the_running_kernel(live: Live) -> None:
    guest = [log_text(line.encode()) for line in live.dump.truth["dmesg"]]
    log = live.said("dmesg.out").splitlines()
    assert len(log) > 200 and log == guest[: len(log)]
    rows = [line.removeprefix(">").split(None, 6) for line in live.said("ps.out").splitlines()[1:]]
    listed = {(int(row[1]), row[6]) for row in rows}
    # what came and went in the meantime: those that ran the program, and what workers are called
    lasting = {(task["tid"], task["comm"]) for task in live.dump.truth["tasks"]}
    lasting = {task for task in lasting if not task[1].startswith("kworker/") and task[1] != "crasher"}
    assert len(lasting) > 40 and lasting <= listed, sorted(lasting - listed)
    assert any(comm == "python3" for _, comm in listed), "the program itself"


@pytest.mark.gdb
def test_what_was_written_of_it_opens(live: Live, tmp_path: Path) -> None:
    """The core made by tovelf in the guest, in gdb; the copy made by topelf gives the same vmlinux."""
    summary = json.loads(live.said("tovelf.out"))
    found, _ = stacks_in_gdb(live.folder / "velf", tmp_path, f"symbol-file {live.vmlinux}")
    assert len(found) == summary["nr_threads"] > 40
    sleeping = [frames for lwp, frames in found.items() if lwp > 0 and len(kernel_part(frames)) > 3]
    assert len(sleeping) > 0.9 * len(found)
    copy, again = live.folder / "kcore.kdump", tmp_path / "vmlinux"
    done = kdump_elftool("mkvmlinux", copy, "-o", again)
    assert done.returncode == 0, done.stderr
    assert symbols(again) == symbols(live.vmlinux)
    told = kdump_elftool("dmesg", "-r", copy)
    assert told.returncode == 0 and told.stdout.startswith(live.said("dmesg.out"))


@pytest.mark.parametrize("command", ["info", "dmesg", "tovelf", "mkvmlinux"])
def test_a_copy_of_its_beginning(live: Live, command: str, tmp_path: Path) -> None:
    """All that cp makes before the disk is full: the memory lies 4 to 128 TB further on."""
    out = [] if command in ("info", "dmesg") else ["-o", tmp_path / "out"]
    done = kdump_elftool(command, live.folder / "kcore.head", *out)
    assert done.returncode == 1
    assert "ends before any memory" in done.stderr and "topelf /proc/kcore" in done.stderr
    assert not list(tmp_path.iterdir())


def test_those_who_may_not_read_it(live: Live) -> None:
    """Users; and root in a kernel that is locked down for confidentiality, which says so in its log."""
    assert live.account["user"]["status"] == 1
    assert "Permission denied" in live.said("user.err") and "root" in live.said("user.err")
    assert live.account["integrity"]["status"] == 0
    assert live.account["confidentiality"]["status"] == 1
    said = live.said("confidentiality.err")
    assert "Operation not permitted" in said and "locked down" in said
    assert any("/proc/kcore access is restricted" in line for line in live.dump.truth["dmesg"])
