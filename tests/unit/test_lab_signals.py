"""A lab that is told to end leaves no machine behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAB = """
import os
import signal
import sys
from pathlib import Path
from lab import __main__ as lab
from lab.boot import Running

class Lock:
    # subprocess's lock of a process: no sooner is it taken by poll() than a signal comes
    def __init__(self, lock):
        self.lock, self.signals = lock, [signal.SIGTERM]
        self.release = lock.release

    def acquire(self, *how):
        taken = self.lock.acquire(*how)
        if self.signals:
            os.kill(os.getpid(), self.signals.pop())
        return taken

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()

class Machine:
    def argv(self):
        return ["sleep", "600"]

def run(args):
    with Running(Machine(), folder) as running:
        if amid_poll:
            running.process._waitpid_lock = Lock(running.process._waitpid_lock)
        print(running.process.pid, flush=True)
        running.wait("what never comes", lambda: False, 600)

amid_poll, folder = sys.argv.pop() == "amid poll", Path(sys.argv.pop())
lab.run = run
# whoever runs the tests in the background may have them ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(lab.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_machine_ends_with_the_lab(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-c", LAB, "list", str(tmp_path), "asleep"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        machine = Path("/proc") / lab.stdout.readline().strip()
        try:
            # it has its name a moment after its parent goes on
            assert any((machine / "comm").read_text() == "sleep\n" or time.sleep(0.1) for _ in range(100))
            lab.send_signal(number)
            assert lab.wait(60) == 128 + number
        finally:
            lab.kill()
    assert not machine.exists()


def test_a_signal_amid_a_look_at_the_machine(tmp_path: Path) -> None:
    """An exception there would leave a lock taken for which the end of the machine waits."""
    argv = [sys.executable, "-c", LAB, "list", str(tmp_path), "amid poll"]
    lab = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert lab.returncode == 128 + signal.SIGTERM
    assert not (Path("/proc") / lab.stdout.strip()).exists()
