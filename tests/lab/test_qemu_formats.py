"""A stopped guest in every format of QEMU's dump-guest-memory: the same memory by every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.config import Row
from tests.lab.dumps import LabDump, kdump_elftool, selected_rows
from tests.lab.variants import Variant, frames_of, same_bytes, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

KDUMP = {"formats": ("kdump-zlib",), "newer": ("kdump-zlib", "kdump-raw-zlib")}
"""What the QEMU of each scenario has besides ELF: Debian builds it without LZO and snappy; newer ones also
write plain kdump files (raw) beside flattened ones."""
ROWS = [row for row in selected_rows() if row.scenario in KDUMP]
FORMATS = [
    pytest.param(row.name, name, id=f"{row.name}-{name}") for row in ROWS for name in KDUMP[row.scenario]
]


def elf_of(row: str) -> LabDump:
    return LabDump(row, row.rpartition(".")[2], "qemu.elf")


@pytest.fixture(scope="module")
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    dump = elf_of(request.param)
    dump.check()
    velf = tmp_path_factory.mktemp("original") / "velf"
    yield tovelf([dump.path], velf, dump.vmlinux)
    velf.unlink()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_lab_made_them(row: Row) -> None:
    dump = elf_of(row.name)
    dump.check()
    made = {path.name.removeprefix("qemu.") for path in dump.directory.glob("qemu.*")}
    assert made - {"stream", "stream.gz"} == {"elf", *KDUMP[row.scenario]}


@pytest.mark.parametrize(("original", "name"), FORMATS, indirect=["original"])
def test_the_same_memory(original: Variant, name: str, tmp_path: Path) -> None:
    elf = original.files[0]
    path = elf.with_name(f"qemu.{name}")
    variant = tovelf([path], tmp_path / "velf", original.vmlinux)
    assert variant.summary["warnings"] == original.summary["warnings"]
    assert same_bytes(original, variant) == same_bytes(original, original)
    assert frames_of(variant) == frames_of(original)
    variant.velf.unlink()
    for command in ("dmesg", "ps"):
        answers = [kdump_elftool(command, file) for file in (elf, path)]
        assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
        assert answers[0].stdout == answers[1].stdout
    answers = [json.loads(kdump_elftool("info", "--json", file).stdout) for file in (elf, path)]
    for key in ("release", "build_id", "panic_message", "kaslr_offset", "cpus", "categories"):
        assert answers[0][key] == answers[1][key], key
