"""A vmlinux made of a dump, as other tools than gdb and drgn see it: what each of them has to say of it.

Only in the set matrix, whose packages these tools are (``python3 -m lab packages-host --set matrix``).
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.dumps import (
    GDB,
    GDB_MULTIARCH,
    IN_CI,
    LabDump,
    drgn_says,
    gdb,
    kdump_elftool,
    one_of_each_kernel,
    one_of_each_row,
    selected_dumps,
    tool_root,
)
from tests.lab.in_gdb import KERNEL_HALF, gdbinit, kernel_part, stacks_in_gdb
from tests.lab.test_mkvmlinux import ARM64
from tests.lab.test_other_debuggers import ask_crash, run_crash

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NOBITS = re.compile(
    r"section \[ *\d+\] '[^']*' has unexpected type 8 for an executable section"
    r"|section \[ *\d+\] '\.rodata' has wrong type: expected PROGBITS, is NOBITS"
    r"|section \[ *\d+\] '\.(text|data)': alloc flag set but section not in any loaded segment"
    r"|loadable segment \[\d+\] is (writ|execut)able but contains no (writ|execut)able sections"
)
"""What eu-elflint says of every file whose memory is elsewhere, unless it is told so (-d)."""
SEED = 20261129
OLDER, NEWER = ("x64-510", "x64-612"), "x64-7x"


def _dumps() -> list[LabDump]:
    """One of each kernel of x86_64, two of arm64, whose dumps of both kinds are unlike each other."""
    wanted = [dump for dump in selected_dumps() if dump.scenario in ("kdump", "live") and not IN_CI]
    of_x86 = one_of_each_kernel(sorted(wanted, key=lambda dump: dump.scenario))
    return [*of_x86, *([] if IN_CI else ARM64)]


DUMPS = _dumps()
WITHOUT_TYPES = [dump for dump in one_of_each_row() if dump.arch in ("i386", "arm") and not IN_CI]
"""32 bits, without BTF: symbols, and on i386 frames."""


@dataclass(frozen=True)
class Made:
    """The dump, its made vmlinux, and its core with a thread for each task."""

    dump: LabDump
    vmlinux: Path
    core: Path


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("judges")
    found = Made(dump, folder / "vmlinux.dump", folder / "core")
    for command, path in (("mkvmlinux", found.vmlinux), ("tovelf", found.core)):
        options = ("-p",) if command == "tovelf" else ()
        done = kdump_elftool(command, *options, dump.path, "-o", path, "-q")
        assert done.returncode == 0, done.stderr
    yield found
    for path in (found.vmlinux, found.core):
        path.unlink()


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, argv)], capture_output=True, text=True, errors="replace", timeout=600, check=False
    )


@pytest.mark.parametrize("options", [(), ("--link-addresses",)], ids=["run", "link"])
def test_elflint_has_no_complaint(made: Made, options: tuple[str, ...], tmp_path: Path) -> None:
    """It is a file of debug information: its sections are in memory, and not in the file."""
    path = made.vmlinux
    if options:
        path = tmp_path / "vmlinux.link"
        assert kdump_elftool("mkvmlinux", made.dump.path, "-o", path, "-q", *options).returncode == 0
    elflint(path)


def elflint(path: Path) -> None:
    done = run("eu-elflint", "-d", path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "No errors\n")
    pedantic = run("eu-elflint", path).stdout.splitlines()
    assert pedantic and [line for line in pedantic if not NOBITS.fullmatch(line)] == []


def test_dwarfdump_verifies_it(made: Made) -> None:
    assert '"vmlinux"' in dwarfdump(made.vmlinux)


def dwarfdump(path: Path) -> str:
    done = run("llvm-dwarfdump", "--verify", path)
    assert done.returncode == 0, done.stdout[-2000:]
    assert done.stdout.splitlines()[-1] == "No errors."
    return done.stdout


def test_readelf_reads_all_of_it(made: Made) -> None:
    readelf(made.vmlinux)


def readelf(path: Path) -> None:
    with open("/dev/null", "w") as nothing:
        done = subprocess.run(
            ["readelf", "-a", "-w", "-W", path], stdout=nothing, stderr=subprocess.PIPE, timeout=600
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("dump", WITHOUT_TYPES, ids=lambda dump: dump.id)
def test_nobody_complains_of_one_without_types(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    path = tmp_path / "vmlinux.dump"
    done = kdump_elftool("mkvmlinux", *dump.operands, "-o", path)
    assert done.returncode == 0 and "there is no BTF in the dump" in done.stderr
    elflint(path)
    dwarfdump(path)
    readelf(path)
    sections = run("readelf", "-SW", path).stdout
    assert ".symtab" in sections and ".debug_info" not in sections
    assert (".debug_frame" in sections) == (dump.arch == "i386")


def test_drgn_unwinds_every_task_with_it(made: Made, tmp_path: Path) -> None:
    """Those that sleep, and what each CPU was running, also the one that dumped."""
    path = tmp_path / "vmlinux.link"
    done = kdump_elftool("mkvmlinux", made.dump.path, "-o", path, "-q", "--link-addresses")
    assert done.returncode == 0, done.stderr
    theirs, ours = (
        drgn_says("oracle_tasks.py", made.dump.path, vmlinux, tmp_path)
        for vmlinux in (made.dump.vmlinux, path)
    )
    assert ours["tasks"] == theirs["tasks"]
    stacks = {tid: kernel_part(frames or []) for tid, frames in theirs["stacks"].items()}
    different = [tid for tid, frames in stacks.items() if kernel_part(ours["stacks"][tid] or []) != frames]
    assert len(stacks) > 40 and different == []
    on_cpus, found = (
        drgn_says("oracle_tasks.py", made.dump.path, vmlinux, tmp_path, "running")["running"]
        for vmlinux in (made.dump.vmlinux, path)
    )
    assert {cpu: kernel_part(frames) for cpu, frames in found.items()} == {
        cpu: kernel_part(frames) for cpu, frames in on_cpus.items()
    }
    assert max(len(kernel_part(frames)) for frames in found.values()) > 4


def lldb(made: Made, *commands: str) -> str:
    argv: list[str | Path] = ["lldb", "--no-lldbinit", "--batch", "-l", "none"]
    opened = f"target create {made.vmlinux} --core {made.core}"
    loaded = f"target modules load --file {made.vmlinux} --slide 0"
    for command in (opened, loaded, *commands):
        argv += ["-o", command]
    done = run(*argv)
    assert f"Core file '{made.core}' ({made.dump.arch}) was loaded." in done.stdout, done.stdout + done.stderr
    return done.stdout


def frames_of_lldb(text: str) -> list[list[tuple[int, str]]]:
    """Address and name of every frame, a list for each thread in its order."""
    threads: list[list[tuple[int, str]]] = []
    for line in text.splitlines():
        if re.match(r"[ *] thread #\d+", line):
            threads.append([])
        elif found := re.match(r"[ *]*frame #\d+: 0x([0-9a-f]{16})(?: [^`]*`([^( ]+))?", line):
            threads[-1].append((int(found[1], 16), found[2] or ""))
    return threads


@pytest.mark.gdb
def test_lldb_prints_the_backtraces_that_gdb_prints(made: Made, tmp_path: Path) -> None:
    """Of every task, with the names of all functions, through the assembly that enters the kernel."""
    # by itself gdb 13 cannot read the signed addresses of arm64; lldb can
    on_x86 = made.dump.arch == "x86_64"
    more, program = ((), GDB) if on_x86 else ((f"source {gdbinit()}",), GDB_MULTIARCH)
    stacks, _ = stacks_in_gdb(made.core, tmp_path, f"symbol-file {made.vmlinux}", *more, program=program)
    theirs = [kernel_part(frames) for frames in stacks.values()]
    ours = frames_of_lldb(lldb(made, "bt all").partition("(lldb) bt all")[2])
    assert len(ours) == len(theirs) > 40
    wanted, found = Counter(map(tuple, theirs)), Counter[tuple[int, ...]]()
    for frames in ours:
        assert all(name for pc, name in frames if pc >= KERNEL_HALF), frames
        found[tuple(kernel_part([pc for pc, _ in frames]))] += 1
    assert found == wanted
    assert sum(map(len, ours)) > 4 * len(ours)


@pytest.mark.gdb
def test_lldb_shows_types_and_variables(made: Made) -> None:
    text = lldb(made, "p init_task.comm", "p init_uts_ns.name.release", "p sizeof(struct task_struct)")
    assert '"swapper/0' in text or '"swapper\\0' in text
    release = json.loads(kdump_elftool("info", made.dump.path, "--json").stdout)["release"]
    assert f'"{release}' in text
    shown = gdb(f"symbol-file {made.vmlinux}", "p sizeof(struct task_struct)").stdout
    size = re.search(r"\$\d+ = (\d+)", text.rpartition("sizeof")[2])
    assert size and size[1] == shown.split()[-1]


@pytest.mark.root
@pytest.mark.parametrize(
    "made", [dump for dump in DUMPS if dump.row.startswith(OLDER)], ids=lambda dump: dump.id, indirect=True
)
def test_crash_gives_the_answers_that_it_gives_with_the_real_one(made: Made, tmp_path: Path) -> None:
    """test_other_debuggers.py asks it about 6.1."""
    theirs = ask_crash(tool_root("sid"), made.dump.path, tmp_path, made.dump.vmlinux)
    assert len(re.findall(r"^[> ]+\d+ ", theirs, re.M)) > 40
    assert ask_crash(tool_root("sid"), made.dump.path, tmp_path, made.vmlinux) == theirs.replace(
        "  ID  ", "  UN  "
    )


@pytest.mark.root
@pytest.mark.parametrize(
    "made", [dump for dump in DUMPS if dump.row.startswith(NEWER)], ids=lambda dump: dump.id, indirect=True
)
def test_crash_opens_no_kernel_of_7x(made: Made, tmp_path: Path) -> None:
    """Neither with the distribution's vmlinux; the documents say so, and this shows when it changes."""
    theirs = run_crash(tool_root("sid"), made.dump.path, tmp_path, made.dump.vmlinux)
    assert theirs.returncode and "crash: invalid structure member offset" in theirs.stdout + theirs.stderr
    ours = run_crash(tool_root("sid"), made.dump.path, tmp_path, made.vmlinux)
    assert ours.returncode and "WARNING: kernel version inconsistency" in ours.stdout + ours.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    "made", [dump for dump in DUMPS if dump.arch == "aarch64"], ids=lambda dump: dump.id, indirect=True
)
def test_crash_is_built_for_one_machine(made: Made, tmp_path: Path) -> None:
    """That of Debian's amd64 opens no dump of arm64, with the distribution's vmlinux neither."""
    for vmlinux in (made.dump.vmlinux, made.vmlinux):
        done = run_crash(tool_root("sid"), made.dump.path, tmp_path, vmlinux)
        shown = done.stdout + done.stderr
        assert done.returncode and "WARNING: machine type mismatch" in shown, shown
        assert f"/mnt/kernel/{vmlinux.name}: ARM64" in shown and f"/mnt/core/{made.dump.file}: ARM64" in shown
        assert "not a supported file format" in shown


