"""What makedumpfile makes of a real dump, against the dump itself: the same memory by every command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from lab.roots import run_in_root
from tests.lab.bitmaps import second_bitmap
from tests.lab.dumps import LabDump, kdump_elftool, tool_root
from tests.lab.variants import Variant, frames_of, same_bytes, tovelf

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


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    DUMP.check()
    velf = tmp_path_factory.mktemp("original") / "velf"
    yield tovelf([DUMP.path], velf, DUMP.vmlinux)
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
    yield tovelf(files, folder / "velf", DUMP.vmlinux)
    for path in folder.iterdir():
        path.unlink()


def test_every_byte_is_the_original_s(original: Variant, variant: Variant) -> None:
    assert same_bytes(original, variant) > 50 << 20


def test_it_holds_what_makedumpfile_kept(variant: Variant) -> None:
    coverage = variant.summary["coverage"]
    kept = int(second_bitmap(variant.files[0]).sum())
    assert coverage["covered_pages"] == kept
    assert all(lost["why"] == "excluded" for lost in coverage["lost"])
    assert variant.summary["architecture"] == "x86_64"


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
    differ = {"file", "format", "memory", "categories", "coverage", "warnings", "sources", "facts"}
    for key in answers[0].keys() - differ:
        assert answers[0][key] == answers[1][key], key
    assert answers[1]["format"] == "kdump"
    # which questions are asked depends on the format: what both asked has one answer
    facts = [{fact["name"]: fact["value"] for fact in answer["facts"]} for answer in answers]
    both = facts[0].keys() & facts[1].keys()
    assert len(both) > 10
    assert {name: facts[0][name] for name in both} == {name: facts[1][name] for name in both}


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
