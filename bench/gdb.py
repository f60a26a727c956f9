"""Time to the first backtrace with names, of ``gdb --batch``, crash and drgn; and to all backtraces.

Of the same dump, each once nothing has been remembered of it and once everything has.  crash runs in the
lab's root of a newer Debian; of the kernels that it does not open there is no figure of it.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from bench import rivals
from bench.report import Figure
from bench.rivals import BenchError, Cost
from kdump_elftool.arch.x86_64 import ARCH as X86_64
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.kernel.cpus import is_prstatus
from lab.roots import chroot_argv, root_dir

WARM_LIMIT = 3.0
ALL_LIMIT, MANY_LIMIT = 5.0, 10.0
"""Seconds of kd-bt all, of a lab dump and of MANY tasks, gdb's start included, its index made."""
MANY = 5000
CPUS = 2
"""Of the lab's guests; their threads come first, and more of these would be no sleeping tasks."""
TIMES = 3
EXPECTED = "sysrq_handle_crash"
ROWS = ("x64-*.kdump", "x64-*.panic")
"""Of x86_64 alone: notes are made anew below, and drgn reads no page tables of some others."""
CRASH_ROOT = "sid"
DRGN = """
import sys, drgn
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
print(prog.crashed_thread().stack_trace())
"""


def measure_gdb(dumps: tuple[Path, ...], work: Path, slowness: float) -> Iterator[Figure]:
    """CPU seconds of ``gdb --batch``: the first time, and the second; those of crash and drgn beside them."""
    for path, vmlinux in panicked(dumps):
        for file in (path, vmlinux):
            rivals.warm(file)
        home, velf = work / "gdb-cache", work / "gdb.velf"
        try:
            yield from _of_dump(path, vmlinux, home, velf, slowness)
        finally:
            _forget(home, velf)


def panicked(dumps: tuple[Path, ...]) -> Iterator[tuple[Path, Path]]:
    """Each with its vmlinux."""
    for path in dumps:
        vmlinux = (path.parent / "vmlinux").resolve()
        if any(fnmatchcase(path.parent.name, pattern) for pattern in ROWS) and vmlinux.exists():
            yield path, vmlinux


def _forget(home: Path, *cores: Path) -> None:
    """What ``gdb`` keeps: the index, cores and the symbols beside them."""
    shutil.rmtree(home, ignore_errors=True)
    for core in cores:
        shutil.rmtree(f"{core}.symbols", ignore_errors=True)
        core.unlink(missing_ok=True)


def _of_dump(path: Path, vmlinux: Path, home: Path, velf: Path, slowness: float) -> Iterator[Figure]:
    words = ("gdb", "--batch", "-q", "--velf", str(velf), "-m", str(vmlinux), str(path))
    command = ["env", f"XDG_CACHE_HOME={home}", *rivals.tool(*words)]

    def cold() -> Cost:
        _forget(home, velf)
        rivals.discard(velf)
        return rivals.run(command)

    check(command)
    costs = {"cold": [cold() for _ in range(TIMES)], "warm": [rivals.run(command) for _ in range(TIMES)]}
    beside: dict[str, float] = {}
    for name, other in _others(path, vmlinux):
        cost = rivals.median([other() for _ in range(TIMES)])
        beside |= {f"{name} cpu s": cost.cpu, f"{name} wall s": cost.wall}
    for name, limit in (("cold", None), ("warm", WARM_LIMIT)):
        cost = rivals.median(costs[name])
        raw = {"cpu s": cost.cpu, "wall s": cost.wall, "peak MB": cost.peak_bytes / 1e6, **beside}
        facts: dict[str, str | int] = {
            f"x the time of {other}": f"{cost.cpu / beside[f'{other} cpu s']:.2f}"
            for other in ("crash", "drgn")
            if f"{other} cpu s" in beside
        }
        subject = f"{path.parent.name}/{path.name}, {name}"
        rounded = {key: float(f"{value:.4g}") for key, value in raw.items()}
        yield Figure("gdb", subject, cost.cpu / slowness, "s", limit, facts, rounded)


