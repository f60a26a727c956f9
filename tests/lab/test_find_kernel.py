"""Every lab dump with its VMCOREINFO note taken away: the kernel is found in memory, and nothing changes.

Only the note in the file is wiped; the guest's memory stays as it was.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Answer
from tests.lab.dumps import LabDump, selected_dumps

pytestmark = [pytest.mark.lab, pytest.mark.slow]

DUMPS = selected_dumps()
HEAD = b"VMCOREINFO\0\0OSRELEASE="
IN_FILE = 16 << 20
"""Notes lie in front of the memory, which has the same text, but behind up to 65,536 program headers."""


@dataclass(frozen=True)
class Stripped:
    """A dump, and its copy without the note."""

    dump: LabDump
    path: Path
    text: bytes


def note_of(path: Path) -> tuple[int, bytes]:
    """Where the note's name begins, and its text."""
    with path.open("rb") as file:
        head = file.read(IN_FILE)
    at = head.index(HEAD)
    size = int.from_bytes(head[at - 8 : at - 4], "little")
    return at, head[at + 12 : at + 12 + size]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def stripped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stripped]:
    dump: LabDump = request.param
    dump.check()
    path = tmp_path_factory.mktemp("stripped") / dump.file
    subprocess.run(["cp", "--sparse=always", str(dump.path), str(path)], check=True)
    at, text = note_of(path)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"NOTHINGHERE\0" + bytes(len(text)))
    yield Stripped(dump, path, text)
    path.unlink()


def segments(core: Path) -> list[tuple[int, int, int, int]]:
    """File offset, address, place in memory and size of every segment, by readelf."""
    shown = subprocess.run(["readelf", "-lW", str(core)], capture_output=True, text=True, check=True).stdout
    rows = re.findall(
        r"(?m)^  LOAD +(0x[0-9a-f]+) (0x[0-9a-f]+) (0x[0-9a-f]+) (0x[0-9a-f]+) (0x[0-9a-f]+)", shown
    )
    assert rows
    return [tuple(int(text, 16) for text in row[:4]) for row in rows]


def contents(core: Path) -> list[tuple[int, int, int, str]]:
    """Address, place in memory, size and digest of every segment."""
    out = []
    with core.open("rb") as file:
        for offset, vaddr, paddr, filesz in segments(core):
            file.seek(offset)
            digest, left = hashlib.blake2b(), filesz
            while left:
                piece = file.read(min(left, 1 << 20))
                assert piece
                digest.update(piece)
                left -= len(piece)
            out.append((vaddr, paddr, filesz, digest.hexdigest()))
    return out


def test_same_velf(stripped: Stripped, answer: Answer, tmp_path: Path) -> None:
    """The same segments with the same bytes, and the note that was missing."""
    found: list[Any] = []
    for path in (stripped.dump.path, stripped.path):
        velf = tmp_path / "velf"
        out, err = answer("tovelf", "-i", path, "-m", stripped.dump.vmlinux, "-o", velf, "--json")
        summary = json.loads(out)
        assert note_of(velf)[1] == stripped.text
        found.append((contents(velf), summary["kaslr_offset"], summary["pgt_root"], summary["warnings"], err))
        velf.unlink()
    assert found[0] == found[1]
    assert len(found[0][0]) > 50


def test_same_answers(stripped: Stripped, answer: Answer) -> None:
    for command in ("ps", "dmesg"):
        assert answer(command, stripped.path) == answer(command, stripped.dump.path)
    plain, _ = answer("info", stripped.dump.path)
    found, err = answer("info", stripped.path)
    assert err == ""
    differs = [
        (before.partition(":")[0], after)
        for before, after in zip(plain.splitlines(), found.splitlines(), strict=True)
        if before != after
    ]
    assert [label for label, _ in differs] == ["file", "vmcoreinfo"]
    where = re.fullmatch(r"vmcoreinfo: +found in memory at 0x[0-9a-f]+", differs[1][1])
    assert where, differs[1][1]


def test_same_pelf(stripped: Stripped, answer: Answer, tmp_path: Path) -> None:
    """topelf keeps the same frames, and its result opens like any other."""
    found = []
    for path in (stripped.dump.path, stripped.path):
        pelf = tmp_path / "pelf"
        answer("topelf", "-i", path, "-o", pelf)
        assert note_of(pelf)[1] == stripped.text
        found.append(contents(pelf))
        assert "vmcoreinfo:    ELF note" in answer("info", pelf)[0]
        pelf.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "dump", [dump for dump in DUMPS if dump.file == "qemu.elf"], ids=lambda dump: dump.id
)
def test_root_by_cr3(dump: LabDump, answer: Answer, tmp_path: Path) -> None:
    """Without phys_base, in a file that has no virtual addresses, CR3 leads to the same root."""
    dump.check()
    path = tmp_path / "dump"
    subprocess.run(["cp", "--sparse=always", str(dump.path), str(path)], check=True)
    at, text = note_of(path)
    with path.open("r+b") as file:
        file.seek(at + 12)
        file.write(text.replace(b"NUMBER(phys_base)", b"NUMBER(phys_xxxx)"))
    plain, found = (json.loads(answer("info", file, "--json")[0]) for file in (dump.path, path))
    path.unlink()
    assert found["sources"]["pgt_root"] == "SYMBOL(swapper_pg_dir) by way of CR3 in QEMU's note"
    for key in ("pgt_root", "page_table_levels", "release", "coverage", "last_log_lines"):
        assert found[key] == plain[key]


@pytest.mark.parametrize(
    "dump", [dump for dump in DUMPS if dump.file == "qemu.elf"], ids=lambda dump: dump.id
)
def test_nothing_but_cr3(dump: LabDump, answer: Answer, tmp_path: Path) -> None:
    """With every copy of VMCOREINFO wiped, in memory as well, the same addresses are mapped."""
    dump.check()
    path, velf = tmp_path / "dump", tmp_path / "velf"
    subprocess.run(["cp", "--sparse=always", str(dump.path), str(path)], check=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as whole:
        at = whole.find(b"OSRELEASE=")
        while at >= 0:
            whole[at : at + 10] = b"nothing at"
            at = whole.find(b"OSRELEASE=", at)
        at = whole.find(b"VMCOREINFO\0\0nothing at")
        whole[at : at + 12] = b"NOTHINGHERE\0"
    _, err = answer("tovelf", "-i", path, "-o", velf, "-l", "all", "--verbose")
    path.unlink()
    assert "(CR3 in QEMU's note)" in err
    assert "little else is known" in err
    found = segments(velf)
    answer("tovelf", "-i", dump.path, "-o", velf, "-l", "all")
    plain = segments(velf)
    velf.unlink()
    # not the bytes: what was wiped is memory, too
    assert [row[1:] for row in found] == [row[1:] for row in plain]
