"""``tovelf --in-place`` on copies of real dumps: what gdb and drgn see in them, and the way back."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.dumps import LabDump, drgn_oracle, gdb, gdb_bytes, kdump_elftool, selected_dumps
from tests.lab.test_velf import segment_addresses

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

# kdump's data lies at page borders, QEMU's behind its headers at any offset, with section headers at 64
WANTED = {
    "x64-61-l4.kdump/vmcore",
    "x64-61-l4.live/qemu.elf",
    "x64-61-l4.panic/qemu-paging.elf",
    "x64-7x-l5.kdump/vmcore",
}
DUMPS = [dump for dump in selected_dumps() if dump.id in WANTED]
SAMPLED = 2000
NOTHING = {"seed": 0, "samples": {}, "addresses": [], "ram": []}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class InPlace:
    """A copy of a dump that was converted in place, and an ordinary velf of the same dump."""

    dump: LabDump
    path: Path
    velf: Path
    checksum: str
    summary: dict[str, Any]
    stderr: str


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def changed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InPlace]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp(dump.row)
    path, velf = folder / dump.file, folder / "velf"
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", dump.path, path], check=True)
    path.chmod(0o600)
    checksum = sha256(path)
    copied = kdump_elftool("tovelf", "-l", "all", "-q", "-i", dump.path, "-m", dump.vmlinux, "-o", velf)
    assert copied.returncode == 0, copied.stderr
    done = kdump_elftool("tovelf", "--in-place", "-i", path, "-m", dump.vmlinux, "--json")
    assert done.returncode == 0, done.stderr
    yield InPlace(dump, path, velf, checksum, json.loads(done.stdout), done.stderr)
    for file in (path, velf):
        file.unlink()


def test_no_complaint(changed: InPlace) -> None:
    assert changed.stderr == ""
    done = subprocess.run(["readelf", "-hlnSW", changed.path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout.lower()
    shown = gdb(f"core-file {changed.path}", "info threads")
    assert "warning" not in shown.stderr.lower(), shown.stderr
    assert len(set(re.findall(r"LWP (-?\d+)", shown.stdout.split("Id ")[-1]))) == 2


def test_memory_is_that_of_a_copy(changed: InPlace, tmp_path: Path) -> None:
    addresses = segment_addresses(changed.velf, SAMPLED)
    ours, copied = (gdb_bytes(core, addresses, tmp_path) for core in (changed.path, changed.velf))
    assert [hex(address) for address in addresses if ours[address] != copied[address]] == []
    assert sum(value is not None for value in copied.values()) == len(copied)


def test_drgn_lists_the_same_tasks(changed: InPlace, tmp_path: Path) -> None:
    vmlinux = changed.dump.vmlinux
    original, ours = (
        drgn_oracle(core, vmlinux, NOTHING, tmp_path)["tasks"] for core in (changed.dump.path, changed.path)
    )
    assert ours == original
    assert len(ours) > 40


def test_backtrace(changed: InPlace) -> None:
    offset = changed.summary["kaslr_offset"]
    shown = gdb(
        f"core-file {changed.path}",
        f"symbol-file -o {offset} {changed.dump.vmlinux}",
        "thread apply all bt",
        "p linux_banner",
    )
    assert changed.dump.truth["release"] in shown.stdout
    if changed.dump.scenario == "live":
        return
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stdout + shown.stderr


def test_undo_restores_the_checksum(changed: InPlace, tmp_path: Path) -> None:
    copy = tmp_path / "again"
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", changed.path, copy], check=True)
    assert sha256(copy) != changed.checksum
    done = kdump_elftool("tovelf", "--undo", "-i", copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert sha256(copy) == changed.checksum
    copy.unlink()
