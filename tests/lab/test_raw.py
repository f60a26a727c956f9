"""QEMU's pmemsave of a stopped guest holds the memory that its dump-guest-memory wrote; so do its pieces."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from lab.config import Row, row_dir
from lab.matrix import read_row
from tests.lab.dumps import kdump_elftool, selected_rows
from tests.lab.variants import ROM_BYTES, Variant, both, loads_of, same_bytes, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROWS = [row for row in selected_rows() if row.name == "x64-61-l4.machine"]
CUTS = (0, 0x5A5A000, 0x10000000)
"""Where the three pieces begin; the last reaches up to the end."""
STEP = 8 << 20


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    dump, _ = both(request.param, "qemu.raw")
    velf = tmp_path_factory.mktemp("original") / "velf"
    yield tovelf([dump.path], velf, dump.vmlinux)
    velf.unlink()


def raw_tovelf(original: Variant, velf: Path, *words: str | Path) -> Variant:
    done = kdump_elftool("tovelf", "-l", "all", "--json", "-o", velf, *words)
    assert done.returncode == 0, done.stderr
    return Variant([], velf, json.loads(done.stdout), original.vmlinux)


def check_same(original: Variant, variant: Variant) -> None:
    compared = same_bytes(original, variant)
    whole = sum(size for _, _, size in loads_of(original.velf))
    assert whole - ROM_BYTES <= compared <= whole
    assert variant.summary["kaslr_offset"] == original.summary["kaslr_offset"]
    assert variant.summary["build_id"] == original.summary["build_id"]
    variant.velf.unlink()


def cut(path: Path, scratch: Path) -> list[str]:
    """The file in pieces, named with their addresses."""
    ends = (*CUTS[1:], path.stat().st_size)
    names = []
    with path.open("rb") as whole:
        for start, end in zip(CUTS, ends, strict=True):
            piece = scratch / f"piece-{start:x}"
            with piece.open("wb") as out:
                whole.seek(start)
                for at in range(start, end, STEP):
                    out.write(whole.read(min(STEP, end - at)))
            names.append(f"{piece}@{start:#x}")
    return names


def test_the_same_memory(original: Variant, tmp_path: Path) -> None:
    path = original.files[0].with_name("qemu.raw")
    check_same(original, raw_tovelf(original, tmp_path / "velf", "-I", "raw", path))


def test_pieces_in_any_order(original: Variant, tmp_path: Path) -> None:
    path = original.files[0].with_name("qemu.raw")
    names = cut(path, tmp_path)
    assert len(names) == len(CUTS) == 3
    first, second, third = names
    check_same(original, raw_tovelf(original, tmp_path / "velf", "-i", third, "-i", first, second))
    for name in names:
        Path(name.rpartition("@")[0]).unlink()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_same_answers(row: Row) -> None:
    dump, path = both(row, "qemu.raw")
    for command in ("dmesg", "ps"):
        answers = [kdump_elftool(command, dump.path), kdump_elftool(command, "-I", "raw", path)]
        assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
        assert answers[0].stdout == answers[1].stdout


SNAPSHOTS = [row for row in selected_rows() if row.name == "x64-61-pc-6g.machine"]
"""Its hole begins at 3 GB, as in the snapshots of which docs/formats.md has an example."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"


def snapshot_commands() -> list[list[str]]:
    """The example of a snapshot's memory in the document."""
    (block,) = re.findall(r"(?m)^```\n(dd if=mem .*\n(?:.+\n)*)```", DOCUMENT.read_text(encoding="utf-8"))
    return [line.split() for line in block.splitlines()]


@pytest.mark.parametrize("row", SNAPSHOTS, ids=lambda row: row.name)
def test_the_example_of_a_snapshot(row: Row, tmp_path: Path) -> None:
    """Memory below and above the hole, one behind the other, cut by the document's own commands."""
    dump, _ = both(row, "qemu.raw")
    with InputFile.open(str(dump.path)) as elf, (tmp_path / "mem").open("wb") as out:
        memory = open_dump(elf).memory
        for start, end in ((0, 3 << 30), (4 << 30, 7 << 30)):
            for paddr in range(start, end, STEP):
                data = memory.read(paddr, STEP)
                if data.count(0) < STEP:
                    out.write(data)
                else:
                    out.seek(STEP, os.SEEK_CUR)
        out.truncate(6 << 30)
    *cuts, info = snapshot_commands()
    for command in cuts:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    pieces = [f"{tmp_path}/{word}" for word in info[2:]]
    answers = [kdump_elftool("dmesg", *paths) for paths in ([dump.path], pieces)]
    assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
    assert answers[0].stdout == answers[1].stdout
    told = [json.loads(kdump_elftool("info", "--json", *paths).stdout) for paths in ([dump.path], pieces)]
    for key in ("release", "build_id", "kaslr_offset", "phys_base"):
        assert told[0][key] == told[1][key], key
    assert told[1]["memory"]["declared_pages"] == (6 << 30) // 4096


MACHINES = [row for row in selected_rows() if row.scenario == "machine"]
WHAT = {
    "x86_64": ("x86_64", "0x0"),
    "i386": ("i386", "0x0"),
    "aarch64": ("arm64", "0x40000000"),
    "arm": ("arm", "0x40000000"),
    "mipsel": ("mips", "0x0"),
    "mips64el": ("mips64", "0x0"),
    "mips": ("mips", "0x0"),
    "mips64": ("mips64", "0x0"),
}
"""By the lab's name of a machine: ours, and where its memory begins."""


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.name)
def test_a_raw_file_says_what_it_is_of(row: Row):
    """Architecture, kernel and the beginning of memory, without a word of either."""
    path = row_dir(row) / "qemu.raw"
    done = kdump_elftool("info", "-I", "raw", "--json", path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    arch, base = WHAT[row.guest.arch.name]
    assert (said["arch"], said.get("ram_base", "0x0")) == (arch, base)
    assert said["release"] == read_row(row)["release"]
    # of a guest with a hole below 4 GB the file has as many bytes as there is memory: its end is missing
    size = path.stat().st_size
    where = [re.findall(r"0x[0-9a-f]+", lost["why"]) for lost in said["coverage"]["lost"]]
    assert all(found and min(int(at, 16) for at in found) >= size for found in where), said["coverage"]
    assert not where or size > 4 << 30
