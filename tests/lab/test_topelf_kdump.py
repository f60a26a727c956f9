"""What topelf --format kdump writes of real dumps, judged by crash, drgn, makedumpfile and frame by frame."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from lab.roots import run_in_root
from tests.builders.kdumpread import ReadKdump, read_kdump, unflatten
from tests.lab.bitmaps import second_bitmap
from tests.lab.dumps import LabDump, drgn_oracle, kdump_elftool, tool_root
from tests.lab.test_find_kernel import note_of
from tests.lab.test_other_debuggers import ask_crash, on_cpus

pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow]

CRASHED = LabDump("x64-61-l4.kdump", "kdump", "vmcore")
LIVE = LabDump("x64-7x-l5.live", "live", "qemu.elf")
CODECS = ("zstd", "zlib", "lzo", "snappy", "none")
LEVELS = {"all": 1, "inuse": 17, "user": 23, "cache": 25, "kernel": 31}
REQUEST = {
    "seed": 20261124,
    "samples": {"text": 300, "data": 300, "per-cpu": 300},
    "addresses": [],
    "ram": [],
}
PAGE = 4096


def topelf(dump: Path, out: Path, *options: str, form: str = "kdump") -> dict:
    done = kdump_elftool("topelf", "--format", form, "--json", "-o", out, *options, dump)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Written:
    """A file made of the crashed kernel's dump."""

    codec: str
    path: Path
    summary: dict

    @property
    def dump(self) -> ReadKdump:
        return read_kdump(self.path.read_bytes())


