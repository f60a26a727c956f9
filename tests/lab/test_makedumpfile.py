"""What makedumpfile makes of a real dump, against the dump itself: the same memory by every command."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from lab.roots import run_in_root
from tests.lab.bitmaps import second_bitmap
from tests.lab.dumps import LabDump, gdb, kdump_elftool, tool_root

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.root, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")
VARIANTS = {
    "raw": ("-d", "31"),
    "zlib": ("-c", "-d", "31"),
    "zlib-all": ("-c", "-d", "0"),
    "zlib-zero": ("-c", "-d", "1"),
    "lzo": ("-l", "-d", "31"),
    "lzo-all": ("-l", "-d", "0"),
    "snappy": ("-p", "-d", "31"),  # Debian's writes raw pages
    "zstd": ("-z", "-d", "31"),
    "split": ("-c", "-d", "31", "--split", "--splitblock-size", "65536"),
}
PARTS = 3


@dataclass(frozen=True)
class Variant:
    """One form of the dump: its files, and the velf of them with what ``--json`` printed."""

    files: list[Path]
    velf: Path
    summary: dict

    @property
    def symbol_file(self) -> str:
        return f"symbol-file -o {self.summary['kaslr_offset']} {DUMP.vmlinux}"


def tovelf(files: list[Path], velf: Path) -> Variant:
    done = kdump_elftool("tovelf", "-l", "all", "--json", "-o", velf, *files)
    assert done.returncode == 0, done.stderr
    return Variant(files, velf, json.loads(done.stdout))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    DUMP.check()
    velf = tmp_path_factory.mktemp("original") / "velf"
    yield tovelf([DUMP.path], velf)
    velf.unlink()


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    folder = tmp_path_factory.mktemp(request.param)
    names = [f"part{number}" for number in range(PARTS if request.param == "split" else 1)]
    done = run_in_root(
        tool_root("sid"),
        ["makedumpfile", "--message-level", "0", *VARIANTS[request.param], f"/mnt/in/{DUMP.file}"]
        + [f"/mnt/out/{name}" for name in names],
        binds={DUMP.path.parent.resolve(): "/mnt/in", folder: "/mnt/out"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [folder / name for name in reversed(names)]
    assert len(files) == 1 or sum(path.stat().st_size > 2 << 20 for path in files) > 1, "no real set"
    yield tovelf(files, folder / "velf")
    for path in folder.iterdir():
        path.unlink()


def loads_of(path: Path) -> list[tuple[int, int, int]]:
    """(vaddr, file offset, size) by address."""
    with path.open("rb") as file:
        segments = [part for part in ELFFile(file).iter_segments() if part["p_type"] == "PT_LOAD"]
        return sorted((part["p_vaddr"], part["p_offset"], part["p_filesz"]) for part in segments)


def test_every_byte_is_the_original_s(original: Variant, variant: Variant) -> None:
    whole = loads_of(original.velf)
    compared = at = 0
    with original.velf.open("rb") as old, variant.velf.open("rb") as new:
        for vaddr, offset, size in loads_of(variant.velf):
            done = 0
            while done < size:
                while whole[at][0] + whole[at][2] <= vaddr + done:
                    at += 1
                start, where, length = whole[at]
                assert start <= vaddr + done, f"{vaddr + done:#x} is not in the original"
                step = min(size - done, start + length - vaddr - done, 8 << 20)
                old.seek(where + vaddr + done - start)
                new.seek(offset + done)
                assert old.read(step) == new.read(step), hex(vaddr + done)
                done += step
            compared += size
    assert compared == sum(size for _, _, size in loads_of(variant.velf))
    assert compared > 50 << 20


def test_it_holds_what_makedumpfile_kept(variant: Variant) -> None:
    coverage = variant.summary["coverage"]
    kept = int(second_bitmap(variant.files[0]).sum())
    assert coverage["covered_pages"] == kept
    assert all(lost["why"] == "excluded" for lost in coverage["lost"])
    assert variant.summary["architecture"] == "x86_64"


def frames_of(core: Variant) -> list[str]:
    shown = gdb(f"core-file {core.velf}", core.symbol_file, "thread apply all bt")
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stderr
    return re.findall(r"^#\d+ .*$", shown.stdout, re.M)


@pytest.fixture(scope="module")
def original_frames(original: Variant) -> list[str]:
    return frames_of(original)


def test_panic_backtrace(original_frames: list[str], variant: Variant) -> None:
    assert frames_of(variant) == original_frames


@pytest.mark.parametrize("command", ["dmesg", "ps"])
def test_commands_print_the_same(variant: Variant, command: str) -> None:
    answers = [kdump_elftool(command, *files) for files in ([DUMP.path], variant.files)]
    assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
    assert answers[0].stdout == answers[1].stdout
    assert len(answers[1].stdout.splitlines()) > 40


def test_info_knows_the_same(variant: Variant) -> None:
    answers = [
        json.loads(kdump_elftool("info", "--json", *files).stdout) for files in ([DUMP.path], variant.files)
    ]
    differ = {"file", "format", "memory", "categories", "coverage", "warnings", "sources"}
    for key in answers[0].keys() - differ:
        assert answers[0][key] == answers[1][key], key
    assert answers[1]["format"] == "kdump"


def test_single_bytes(original: Variant, variant: Variant) -> None:
    address = f"{int(DUMP.truth['kallsyms']['_stext'], 16):x}"
    answers = [
        kdump_elftool("virttophys", "-i", files[0], address) for files in ([DUMP.path], variant.files[-1:])
    ]
    if len(variant.files) == 1:
        assert answers[0].stdout == answers[1].stdout != ""
        texts = [
            kdump_elftool("dumpmem", "-i", path, address, "1000").stdout
            for path in (DUMP.path, variant.files[0])
        ]
        assert texts[0] == texts[1] != ""


def test_readelf_has_no_complaint(variant: Variant) -> None:
    done = subprocess.run(["readelf", "-lW", variant.velf], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
