"""The gdb side in the oldest gdb that it is for: 10.1 of Debian 11, whose Python is 3.9."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdump_elftool import gdbside
from lab.roots import run_in_root
from tests.lab.dumps import LabDump, kdump_elftool, selected_dumps, tool_root
from tests.lab.test_gdb_seed import EVERYTHING

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.root, pytest.mark.slow]

# a kernel of the same system; the root is for the matrix alone
DUMPS = [dump for dump in selected_dumps() if dump.row == "x64-510-l4.kdump"]
PACKAGE = Path(gdbside.__file__).resolve().parents[1]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_every_command_runs(dump: LabDump, tmp_path: Path) -> None:
    """With several arguments, sense or nonsense, and without a traceback; the log is the whole one."""
    dump.check()
    root = tool_root("bullseye")
    done = kdump_elftool("tovelf", "-p", "-i", dump.path, "-o", tmp_path / "velf")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "script").write_text(EVERYTHING)
    argv = ["gdb", "-nx", "-nh", "-batch", "-ex", "show version"]
    argv += ["-ex", "source /mnt/package/gdbside/kdump_gdbinit", "-ex", "core-file /mnt/velf/velf"]
    argv += ["-ex", "source /mnt/velf/script", "-ex", "dmesg"]
    shown = run_in_root(root, argv, binds={PACKAGE: "/mnt/package", tmp_path: "/mnt/velf"}, timeout=600)
    assert int(re.search(r"GNU gdb .*?(\d+)\.\d+", shown.stdout)[1]) < 13
    assert "Traceback" not in shown.stdout + shown.stderr
    assert "Python Exception" not in shown.stdout + shown.stderr
    expected = kdump_elftool("dmesg", dump.path).stdout
    assert shown.stdout.endswith(expected)
