"""topelf in a real crash kernel with little memory: its packed result against the vmcore that the same
crash kernel copied before.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from lab.config import load_config
from tests.lab.dumps import LabDump, drgn_oracle, gdb, kdump_elftool, selected_rows

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

ROWS = [row.name for row in selected_rows() if row.scenario == "topelf"]
NOTHING = {"seed": 0, "samples": {}, "addresses": [], "ram": []}
CHUNK = 1 << 20


@dataclass(frozen=True)
class Both:
    """Velfs of the copied vmcore and of the pelf that topelf made of it in the crash kernel."""

    dump: LabDump
    pelf: Path
    velfs: dict[str, Path]
    summaries: dict[str, dict[str, Any]]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.dump.directory / "row.json").read_text())


@pytest.fixture(scope="module", params=ROWS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    dump = LabDump(request.param, "topelf", "vmcore")
    dump.check()
    folder = tmp_path_factory.mktemp(dump.row)
    pelf = folder / "pmcore"
    # reads to the end of the stream, whose checksum and length gzip verifies
    with gzip.open(dump.directory / "pmcore.gz") as packed, pelf.open("wb") as file:
        shutil.copyfileobj(packed, file, CHUNK)
    velfs, summaries = {}, {}
    for name, source in (("vmcore", dump.path), ("pmcore", pelf)):
        velfs[name] = folder / f"{name}.velf"
        done = kdump_elftool(
            "tovelf", "-l", "kernel", "-i", source, "-m", dump.vmlinux, "-o", velfs[name], "--json"
        )
        assert done.returncode == 0, done.stderr
        summaries[name] = json.loads(done.stdout)
    yield Both(dump, pelf, velfs, summaries)
    shutil.rmtree(folder)


def loads(file: Path) -> list[tuple[int, int, int]]:
    """(vaddr, size, file offset) of a velf's segments, by address."""
    with file.open("rb") as stream:
        found = [
            (segment["p_vaddr"], segment["p_filesz"], segment["p_offset"])
            for segment in ELFFile(stream).iter_segments()
            if segment["p_type"] == "PT_LOAD" and segment["p_memsz"]
        ]
    return sorted(found)


def contents(file: Path) -> dict[tuple[int, int], str]:
    """Every run of addresses with the checksum of its bytes, however segments divide it."""
    runs: dict[tuple[int, int], str] = {}
    start = end = -1
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for vaddr, size, offset in loads(file):
            assert vaddr >= end, "segments overlap"
            if vaddr != end and end > start:
                runs[start, end] = digest.hexdigest()
            if vaddr != end:
                start, digest = vaddr, hashlib.sha256()
            stream.seek(offset)
            for position in range(0, size, CHUNK):
                data = stream.read(min(CHUNK, size - position))
                assert len(data) == min(CHUNK, size - position), "the file ends early"
                digest.update(data)
            end = vaddr + size
    runs[start, end] = digest.hexdigest()
    return runs


def test_the_crash_kernel_had_little_memory(both: Both) -> None:
    reserved = next(row for row in load_config().rows if row.name == both.dump.row).crashkernel
    facts = both.record["crash_kernel"]
    assert reserved == "256M"
    assert "crashkernel=256M" in both.record["cmdline"].split()
    assert facts["mem_total_kb"] < 256 * 1024
    assert 0 < facts["topelf_vm_hwm_kb"] < 64 * 1024
    assert facts["least_available_kb"] > 0


def test_the_same_memory(both: Both) -> None:
    ours, copied = contents(both.velfs["pmcore"]), contents(both.velfs["vmcore"])
    assert sum(end - start for start, end in copied) > 32 << 20
    assert ours.keys() == copied.keys()
    assert [f"{start:#x}-{end:#x}" for start, end in copied if ours[start, end] != copied[start, end]] == []


def test_the_kernel_saw_the_crash(both: Both) -> None:
    for name in ("vmcore", "pmcore"):
        shown = gdb(
            f"core-file {both.velfs[name]}",
            f"symbol-file -o {both.summaries[name]['kaslr_offset']} {both.dump.vmlinux}",
            "thread apply all bt",
            "p linux_banner",
        )
        assert both.dump.truth["release"] in shown.stdout, shown.stderr
        for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
            assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stdout + shown.stderr


def test_drgn_lists_the_same_tasks(both: Both, tmp_path: Path) -> None:
    original, ours = (
        drgn_oracle(core, both.dump.vmlinux, NOTHING, tmp_path)["tasks"]
        for core in (both.dump.path, both.pelf)
    )
    assert ours == original
    assert len(ours) > 40


def test_topelf_here_makes_the_same_file(both: Both, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = kdump_elftool("topelf", "-l", "kernel", "-q", "-i", both.dump.path, "-o", again)
    assert done.returncode == 0, done.stderr
    with again.open("rb") as ours, both.pelf.open("rb") as theirs:
        assert hashlib.file_digest(ours, "sha256").digest() == hashlib.file_digest(theirs, "sha256").digest()
    again.unlink()
