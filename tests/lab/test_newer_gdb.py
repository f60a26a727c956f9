"""The same files in a newer gdb (16 and up aborts on two equal thread ids, for one)."""

from __future__ import annotations

import re

import pytest

from lab.roots import run_in_root
from tests.lab.conftest import Converted
from tests.lab.dumps import tool_root

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.root, pytest.mark.slow]


def test_panic_backtrace_and_threads(crashed: Converted) -> None:
    root = tool_root("trixie")
    vmlinux = crashed.dump.vmlinux
    commands = [
        "set debuginfod enabled off",
        "show version",
        f"core-file /mnt/velf/{crashed.velf.name}",
        f"symbol-file -o {crashed.summary['kaslr_offset']} /mnt/kernel/{vmlinux.name}",
        "info threads",
        "thread apply all bt",
    ]
    argv = ["gdb", "-nx", "-nh", "-batch"]
    for command in commands:
        argv += ["-ex", command]
    shown = run_in_root(
        root, argv, binds={crashed.velf.parent: "/mnt/velf", vmlinux.parent: "/mnt/kernel"}, timeout=600
    )
    assert shown.returncode == 0, shown.stderr
    assert int(re.search(r"GNU gdb .*?(\d+)\.\d+", shown.stdout)[1]) >= 16
    assert "internal-error" not in shown.stdout + shown.stderr
    listed = shown.stdout.split("Target Id")[1].split("\nThread ")[0]
    ids = re.findall(r"LWP (-?\d+)", listed)
    assert len(ids) == len(set(ids)) == len(crashed.summary["threads"]), listed
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stdout + shown.stderr
