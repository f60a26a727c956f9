"""A made vmlinux with the line table of the real one: addr2line, gdb and readelf read both."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.dumps import IN_CI, gdb, kdump_elftool
from tests.lab.test_mkvmlinux import Made, make, one_a_kernel, symbols

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = 20261129
CI_ROWS = ("x64-61-l4.kdump",)
ADDRESSES = 1_000
NONE = "no line"


DUMPS = one_a_kernel(CI_ROWS, [])
KDUMPS = [dump for dump in DUMPS if dump.scenario == "kdump" and not IN_CI]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    path = tmp_path_factory.mktemp("lines") / "vmlinux.dump"
    result, warned = make(request.param, path, "--from-vmlinux", request.param.vmlinux)
    assert "line numbers" not in warned
    yield result
    shutil.rmtree(path.parent)


def lines_of(tool: str, path: Path, addresses: list[int]) -> list[str]:
    """File and line of each address, as the tool prints them.

    Without a line it names the file by the symbol table, which has one for the whole kernel in a made file.
    """
    asked = "\n".join(f"{address:#x}" for address in addresses)
    done = subprocess.run([tool, "-e", path], input=asked, capture_output=True, text=True)
    assert not done.stderr
    return [NONE if re.search(":[0?]$", line) else line for line in done.stdout.splitlines()]


def test_addresses_have_the_lines_of_the_real_vmlinux(made):
    """Random ones in random functions, by binutils' reader, which reads both files the same way."""
    rng = random.Random(SEED)
    code = [
        (address, size) for address, size, kind, _ in symbols(made.dump.vmlinux) if kind == "FUNC" and size
    ]
    asked = [address + rng.randrange(size) for address, size in rng.sample(sorted(set(code)), ADDRESSES)]
    real = lines_of("addr2line", made.dump.vmlinux, asked)
    ours = lines_of("addr2line", made.path, [address + made.offset for address in asked])
    assert len(real) == ADDRESSES
    different = [rows for rows in zip(asked, ours, real, strict=True) if rows[1] != rows[2]]
    assert not different, f"{len(different)} of {len(asked)}: {different[:5]}"
    # entries for patching (__pfx_NAME) have none
    assert real.count(NONE) < 0.15 * ADDRESSES
    assert made.summary["source_files"] > 1_500


@pytest.mark.parametrize("made", [] if IN_CI else DUMPS, ids=lambda dump: dump.id, indirect=True)
def test_readelf_has_no_complaint(made):
    done = subprocess.run(
        ["readelf", "-wi", "-wa", "-wR", "-wr", made.path], capture_output=True, text=True, errors="replace"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("DW_AT_stmt_list") >= made.summary["source_files"]


def frames(shown: str) -> list[tuple[str, str]]:
    """Function, and file with line, of each frame of a backtrace, of inlined functions the innermost alone.

    A function's name is that of the outermost, whose frame it is; the compiler's suffix (.cold) is no part.
    """
    found: list[tuple[str, str]] = []
    where = ""
    for row in shown.splitlines():
        frame = re.match(
            r"#\d+ +(?:0x(?P<pc>[0-9a-f]+) in )?(?P<name>[\w.]+) \(.*\)(?: at (?P<at>\S+))?$", row
        )
        if frame is None:
            continue
        # gdb shows the address of the innermost alone, and of none at the beginning of a line
        if found and frame["pc"] is None:
            found[-1] = (frame["name"].split(".")[0], found[-1][1])
        else:
            found.append((frame["name"].split(".")[0], frame["at"] or where))
    return found


@pytest.mark.gdb
@pytest.mark.parametrize("made", KDUMPS, ids=lambda dump: dump.id, indirect=True)
def test_the_panic_has_the_lines_of_the_real_vmlinux(made, tmp_path):
    """Function, file and line of every frame, inlined ones apart, which are in no BTF."""
    velf = tmp_path / "velf"
    assert kdump_elftool("tovelf", "-q", made.dump.path, "-o", velf).returncode == 0
    shown = []
    for symbol_file in (f"{made.path}", f"-o {made.offset:#x} {made.dump.vmlinux}"):
        done = gdb(f"symbol-file {symbol_file}", f"core-file {velf}", "thread apply all -s bt")
        assert "Internal error" not in done.stderr, done.stderr
        shown.append(frames(done.stdout[done.stdout.index("#0 ") :]))
    velf.unlink()
    ours, real = shown
    names = [name for name, _ in real]
    assert "panic" in names and "vfs_write" in names
    entry = next(at for at, name in enumerate(names) if name.startswith("entry_SYSCALL"))
    assert entry > 7
    assert ours[:entry] == real[:entry]
    assert all(re.fullmatch(r"\S+:\d+", where) for _, where in ours[:entry])
