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
import signal
import sys
from pathlib import Path
from lab import __main__ as lab
from lab.boot import Running

class Machine:
    def argv(self):
        return ["sleep", "600"]

def run(args):
    with Running(Machine(), folder) as running:
        print(running.process.pid, flush=True)
        running.wait("what never comes", lambda: False, 600)

folder = Path(sys.argv.pop())
lab.run = run
# whoever runs the tests in the background may have them ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(lab.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_machine_ends_with_the_lab(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-c", LAB, "list", str(tmp_path)]
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
