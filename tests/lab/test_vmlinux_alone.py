"""Real memory with every copy of VMCOREINFO wiped: the vmlinux alone leads to the same kernel.

As if the kernel had been built without it.  Compared with what the untouched dump gives.
"""

from __future__ import annotations

import json
import mmap
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Answer
from tests.lab.dumps import LabDump, drgn_oracle, kdump_elftool, selected_dumps, selected_rows
from tests.lab.test_find_kernel import segments

pytestmark = [pytest.mark.lab, pytest.mark.slow]

RAW = [
    LabDump(row.name, row.scenario, "qemu.raw") for row in selected_rows() if row.name == "x64-61-l4.machine"
]
DUMPS = [dump for dump in selected_dumps() if dump.file == "qemu.elf"] + RAW
LINKED_AT = 0x1000000
"""Of the image behind __START_KERNEL_map."""


@dataclass(frozen=True)
class Wiped:
    """A dump, and its copy in which no VMCOREINFO is left; how both are named on the command line."""

    dump: LabDump
    plain: list[str | Path]
    copy: list[str | Path]


def wipe(path: Path) -> int:
    """Make every VMCOREINFO unreadable; returns how many there were."""
    count = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as whole:
        for mark, other in ((b"OSRELEASE=", b"nothing at"), (b"VMCOREINFO\0\0nothing at", b"NOTHINGHERE\0")):
            at = whole.find(mark)
            while at >= 0:
                whole[at : at + len(other)] = other
                count += 1
                at = whole.find(mark, at)
    return count


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def wiped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wiped]:
    dump: LabDump = request.param
    dump.check()
    path = tmp_path_factory.mktemp("wiped") / dump.file
    subprocess.run(["cp", "--sparse=always", str(dump.path), str(path)], check=True)
    path.chmod(0o600)
    assert wipe(path) > 2
    form: list[str | Path] = ["-I", "raw"] if dump.file.endswith(".raw") else []
    yield Wiped(dump, [*form, dump.path], [*form, path])
    path.unlink()


def test_same_velf(wiped: Wiped, answer: Answer, tmp_path: Path) -> None:
    """The same addresses of the same frames, the same tasks, the same offset; and crash's and drgn's note."""
    found: list[Any] = []
    for files in (wiped.plain, wiped.copy):
        velf = tmp_path / "velf"
        out, _ = answer("tovelf", "-p", *files, "-m", wiped.dump.vmlinux, "-o", velf, "--json")
        summary = json.loads(out)
        found.append(
            (
                [row[1:] for row in segments(velf)],
                {key: summary[key] for key in ("kaslr_offset", "pgt_root", "warnings", "build_id", "level")},
            )
        )
        if files is wiped.copy:
            assert "vmcoreinfo:    ELF note" in answer("info", velf)[0]
        velf.unlink()
    assert found[0] == found[1]
    assert len(found[0][0]) > 50


def test_same_answers(wiped: Wiped, answer: Answer) -> None:
    vmlinux = wiped.dump.vmlinux
    for command in ("ps", "dmesg"):
        assert answer(command, *wiped.copy, "-m", vmlinux) == answer(command, *wiped.plain)
    plain = json.loads(answer("info", *wiped.plain, "--json")[0])
    found = json.loads(answer("info", *wiped.copy, "-m", vmlinux, "--json")[0])
    assert found["vmcoreinfo"].startswith("made from vmlinux, its linux_banner found in memory at 0x")
    for key in ("release", "build_id", "categories", "kaslr_offset", "phys_base", "page_table_levels"):
        assert found[key] == plain[key], key


@pytest.mark.parametrize("dump", RAW, ids=lambda dump: dump.id)
def test_without_the_vmlinux(dump: LabDump, tmp_path: Path) -> None:
    """The error says what would help."""
    path = tmp_path / "raw"
    subprocess.run(["cp", "--sparse=always", str(dump.path), str(path)], check=True)
    assert wipe(path) > 2
    done = kdump_elftool("dmesg", "-I", "raw", path)
    path.unlink()
    assert done.returncode == 1
    assert "vmlinux with -m" in done.stderr


@pytest.mark.parametrize("dump", RAW, ids=lambda dump: dump.id)
def test_from_the_kernel_on(dump: LabDump, answer: Answer, tmp_path: Path) -> None:
    """Raw memory that begins where the kernel does: its page tables say where that is."""
    plain = json.loads(answer("info", "-I", "raw", dump.path, "--json")[0])
    text = int(plain["phys_base"], 16) + int(plain["kaslr_offset"], 16) + LINKED_AT
    path, first = tmp_path / "raw", text & -(1 << 20)
    with dump.path.open("rb") as whole, path.open("wb") as out:
        whole.seek(first)
        while piece := whole.read(1 << 20):
            out.write(piece)
    wipe(path)
    found = json.loads(answer("info", "-I", "raw", path, "-m", dump.vmlinux, "--json")[0])
    assert found["sources"]["ram_base"].startswith("the page tables beside linux_banner")
    for key in ("pgt_root", "kaslr_offset", "phys_base", "release"):
        assert found[key] == plain[key]
    other = hex(first ^ 0x40000000)
    wrong = kdump_elftool("dmesg", "-I", "raw", path, "-m", dump.vmlinux, "--ram-base", other)
    path.unlink()
    assert wrong.returncode == 1
    assert f"one if it begins at {first:#x}" in wrong.stderr


@pytest.mark.parametrize("dump", RAW, ids=lambda dump: dump.id)
def test_drgn_takes_what_was_made(dump: LabDump, answer: Answer, tmp_path: Path) -> None:
    """The VMCOREINFO that was made of the vmlinux serves drgn as the kernel's own does."""
    path, velf = tmp_path / "raw", tmp_path / "velf"
    subprocess.run(["cp", "--sparse=always", str(dump.path), str(path)], check=True)
    wipe(path)
    answer("tovelf", "-I", "raw", "-i", path, "-m", dump.vmlinux, "-o", velf)
    path.unlink()
    nothing = {"seed": 0, "samples": {}, "addresses": [], "ram": []}
    found = [
        drgn_oracle(core, dump.vmlinux, nothing, tmp_path)["tasks"]
        for core in (dump.path.with_name("qemu.elf"), velf)
    ]
    velf.unlink()
    assert found[0] == found[1]
    assert len(found[0]) > 20
