"""A stopped guest in every format of QEMU's dump-guest-memory: the same memory by every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.dumps import LabDump, kdump_elftool
from tests.lab.variants import Variant, frames_of, same_bytes, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.formats", "formats", "qemu.elf")
KDUMP = ("kdump-zlib",)
"""What Debian 12's QEMU has besides ELF; others have lzo, snappy and, newer ones, kdump-raw-*, too."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    DUMP.check()
    velf = tmp_path_factory.mktemp("original") / "velf"
    yield tovelf([DUMP.path], velf, DUMP.vmlinux)
    velf.unlink()


def test_the_lab_made_them() -> None:
    DUMP.check()
    made = {path.name.removeprefix("qemu.") for path in DUMP.directory.glob("qemu.*")}
    assert made >= {"elf", *KDUMP}


@pytest.mark.parametrize("name", KDUMP)
def test_the_same_memory(original: Variant, name: str, tmp_path: Path) -> None:
    DUMP.check()
    path = DUMP.directory / f"qemu.{name}"
    variant = tovelf([path], tmp_path / "velf", DUMP.vmlinux)
    assert variant.summary["warnings"] == original.summary["warnings"]
    assert same_bytes(original, variant) == same_bytes(original, original)
    assert frames_of(variant) == frames_of(original)
    variant.velf.unlink()
    for command in ("dmesg", "ps"):
        answers = [kdump_elftool(command, file) for file in (DUMP.path, path)]
        assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
        assert answers[0].stdout == answers[1].stdout
    answers = [json.loads(kdump_elftool("info", "--json", file).stdout) for file in (DUMP.path, path)]
    for key in ("release", "build_id", "panic_message", "kaslr_offset", "cpus", "categories"):
        assert answers[0][key] == answers[1][key], key
