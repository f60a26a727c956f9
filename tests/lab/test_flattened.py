"""What makedumpfile -F makes of a real dump: the file of makedumpfile -R, and the same velf, by a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.formats.flattened import open_flattened
from lab.roots import run_in_root
from tests.lab.dumps import LabDump, gdb, kdump_elftool, tool_root

pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow]

DUMP = LabDump("x64-61-l4.kdump", "kdump", "vmcore")
ELF = ("elf", "elf whole")
WAYS = {"elf": "-E -d 31", "elf whole": "-E -d 0", "zlib": "-c -d 31", "lzo": "-l -d 17"}
PIECE = 3_000_001


@dataclass(frozen=True)
class Pair:
    """A flattened file, and what makedumpfile itself makes of it."""

    way: str
    flat: Path
    rearranged: Path


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    DUMP.check()
    place = tmp_path_factory.mktemp("flattened")
    options = WAYS[request.param]
    done = run_in_root(
        tool_root("sid"),
        [
            "sh", "-ec",
            f"makedumpfile {options} -F /mnt/in/{DUMP.file} >/mnt/out/flat\n"
            "makedumpfile -R /mnt/out/rearranged </mnt/out/flat",
        ],
        binds={DUMP.directory.resolve(): "/mnt/in", place: "/mnt/out"},
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = Pair(request.param, place / "flat", place / "rearranged")
    yield found
    found.flat.unlink()
    found.rearranged.unlink()


def piped(flat: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    """``cat flat | kdump-elftool ...``."""
    command = [str(Path(sys.executable).parent / "kdump-elftool"), *map(str, argv)]
    with subprocess.Popen(["cat", str(flat)], stdout=subprocess.PIPE) as cat:
        return subprocess.run(command, stdin=cat.stdout, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("pair", WAYS, indirect=True)
def test_byte_for_byte_what_makedumpfile_makes_of_it(pair: Pair) -> None:
    with InputFile.open(str(pair.flat)) as file, pair.rearranged.open("rb") as expected:
        source = open_flattened(file, OpenOptions())
        assert (source.warnings, len(source.missing)) == ((), 0)
        # a hole at the end, which -R leaves out, is no part of it
        assert source.size == pair.rearranged.stat().st_size
        for offset in range(0, source.size, PIECE):
            assert source.read_at(offset, PIECE) == expected.read(PIECE), hex(offset)


@pytest.mark.gdb
@pytest.mark.parametrize("pair", WAYS, indirect=True)
def test_panic_backtrace_by_a_pipe(pair: Pair, tmp_path: Path) -> None:
    velf, other = tmp_path / "velf", tmp_path / "other"
    done = piped(pair.flat, "tovelf", "-i", "-", "-m", DUMP.vmlinux, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    assert (
        kdump_elftool("tovelf", "-i", pair.rearranged, "-m", DUMP.vmlinux, "-o", other, "-q").returncode == 0
    )
    assert subprocess.run(["cmp", velf, other]).returncode == 0
    offset = json.loads(done.stdout)["kaslr_offset"]
    shown = gdb(f"core-file {velf}", f"symbol-file -o {offset} {DUMP.vmlinux}", "thread apply all bt")
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert function in shown.stdout, shown.stdout + shown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "velf"]
    velf.unlink()
    other.unlink()


@pytest.mark.parametrize("pair", ELF, indirect=True)
def test_a_stream_that_was_cut_is_said_to_be(pair: Pair, tmp_path: Path) -> None:
    """-E sends its program headers last: without them there is nothing, but the reason."""
    size = pair.flat.stat().st_size
    part = tmp_path / "part"
    subprocess.run(["cp", "--sparse=always", pair.flat, part], check=True)
    for keep, code in ((size - 8, 0), (size * 2 // 3, 1)):
        with part.open("r+b") as file:
            file.truncate(keep)
        done = kdump_elftool("info", part)
        assert done.returncode == code, done.stderr
        assert f"ends at file offset {keep:#x} without an end mark" in done.stderr
    part.unlink()


@pytest.mark.parametrize("pair", [way for way in WAYS if way not in ELF], indirect=True)
def test_the_part_of_a_compressed_dump_that_came_is_right(pair: Pair, tmp_path: Path) -> None:
    """Its headers come first: two thirds of the stream are two thirds of the pages, or nearly."""
    with InputFile.open(str(pair.rearranged)) as file:
        whole = open_dump(file)
        part = tmp_path / "part"
        subprocess.run(["cp", pair.flat, part], check=True)
        with part.open("r+b") as cut:
            cut.truncate(pair.flat.stat().st_size * 2 // 3)
        with InputFile.open(str(part)) as cut_file:
            dump = open_dump(cut_file)
            assert any("without an end mark" in warning for warning in dump.warnings)
            present = dump.memory.present()
            assert 0.5 < present.total / whole.memory.present().total < 0.75
            for start, end in zip(present.start.tolist(), present.end.tolist(), strict=True):
                for at in range(start, end, PIECE // 4096 * 4096):
                    size = min(end - at, PIECE // 4096 * 4096)
                    found = memoryview(bytearray(size))
                    holes = dump.memory.read_present(at, found)
                    expected = bytearray(whole.memory.read(at, size))
                    for low, high in holes:
                        expected[low:high] = bytes(high - low)
                    assert found == expected, hex(at)
        part.unlink()