@pytest.fixture(scope="module", params=CODECS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    CRASHED.check()
    path = tmp_path_factory.mktemp("written") / f"{request.param}.kdump"
    summary = topelf(CRASHED.path, path, "--compress", request.param)
    yield Written(request.param, path, summary)
    path.unlink()


@pytest.fixture(scope="module")
def crash_s_answer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ask_crash(tool_root("sid"), CRASHED.path, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def drgn_s_answer(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return drgn_oracle(CRASHED.path, CRASHED.vmlinux, REQUEST, tmp_path_factory.mktemp("drgn"))


def memory_of(core: Path) -> dict[int, tuple[int, int]]:
    """(address, file offset) of every whole page of an ELF dump, by frame."""
    with core.open("rb") as file:
        loads = [part for part in ELFFile(file).iter_segments() if part["p_type"] == "PT_LOAD"]
        return {
            (load["p_paddr"] + at) // PAGE: (load["p_paddr"] + at, load["p_offset"] + at)
            for load in loads
            for at in range(-load["p_paddr"] % PAGE, load["p_filesz"] - PAGE + 1, PAGE)
        }


def check_frames(dump: ReadKdump, core: Path) -> None:
    """Every frame that was written is the original's."""
    places = memory_of(core)
    whole = dump.pages.keys() & places.keys()
    assert len(dump.pages) - len(whole) <= 4, "pages that are only partly RAM"
    with core.open("rb") as file:
        for pfn in sorted(whole):
            file.seek(places[pfn][1])
            assert file.read(PAGE) == dump.pages[pfn], hex(pfn)


def test_crash_answers_the_same(written: Written, crash_s_answer: str, tmp_path: Path) -> None:
    assert ask_crash(tool_root("sid"), written.path, tmp_path) == crash_s_answer
    assert "sysrq_handle_crash" in crash_s_answer


def test_drgn_answers_the_same(written: Written, drgn_s_answer: dict, tmp_path: Path) -> None:
    assert drgn_oracle(written.path, CRASHED.vmlinux, REQUEST, tmp_path) == drgn_s_answer
    assert len(drgn_s_answer["tasks"]) > 40
    assert drgn_s_answer["unreadable"] == {}


def test_every_frame_is_the_original_s(written: Written) -> None:
    dump = written.dump
    assert len(dump.pages) == written.summary["accepted_pages"] > 10000
    check_frames(dump, CRASHED.path)
    assert dump.utsname["release"].decode() == written.summary["release"]
    assert dump.utsname["machine"] == b"x86_64"
    _, text = note_of(CRASHED.path)
    assert dump.vmcoreinfo == text
    assert written.path.stat().st_size == written.summary["file_bytes"]


def test_makedumpfile_filters_it_again(written: Written, crash_s_answer: str, tmp_path: Path) -> None:
    again = tmp_path / "again"
    words = ["makedumpfile", "--message-level", "0", "-c", "-d", "31"]
    binds = {written.path.parent: "/mnt/in", tmp_path: "/mnt/out"}
    files = [f"/mnt/in/{written.path.name}", "/mnt/out/again"]
    done = run_in_root(tool_root("sid"), [*words, *files], binds=binds, timeout=600)
    if written.codec == "snappy":
        assert done.returncode != 0, "Debian's makedumpfile was built without snappy"
        return
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = second_bitmap(written.path), second_bitmap(again)
    assert not (after & ~before[: len(after)]).any()
    assert after.sum() > 0.9 * before.sum()
    check_frames(read_kdump(again.read_bytes()), CRASHED.path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert ask_crash(tool_root("sid"), again, scratch) == crash_s_answer
    answers = [kdump_elftool("ps", path) for path in (CRASHED.path, written.path, again)]
    assert {answer.returncode for answer in answers} == {0}
    assert len({answer.stdout for answer in answers}) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_levels_keep_what_they_keep_in_elf(level: str, tmp_path: Path) -> None:
    """The frames of an ELF core of the same level; those are held against makedumpfile in test_pages.py."""
    kdump, pelf = tmp_path / "kdump", tmp_path / "pelf"
    topelf(CRASHED.path, kdump, "-l", level)
    topelf(CRASHED.path, pelf, "-l", level, form="elf")
    kept = set(np.flatnonzero(second_bitmap(kdump)).tolist())
    assert memory_of(pelf).keys() <= kept
    assert len(kept) - len(memory_of(pelf)) <= 4, "pages that are only partly RAM"
    if level != "all":
        dump = read_kdump(kdump.read_bytes())
        assert dump.sub["dump_level"] == LEVELS[level]
        check_frames(dump, CRASHED.path)
    kdump.unlink()
    pelf.unlink()


def test_a_pipe_gets_what_makedumpfile_and_crash_read(crash_s_answer: str, tmp_path: Path) -> None:
    whole, flat = tmp_path / "whole", tmp_path / "flat"
    topelf(CRASHED.path, whole)
    command = Path(sys.executable).parent / "kdump-elftool"
    with flat.open("wb") as stream:
        subprocess.run(
            [command, "topelf", "-q", "--format", "kdump", CRASHED.path], stdout=stream, check=True
        )
    done = run_in_root(
        tool_root("sid"),
        ["sh", "-c", "makedumpfile --message-level 0 -R /mnt/out/again </mnt/out/flat"],
        binds={tmp_path: "/mnt/out"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "again").read_bytes() == whole.read_bytes() == unflatten(flat.read_bytes())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert ask_crash(tool_root("sid"), flat, scratch) == crash_s_answer


@pytest.mark.parametrize("stripped", [False, True], ids=["as it is", "without VMCOREINFO"])
def test_drgn_on_a_live_machine_s_dump(stripped: bool, tmp_path: Path) -> None:
    LIVE.check()
    source, small = LIVE.path, tmp_path / "small"
    at, text = note_of(LIVE.path)
    if stripped:
        source = tmp_path / "stripped"
        subprocess.run(["cp", "--sparse=always", LIVE.path, source], check=True)
        with source.open("r+b") as file:
            file.seek(at)
            file.write(b"NOTHINGHERE\0" + bytes(len(text)))
    topelf(source, small)
    answers = [drgn_oracle(path, LIVE.vmlinux, REQUEST, tmp_path) for path in (LIVE.path, small)]
    assert answers[0] == answers[1]
    assert len(answers[1]["tasks"]) > 40
    running = [on_cpus(path, LIVE.vmlinux, tmp_path) for path in (LIVE.path, small)]
    assert running[0] == running[1] and any(running[0].values())
    dump = read_kdump(small.read_bytes())
    assert dump.vmcoreinfo == text
    check_frames(dump, LIVE.path)
    for path in {source, small} - {LIVE.path}:
        path.unlink()