def measure_backtraces(dumps: tuple[Path, ...], work: Path, slowness: float) -> Iterator[Figure]:
    """CPU seconds of ``kd-bt all``: of a dump as it is, and with its tasks' stacks many times over."""
    for path, vmlinux in panicked(dumps):
        home, velf, many = work / "gdb-cache", work / "gdb.velf", work / "many.velf"
        try:
            command = [f"XDG_CACHE_HOME={home}", *rivals.tool("gdb", "--batch", "-q", "-m", str(vmlinux))]
            check(["env", *command, "--velf", str(velf), str(path)])
            threads = _with_many_threads(velf, many)
            for core, count, limit in ((velf, threads, ALL_LIMIT), (many, MANY, MANY_LIMIT)):
                argv = ["env", *command, str(core), "--", "-ex", "kd-bt all"]
                _check_count(argv, count)
                cost = rivals.median([rivals.run(argv) for _ in range(TIMES)])
                raw = {"cpu s": float(f"{cost.cpu:.4g}"), "wall s": float(f"{cost.wall:.4g}")}
                subject = f"{path.parent.name}/{path.name}, {count} tasks"
                yield Figure("kd-bt all", subject, cost.cpu / slowness, "s", limit, {}, raw)
        finally:
            _forget(home, velf, many)


def _with_many_threads(velf: Path, many: Path) -> int:
    """A copy whose notes stand behind its memory, the sleeping tasks' again and again; threads before."""
    shutil.copy(velf, many)
    with InputFile.open(str(velf)) as file:
        dump = open_dump(file)
        notes, kind = dump.notes, dump.kind
    threads = [note for note in notes if is_prstatus(note)]
    at = X86_64.prstatus.pid_offset
    asleep = [note.desc for note in threads[CPUS:] if isinstance(note.desc, bytes)]
    pid = struct.Struct("<i")
    more = [
        Note(b"CORE", threads[0].type, desc[:at] + pid.pack((1 << 20) + number) + desc[at + pid.size :])
        for number, desc in enumerate(asleep[number % len(asleep)] for number in range(MANY - len(threads)))
    ]
    data = b"".join(part for part in encode_notes((*notes, *more), kind) if isinstance(part, bytes))
    with many.open("r+b") as out:
        end = out.seek(0, 2)
        out.write(data)
        out.seek(64 + 8)  # p_offset of the first program header, which is PT_NOTE
        out.write(struct.pack("<Q", end))
        out.seek(64 + 32)
        out.write(struct.pack("<QQ", len(data), 0))
    return len(threads)


def check(command: list[str], wanted: str = EXPECTED) -> str:
    """What is shown; a backtrace without names would be no result.  Raises BenchError."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or wanted not in done.stdout:
        raise BenchError(f"{command[0]} shows no backtrace: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def _check_count(command: list[str], count: int) -> None:
    """Every task must be in one of the groups.  Raises BenchError."""
    shown = sum(map(int, re.findall(r"^(\d+) tasks?: ", check(command), re.MULTILINE)))
    if shown != count:
        raise BenchError(f"kd-bt shows {shown} of {count} tasks")


def _others(path: Path, vmlinux: Path) -> Iterator[tuple[str, Callable[[], Cost]]]:
    drgn = [sys.executable, "-c", DRGN, str(path), str(vmlinux)]
    check(drgn)
    yield "drgn", partial(rivals.run, drgn)
    root = root_dir(CRASH_ROOT)
    if not (root / "usr/bin/crash").exists():
        return
    binds = {vmlinux.parent: "/mnt/kernel", path.parent.resolve(): "/mnt/core"}
    argv = [
        "sh",
        "-c",
        "printf 'bt\\nquit\\n' | crash -s /mnt/kernel/$0 /mnt/core/$1",
        vmlinux.name,
        path.name,
    ]
    crash = chroot_argv(root, argv, binds)
    try:
        check(crash)
    except BenchError as error:
        print(f"crash does not open {path.parent.name}: {error}", file=sys.stderr)
        return
    yield "crash", partial(rivals.run, crash)
