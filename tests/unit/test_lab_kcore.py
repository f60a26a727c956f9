"""The lab's row with our program on a running kernel's /proc/kcore: its key, its machine, its results."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from lab import kcore_guest
from lab.config import BootError, load_config
from lab.crash_kcore import DISK, RESULTS, machine_of, unpack
from lab.kcore_guest import ACCOUNT, COMMANDS
from lab.matrix import MADE_WITH, scenario_hash

ROW = next(row for row in load_config().rows if row.scenario == "kcore")
RUN = {"status": 0, "seconds": 1.5, "cpu_seconds": 1.4, "max_rss_kb": 40000}


def written(folder: Path, account: str) -> str:
    """A disk as the guest leaves it; returns what the console says."""
    with tarfile.open(folder / DISK, "w") as archive:
        member = tarfile.TarInfo(f"./{ACCOUNT}")
        member.size = len(account)
        archive.addfile(member, io.BytesIO(account.encode()))
    size = (folder / DISK).stat().st_size
    with (folder / DISK).open("r+b") as disk:
        disk.truncate(1 << 20)
    return f"LAB-KCORE-BEGIN\nLAB-KCORE-BYTES {size}\n"


def test_the_key_covers_the_program(monkeypatch):
    before = scenario_hash("kcore", "one")
    monkeypatch.setitem(MADE_WITH, "kcore", lambda: "another program")
    assert scenario_hash("kcore", "one") != before


def test_the_machine_runs_normally_and_numpy_has_its_cpu():
    machine = machine_of(ROW, Path("k"))
    argv = machine.argv()
    assert {"lab.scenario=live", "clearcpuid=cx16"} <= set(machine.append.split())
    assert "cx16=off" not in argv[argv.index("-cpu") + 1]
    assert any(f"file={DISK}" in word for word in argv)


def test_results_become_a_folder(tmp_path):
    unpack(tmp_path, written(tmp_path, json.dumps({"info": RUN})))
    assert json.loads((tmp_path / RESULTS / ACCOUNT).read_text()) == {"info": RUN}
    assert not (tmp_path / DISK).exists()


@pytest.mark.parametrize("broken", ["no size", "no archive", "no account"])
def test_results_that_are_not_there_are_a_failed_boot(tmp_path, broken):
    console = written(tmp_path, "{" if broken == "no account" else "{}")
    if broken == "no archive":
        (tmp_path / DISK).write_bytes(b"\x5a" * 10240)
    with pytest.raises(BootError):
        unpack(tmp_path, "LAB-KCORE-BEGIN\n" if broken == "no size" else console)


def test_what_a_command_cost(tmp_path, monkeypatch):
    """As the guest measures it, of a command that prints its words and fails."""
    script = tmp_path / "tool"
    script.write_text('#!/bin/sh\necho "$@"\necho sorry >&2\nexit 3\n')
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kcore_guest, "TOOL", str(script))
    account = kcore_guest.run("info", COMMANDS["info"])
    assert account["status"] == 3
    # no less than that of the process that began it, which here is the tests' own
    assert account["max_rss_kb"] > 500
    assert (tmp_path / "info.out").read_text() == "info --json /proc/kcore\n"
    assert (tmp_path / "info.err").read_text() == "sorry\n"
