"""``tovelf --in-place`` of a real dump, killed at random moments: gdb opens the old file or the new one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.dumps import IN_CI, LabDump, gdb, kdump_elftool, selected_dumps
from tests.lab.test_in_place import sha256

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

SEED = 20261123
MOMENTS = 20 if IN_CI else 50
DUMPS = [dump for dump in selected_dumps() if dump.id == "x64-61-l4.kdump/vmcore"]

# The package is imported once and every job forks, so that the moments fall into the work and not into
# the start of the interpreter.  stdin: a line [seconds or null, command line] a job; stdout: seconds.
DRIVER = """
import json, os, signal, sys, time
from kdump_elftool.cli.main import main
for line in sys.stdin:
    seconds, argv = json.loads(line)
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(main(argv))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(time.monotonic() - begin, flush=True)
"""


class Driver:
    """Runs commands and kills them."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, seconds: float | None, *argv: str) -> float:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([seconds, list(argv)]), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def tail(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def module_address(dump: LabDump) -> str:
    """Memory that the dump's own headers do not map: only the page tables lead there."""
    return next(symbol["addr"] for symbol in dump.truth["module_symbols"] if symbol["type"].lower() == "t")


def test_a_module_is_not_mapped_by_the_dump_itself() -> None:
    for dump in DUMPS:
        assert "Cannot access" in gdb(f"core-file {dump.path}", f"x/gx {module_address(dump)}").stderr


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_killed_at_random_moments(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    path = tmp_path / dump.file
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", dump.path, path], check=True)
    path.chmod(0o600)
    checksum, length, old = sha256(path), path.stat().st_size, head(path)
    command = ("tovelf", "-q", "--in-place", "-i", str(path))
    driver, chance = Driver(), random.Random(SEED)
    whole = sorted(driver.run(None, *command) for _ in range(1))
    for _ in range(4):
        assert kdump_elftool("tovelf", "-q", "--undo", "-i", path).returncode == 0
        whole.append(driver.run(None, *command))
    new, new_tail = head(path), tail(path, length)
    assert new != old
    text, module = dump.truth["kallsyms"]["linux_banner"], module_address(dump)
    seen, latest = [], 1.1 * sorted(whole)[len(whole) // 2]
    for _ in range(MOMENTS):
        assert driver.run(None, "tovelf", "-q", "--undo", "-i", str(path)) > 0
        assert (head(path), path.stat().st_size) == (old, length)
        driver.run(chance.random() * latest, *command)
        state = {old: "before", new: "after"}[head(path)]
        # a machine that has other work now is slower: a third of the kills comes too late, whatever it does
        latest *= 1.2 if state == "before" else 0.65
        shown = gdb(f"core-file {path}", "info threads", f"x/s {text}", f"x/gx {module}")
        assert dump.truth["release"] in shown.stdout
        assert "warning" not in shown.stderr.lower(), shown.stderr
        assert ("Cannot access memory" in shown.stderr) == (state == "before"), shown.stderr
        if state == "after":
            assert tail(path, length) == new_tail
        else:
            # what is left behind the old end is removed by the next run
            driver.run(None, *command)
        seen.append(state)
    driver.close()
    print(f"seed {SEED}: {seen.count('before')} before, {seen.count('after')} after")
    assert seen.count("before") >= MOMENTS // 4
    assert seen.count("after") >= 1
    assert kdump_elftool("tovelf", "-q", "--undo", "-i", path).returncode == 0
    assert sha256(path) == checksum
