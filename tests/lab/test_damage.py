"""A real dump with a damaged page table still converts, and says what it lost."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.arch import x86_64
from kdump_elftool.arch.walker import Translation, translate
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from tests.lab.dumps import LabDump, gdb_bytes, kdump_elftool
from tests.lab.test_velf import SEED, segment_addresses

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    """The undamaged dump's velf and its summary."""
    DUMP.check()
    velf = tmp_path_factory.mktemp("sound") / "velf"
    done = kdump_elftool("tovelf", "-l", "all", "-i", DUMP.path, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    yield velf, json.loads(done.stdout)
    velf.unlink()


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    """A copy that the test may damage."""
    copy = tmp_path / "vmcore"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", DUMP.path, copy], check=True)
    yield copy
    copy.unlink()


def stack_address(velf: Path) -> int:
    """An address in vmalloc space that is mapped through a PTE table."""
    addresses = segment_addresses(velf, 4000)
    return next(address for address in addresses if 0xFFFFC90000000000 <= address < 0xFFFFE90000000000)


def walk_to(dump: Dump, summary: dict, vaddr: int) -> Translation:
    form = x86_64.paging_form(summary["page_table_levels"])
    return translate(dump.memory, form, int(summary["pgt_root"], 16), vaddr)


def overwrite(core: Path, paddr: int, data: bytes) -> None:
    """Write to physical memory wherever the core holds it (the kernel text is there twice)."""
    with core.open("r+b") as file:
        places = [
            segment["p_offset"] + paddr - segment["p_paddr"]
            for segment in ELFFile(file).iter_segments()
            if segment["p_type"] == "PT_LOAD"
            and segment["p_paddr"] <= paddr < segment["p_paddr"] + segment["p_filesz"]
        ]
        assert places
        for place in places:
            file.seek(place)
            file.write(data)


@pytest.mark.parametrize("kind", ["garbage in the table", "entry that points nowhere"])
def test_damaged_table_loses_its_range_only(
    kind: str, sound: tuple[Path, dict], damaged: Path, tmp_path: Path
) -> None:
    sound_velf, summary = sound
    victim = stack_address(sound_velf)
    with InputFile.open(str(damaged)) as file:
        steps = walk_to(open_dump(file), summary, victim).steps
    pte, pmd = steps[-1], steps[-2]
    assert (pte.level, pmd.level) == ("pte", "pmd")
    if kind == "garbage in the table":
        overwrite(damaged, pte.table, random.Random(SEED).randbytes(4096))
    else:
        overwrite(damaged, pmd.table + 8 * pmd.index, (0x7FF_FFFF_F000 | 0x63).to_bytes(8, "little"))
    lost_start = victim & ~0x1FFFFF

    velf = tmp_path / "velf"
    done = kdump_elftool("tovelf", "-l", "all", "-i", damaged, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    assert "warning:" in done.stderr
    assert re.search(r"^coverage: .* lost \d+ ranges?: vaddr 0x", done.stderr, re.M), done.stderr
    lost = json.loads(done.stdout)["coverage"]["lost"]
    assert lost
    for part in lost:
        assert lost_start <= int(part["start"], 16) < int(part["end"], 16) <= lost_start + 0x200000, part
    if kind != "garbage in the table":
        assert hex(lost_start) in done.stderr
        assert "pte table at paddr 0x7fffffff000 unreadable" in done.stderr

    elsewhere = [
        address
        for address in segment_addresses(sound_velf, 4000)
        if not lost_start <= address < lost_start + 0x200000
    ]
    before = gdb_bytes(sound_velf, elsewhere, tmp_path)
    after = gdb_bytes(velf, elsewhere, tmp_path)
    different = {hex(address) for address in elsewhere if before[address] != after[address]}
    # the damaged table itself is memory too, seen through the direct map
    assert len(different) <= 3, different
    velf.unlink()

    strict = kdump_elftool("tovelf", "-l", "all", "-i", damaged, "-o", velf, "--strict", "-q")
    assert strict.returncode == 1
    velf.unlink()


def test_truncated_dump_gives_what_is_there(damaged: Path, tmp_path: Path) -> None:
    size = damaged.stat().st_size
    with damaged.open("r+b") as file:
        file.truncate(size * 2 // 3)
    velf = tmp_path / "velf"
    done = kdump_elftool("tovelf", "-l", "all", "-i", damaged, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    coverage = json.loads(done.stdout)["coverage"]
    assert 0.5 < coverage["covered_pages"] / coverage["total_pages"] < 0.8
    assert f"truncated at file offset {size * 2 // 3:#x}" in done.stderr
    velf.unlink()