def test_addr2line_names_the_functions_of_the_real_one(made: Made) -> None:
    """By both readers, but for functions that kallsyms leaves out: the EFI stub, and on kernels that have
    functions alone in it built-in code for leaving (.exit.text), which is behind all that it counts as code.
    """
    by_address: dict[int, set[str]] = defaultdict(set)
    rows = [line.split() for line in run("readelf", "-sW", made.dump.vmlinux).stdout.splitlines()]
    sizes = {int(row[1], 16): int(row[2], 0) for row in rows if len(row) == 8 and row[3] == "FUNC"}
    for row in rows:
        if len(row) == 8 and row[3] == "FUNC" and int(row[1], 16) in sizes:
            by_address[int(row[1], 16)].add(row[7])
    (low, size), *_ = sections_of(made.dump.vmlinux, ".exit.text") or [(0, 0)]
    rng = random.Random(SEED)
    asked = {
        address + rng.randrange(sizes[address]): address
        for address in rng.sample(sorted(address for address in sizes if sizes[address]), 1_000)
    }
    offset = int(
        json.loads(kdump_elftool("info", made.dump.path, "--json").stdout)["kaslr_offset"] or "0", 16
    )
    for tool in ("addr2line", "eu-addr2line"):
        wanted = "\n".join(f"{address + offset:#x}" for address in asked)
        done = subprocess.run([tool, "-f", "-e", made.vmlinux], input=wanted, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        named = done.stdout.splitlines()[::2]
        wrong = [
            (hex(address), name, by_address[start])
            for (address, start), name in zip(asked.items(), named, strict=True)
            if name not in by_address[start]
            and not low <= start < low + size
            and not any(other.startswith("__efistub_") for other in by_address[start])
        ]
        assert not wrong, (tool, len(wrong), wrong[:5])
        right = sum(name in by_address[start] for name, start in zip(named, asked.values(), strict=True))
        assert right >= (1_000 if made.dump.arch == "x86_64" else 970)


def sections_of(path: Path, name: str) -> list[tuple[int, int]]:
    """Address and size of the sections of this name."""
    found = re.findall(
        rf"\] {re.escape(name)} +\S+ +([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)", run("readelf", "-SW", path).stdout
    )
    return [(int(address, 16), int(size, 16)) for address, size in found]
