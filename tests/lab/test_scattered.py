"""vmalloc areas stored a second time, to save segments: same bytes, and drgn still finds every task."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.elf.layout import build_layout
from tests.lab.dumps import LabDump, drgn_oracle, gdb_bytes, kdump_elftool
from tests.lab.test_velf import SAMPLES, SEED, segment_addresses, system_ram

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")


def test_few_segments_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DUMP.check()
    usual, few = tmp_path / "usual", tmp_path / "few"
    assert kdump_elftool("tovelf", "-l", "all", "-i", DUMP.path, "-o", usual, "-q").returncode == 0
    monkeypatch.setitem(build_layout.__kwdefaults__, "good_segments", 40)
    assert main(["tovelf", "-l", "all", "-i", str(DUMP.path), "-o", str(few), "-q"]) == 0
    assert few.stat().st_size > usual.stat().st_size

    addresses = segment_addresses(usual, 4000)
    before, after = (gdb_bytes(velf, addresses, tmp_path) for velf in (usual, few))
    assert [address for address in addresses if before[address] != after[address]] == []

    request = {"seed": SEED, "samples": {"vmalloc": SAMPLES["vmalloc"]}, "addresses": [], "ram": []}
    request["ram"] = system_ram(DUMP.truth)
    original, ours = (drgn_oracle(core, DUMP.vmlinux, request, tmp_path) for core in (DUMP.path, few))
    assert ours["tasks"] == original["tasks"]
    assert ours["samples"] == original["samples"]
    assert len(original["samples"]) >= 0.9 * SAMPLES["vmalloc"]
    for velf in (usual, few):
        velf.unlink()
