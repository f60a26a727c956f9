"""mkvmlinux of a real kernel whose kallsyms, BTF or ORC is damaged, as in tests/property."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.vmlinux import read_symbols
from tests.lab.dumps import IN_CI, LabDump, kdump_elftool, one_of_each_kernel, selected_dumps
from tests.property.test_mkvmlinux_damage import answers_of, check

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED, CASES = 20261129, 12
ROOM, SECONDS = 384 << 20, 600
TABLES = {
    "kallsyms": ("kallsyms_offsets", "kallsyms_num_syms", "kallsyms_names", "kallsyms_token_index"),
    "BTF": ("__start_BTF", "__stop_BTF"),
    "orc_unwind_ip": ("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
    "orc_unwind": ("__start_orc_unwind", "__stop_orc_unwind"),
}
"""Symbols of the real vmlinux between which they lie, in any order."""
DUMPS = one_of_each_kernel(
    [dump for dump in selected_dumps() if dump.scenario in ("kdump", "live") and not IN_CI]
)


def tables_of(dump: LabDump) -> dict[str, list[int]]:
    """Where each is at run time, and its size."""
    told = json.loads(kdump_elftool("info", dump.path, "--json").stdout)
    offset = int(told["kaslr_offset"] or "0", 16)
    with InputFile.open(str(dump.vmlinux)) as file:
        symbols = read_symbols(ElfFile.read(file))
    found = {}
    for name, edges in TABLES.items():
        low, *_, high = sorted(symbols.find(edge) or 0 for edge in edges)
        assert 0 < low < high < low + (64 << 20), name
        found[name] = [low + offset, high - low]
    return found


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_damaged_tables(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    answers = answers_of(
        dump.path, tables_of(dump), tmp_path, seed=SEED, cases=CASES, room=ROOM, seconds=SECONDS
    )
    assert answers[0]["types"] > 20_000 and answers[0]["frames"]
    written = check(answers)
    assert all(written[name] for name in TABLES), written
