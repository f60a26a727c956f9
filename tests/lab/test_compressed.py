"""A real dump under every compression that its programs write, and as LiME and AVML images.

pmcore.gz is what topelf and gzip wrote in a crash kernel; decompressed it is the original's way to a velf.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cramjam
import pytest
from elftools.elf.elffile import ELFFile

from tests.builders.images import IDENTIFIER, header
from tests.lab.dumps import LabDump, kdump_elftool, selected_rows

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROWS = [row for row in selected_rows() if row.scenario == "topelf"]
MEMBERS = "head -c 40000000 {0} | {1}; tail -c +40000001 {0} | {1}"
SHAPES = {
    "gzip": "gzip -1 <{0}",
    "gzip, two members": MEMBERS.replace("{1}", "gzip -1"),
    "xz": "xz -T1 -0 <{0}",
    "xz, blocks": "xz -T2 -0 --block-size=8MiB <{0}",
    "zstd": "zstd -q -1 <{0}",
    "zstd, two frames": MEMBERS.replace("{1}", "zstd -q -1"),
    "zstd, long window": "zstd -q -1 --long=27 <{0}",
    "lz4": "lz4 -q -1 <{0}",
    "lz4, linked small blocks": "lz4 -q -1 -B4 -BD --content-size {0} -c",
    "bzip2": "bzip2 -1 <{0}",
}
PIECE = 16 << 20


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def pmcore(request, tmp_path_factory) -> Iterator[Path]:
    dump = LabDump(request.param.name, request.param.scenario, "pmcore.gz")
    assert dump.path.exists(), f"python3 -m lab ensure '{dump.row}'"
    path = tmp_path_factory.mktemp("pmcore") / "pmcore"
    with gzip.open(dump.path) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    yield path
    path.unlink()


def velf_of(dump: Path, *options: str) -> tuple[Path, str]:
    velf = dump.with_name(dump.name + ".velf")
    done = kdump_elftool("tovelf", "-l", "all", "-i", dump, "-o", velf, *options)
    assert done.returncode == 0, done.stderr
    return velf, done.stderr


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def plain(pmcore) -> Iterator[Path]:
    velf, _ = velf_of(pmcore)
    yield velf
    velf.unlink()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_the_crash_kernel_saved(row, plain, tmp_path) -> None:
    """As the original's manual has it, without gunzip in between."""
    copy = tmp_path / "pmcore.gz"
    copy.symlink_to(LabDump(row.name, row.scenario, "pmcore.gz").path)
    velf, said = velf_of(copy)
    assert not said
    assert digest(velf) == digest(plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_velf_from_each_program(pmcore, plain, tmp_path, shape, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    packed = tmp_path / "dump"
    with packed.open("wb") as target:
        subprocess.run(SHAPES[shape].format(pmcore), shell=True, stdout=target, check=True)
    assert packed.stat().st_size < pmcore.stat().st_size // 2
    velf, _ = velf_of(packed)
    assert digest(velf) == digest(plain)
    assert sorted(os.listdir(tmp_path)) == ["dump", "dump.velf"]


def loads(path: Path) -> list[tuple[int, int, int, int]]:
    with path.open("rb") as file:
        return [
            (segment["p_vaddr"], segment["p_paddr"], segment["p_offset"], segment["p_filesz"])
            for segment in ELFFile(file).iter_segments()
            if segment["p_type"] == "PT_LOAD"
        ]


def vmcoreinfo(path: Path) -> bytes:
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments():
            if segment["p_type"] == "PT_NOTE":
                for note in segment.iter_notes():
                    if note["n_name"] == "VMCOREINFO":
                        return bytes(note["n_descdata"])
    raise AssertionError("no VMCOREINFO")


def write_image(kind: str, dump: Path, target: Path) -> None:
    """The memory of an ELF dump as AVML cuts it: at most 16 MB a range, none that is zero."""
    with dump.open("rb") as source, target.open("wb") as out:
        for _, paddr, offset, size in sorted(loads(dump), key=lambda load: load[1]):
            for done in range(0, size, PIECE):
                source.seek(offset + done)
                data = source.read(min(PIECE, size - done))
                out.write(header(kind, paddr + done, paddr + done + len(data) - 1))
                if kind == "lime":
                    out.write(data)
                    continue
                frames = bytes(cramjam.snappy.compress(data))
                assert frames.startswith(IDENTIFIER)
                out.write(frames + len(frames).to_bytes(8, "little"))


@pytest.mark.parametrize("kind", ["lime", "avml"])
@pytest.mark.parametrize("told", [True, False], ids=["VMCOREINFO told", "VMCOREINFO found"])
def test_same_memory_from_an_image(pmcore, plain, tmp_path, kind, told) -> None:
    image, extra = tmp_path / "image", tmp_path / "vminfo"
    write_image(kind, pmcore, image)
    extra.write_bytes(vmcoreinfo(pmcore))
    velf, said = velf_of(image, *(["-e", str(extra)] if told else []))
    assert not said
    ours, theirs = sorted(loads(velf)), sorted(loads(plain))
    assert [(vaddr, size) for vaddr, _, _, size in ours] == [(vaddr, size) for vaddr, _, _, size in theirs]
    with velf.open("rb") as one, plain.open("rb") as other:
        for (vaddr, _, here, size), (_, _, there, _) in zip(ours, theirs, strict=True):
            for done in range(0, size, PIECE):
                one.seek(here + done)
                other.seek(there + done)
                step = min(PIECE, size - done)
                assert one.read(step) == other.read(step), f"differs in {vaddr + done:#x}"
