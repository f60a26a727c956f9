"""QEMU's migration stream of a stopped guest holds the memory that its dump-guest-memory wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from lab.config import Row
from tests.lab.dumps import kdump_elftool, selected_rows
from tests.lab.variants import ROM_BYTES, both, loads_of, same_bytes, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROWS = [row for row in selected_rows() if row.scenario in ("machine", "newer")]
PIECE = 1 << 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_same_memory(row: Row, tmp_path: Path) -> None:
    dump, stream = both(row, "qemu.stream")
    original = tovelf([dump.path], tmp_path / "original", dump.vmlinux)
    variant = tovelf([stream], tmp_path / "velf", dump.vmlinux)
    compared = same_bytes(original, variant)
    whole = sum(size for _, _, size in loads_of(original.velf))
    assert whole - ROM_BYTES <= compared <= whole


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_same_answers(row: Row) -> None:
    dump, stream = both(row, "qemu.stream")
    for command in ("dmesg", "ps"):
        answers = [kdump_elftool(command, path) for path in (dump.path, stream)]
        assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
        assert answers[0].stdout == answers[1].stdout
    told = [json.loads(kdump_elftool("info", "--json", path).stdout) for path in (dump.path, stream)]
    for key in ("release", "build_id", "panic_message", "kaslr_offset", "phys_base"):
        assert told[0][key] == told[1][key], key


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_page_of_ram(row: Row) -> None:
    """Also what no page table maps: read by physical address, in pieces."""
    dump, stream = both(row, "qemu.stream")
    compared = 0
    with InputFile.open(str(dump.path)) as elf, InputFile.open(str(stream)) as saved:
        ours, theirs = open_dump(saved).memory, open_dump(elf).memory
        for start, end in zip(ours.declared.start.tolist(), ours.declared.end.tolist(), strict=True):
            for paddr in range(start, end, PIECE):
                size = min(PIECE, end - paddr)
                assert ours.read(paddr, size) == theirs.read(paddr, size), hex(paddr)
                compared += size
    assert compared == int(row.memory[:-1]) << {"M": 20, "G": 30}[row.memory[-1]]
