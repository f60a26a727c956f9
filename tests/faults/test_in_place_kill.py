"""A run of ``tovelf --in-place`` or ``--undo`` that is killed leaves the old file or the new one.

Two ways: at random moments of the real thing, and before, in the middle of, and after each single
write, sync and cut.  Whatever is left must be read as before or as after by our reader and by
readelf (and gdb where the next test says so), can be finished, and can be undone to the old bytes.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, read_core
from tests.builders.kernel import SMALL, SyntheticKernel, make_kernel
from tests.builders.tools import gdb_batch, readelf_complaints, run_command

SEED = 20261122
MOMENTS = 50

# argv: mode (before | half | after | trace), number of the call, command line
HOOKED = """
import json, os, signal, sys
mode, wanted, trace = sys.argv[1], int(sys.argv[2]), []
def hook(name):
    real = getattr(os, name)
    def call(*args):
        what = [name, len(args[1]), args[2]] if name == "pwrite" else [name]
        trace.append(what)
        hit = len(trace) == wanted
        if hit and mode == "half" and name == "pwrite" and args[2]:
            # the header is 64 bytes in one block: it is written as a whole or not at all
            real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
        if hit and mode in ("before", "half"):
            os.kill(os.getpid(), 9)
        result = real(*args)
        if hit and mode == "after":
            os.kill(os.getpid(), 9)
        return result
    setattr(os, name, call)
for name in ("pwrite", "fsync", "ftruncate"):
    hook(name)
from kdump_elftool.cli.main import main
code = main(sys.argv[3:])
print(json.dumps(trace))
sys.exit(code)
"""

# stdin: JSON list of [path, share of the run time before the kill, command line]; the package is imported
# once, so that the moments fall into the work and not into the start of the interpreter
FORKING = """
import json, os, signal, sys, time
from kdump_elftool.cli.main import main
jobs = json.load(sys.stdin)
def start(argv):
    pid = os.fork()
    if pid == 0:
        os._exit(main(argv))
    return pid
durations = []
for _path, share, argv in jobs:
    begin = time.monotonic()
    pid = start(argv)
    if share is None:
        assert os.waitpid(pid, 0)[1] == 0
        durations.append(time.monotonic() - begin)
        continue
    time.sleep(share * sorted(durations)[len(durations) // 2])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def kernel() -> SyntheticKernel:
    return make_kernel(SMALL, vmalloc_pages=100)


@pytest.fixture(scope="module")
def image(kernel) -> bytes:
    return kernel.dump()


@pytest.fixture(scope="module")
def converted(tmp_path_factory, image) -> bytes:
    """The file after a run that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "dump"
    path.write_bytes(image)
    assert run_command("tovelf", "-q", "--in-place", "-i", str(path)).returncode == 0
    return path.read_bytes()


def judge(path: Path, image: bytes, converted: bytes) -> str:
    """``before`` or ``after``; anything else fails."""
    now = path.read_bytes()
    assert now[64 : len(image)] == image[64:], "old data changed"
    assert not readelf_complaints(path)
    if now[:64] == image[:64]:
        assert read_core(now).segments == read_core(image).segments
        return "before"
    assert now == converted
    return "after"


def check_way_out(path: Path, image: bytes, converted: bytes, kernel: SyntheticKernel) -> None:
    """From what is left, the command can be run again, and the old bytes can be had back."""
    left = path.read_bytes()
    assert main(["tovelf", "-q", "--in-place", "-i", str(path)]) == 0
    assert path.read_bytes() == converted
    check_pages(read_core(path), kernel)
    assert main(["tovelf", "-q", "--undo", "-i", str(path)]) == 0
    assert path.read_bytes() == image
    path.write_bytes(left)
    failed = main(["tovelf", "-q", "--undo", "-i", str(path)])
    after = path.read_bytes()
    if failed:
        # not even the undo note was complete: at most its beginning lies behind the old file
        assert after == left
        assert left[: len(image)] == image
        assert len(left) < -(-len(image) // 4096) * 4096 + 1100
    else:
        assert after == image


def hooked(mode: str, number: int, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HOOKED, mode, str(number), "tovelf", "-q", *argv],
        capture_output=True,
        text=True,
    )


def trace_of(path: Path, action: str) -> list[list[object]]:
    done = hooked("trace", 0, action, "-i", str(path))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_order_of_writes(tmp_path, image):
    """Tail, sync, header in one write, sync; back: header, sync, cut, sync."""
    path = tmp_path / "dump"
    path.write_bytes(image)
    trace = trace_of(path, "--in-place")
    *tail, first_sync, header, last_sync = trace
    assert (first_sync, header, last_sync) == (["fsync"], ["pwrite", 64, 0], ["fsync"])
    assert tail
    assert all(name == "pwrite" and offset >= len(image) for name, _, offset in tail)
    assert trace_of(path, "--undo") == [["pwrite", 64, 0], ["fsync"], ["ftruncate"], ["fsync"]]
    assert path.read_bytes() == image


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["before", "half", "after"])
@pytest.mark.parametrize("action", ["--in-place", "--undo"])
def test_killed_at_every_call(tmp_path, kernel, image, converted, mode, action):
    path, seen = tmp_path / "dump", []
    start = image if action == "--in-place" else converted
    path.write_bytes(start)
    calls = len(trace_of(path, action))
    assert calls >= 4
    for number in range(1, calls + 1):
        path.write_bytes(start)
        killed = hooked(mode, number, action, "-i", str(path))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        seen.append(judge(path, image, converted))
        check_way_out(path, image, converted, kernel)
    order = ["before", "after"] if action == "--in-place" else ["after", "before"]
    assert seen == sorted(seen, key=order.index), "the switch happens once"
    # the first call of --undo is the switch itself
    assert set(seen) == ({"before"} if (action, mode) == ("--undo", "after") else {"before", "after"})


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, kernel, image, converted):
    chance = random.Random(SEED)
    jobs: list[tuple[str, float | None, list[str]]] = []
    for number in range(5 + MOMENTS):
        path = tmp_path / f"dump{number}"
        path.write_bytes(image)
        share = None if number < 5 else chance.random() * 1.1
        jobs.append((str(path), share, ["tovelf", "-q", "--in-place", "-i", str(path)]))
    subprocess.run([sys.executable, "-c", FORKING], input=json.dumps(jobs), text=True, check=True)
    seen = []
    for path, share, _ in jobs:
        seen.append(judge(Path(path), image, converted))
        assert share is not None or seen[-1] == "after"
    assert seen[5:].count("before") >= 10, f"seed {SEED}: the moments missed the work"
    for path, _, _ in chance.sample(jobs[5:], 5):
        check_way_out(Path(path), image, converted, kernel)


@pytest.mark.slow
@pytest.mark.gdb
def test_gdb_opens_what_is_left(tmp_path, kernel, image, converted):
    """Around the switch: before it gdb sees the dump's own mappings, after it those of the page tables."""
    path = tmp_path / "dump"
    path.write_bytes(image)
    calls = len(trace_of(path, "--in-place"))
    vmalloc = next(vaddr for vaddr in kernel.readable_pages() if vaddr >= kernel.bases["vmalloc"])
    for number in range(calls - 2, calls + 1):
        path.write_bytes(image)
        hooked("before", number, "--in-place", "-i", str(path))
        state = judge(path, image, converted)
        shown = gdb_batch([f"core-file {path}", "info threads", f"x/gx {vmalloc:#x}", "p $sp"])
        assert "LWP 431" in shown
        assert "warning" not in shown.lower()
        assert ("Cannot access memory" in shown) == (state == "before"), shown
