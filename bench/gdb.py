"""From the command line to the first backtrace with names: ``kdump-elftool gdb --batch``, crash, drgn.

Of the same dump, each once nothing has been remembered of it and once everything has.  crash runs in the
lab's root of a newer Debian; of the kernels that it does not open there is no figure of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench import rivals
from bench.report import Figure
from bench.rivals import BenchError, Cost
from lab.roots import chroot_argv, root_dir

WARM_LIMIT = 3.0
TIMES = 3
EXPECTED = "sysrq_handle_crash"
SCENARIOS = (".kdump", ".panic")
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
    for path in dumps:
        vmlinux = (path.parent / "vmlinux").resolve()
        if not path.parent.name.endswith(SCENARIOS) or not vmlinux.exists():
            continue
        for file in (path, vmlinux):
            rivals.warm(file)
        home, velf = work / "gdb-cache", work / "gdb.velf"
        try:
            yield from _of_dump(path, vmlinux, home, velf, slowness)
        finally:
            shutil.rmtree(home, ignore_errors=True)
            velf.unlink(missing_ok=True)


def _of_dump(path: Path, vmlinux: Path, home: Path, velf: Path, slowness: float) -> Iterator[Figure]:
    words = ("gdb", "--batch", "-q", "--velf", str(velf), "-m", str(vmlinux), str(path))
    command = ["env", f"XDG_CACHE_HOME={home}", *rivals.tool(*words)]

    def cold() -> Cost:
        shutil.rmtree(home, ignore_errors=True)
        rivals.discard(velf)
        return rivals.run(command)

    _check(command)
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


def _check(command: list[str]) -> None:
    """A backtrace without names would be no result.  Raises BenchError."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or EXPECTED not in done.stdout:
        raise BenchError(f"{command[0]} shows no backtrace: {(done.stderr or done.stdout).strip()[-300:]}")


def _others(path: Path, vmlinux: Path) -> Iterator[tuple[str, Callable[[], Cost]]]:
    drgn = [sys.executable, "-c", DRGN, str(path), str(vmlinux)]
    _check(drgn)
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
        _check(crash)
    except BenchError as error:
        print(f"crash does not open {path.parent.name}: {error}", file=sys.stderr)
        return
    yield "crash", partial(rivals.run, crash)
