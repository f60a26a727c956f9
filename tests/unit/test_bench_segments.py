"""Cores made to measure gdb: readelf counts what is in them, and in which order."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bench.generate import VMALLOC
from bench.segments import ORDERS, PAGE, _with_more, _write

COUNT = 300


def readelf(core: Path, what: str) -> str:
    argv = ["readelf", what, "-W", str(core)]
    done = subprocess.run(argv, capture_output=True, text=True, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def addresses(core: Path) -> list[int]:
    return [int(vaddr, 16) for vaddr in re.findall(r"^ +LOAD +\S+ +(0x\w+)", readelf(core, "-l"), re.M)]


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("notes_last", [False, True])
def test_made_core(tmp_path: Path, name: str, notes_last: bool) -> None:
    core = tmp_path / "core"
    wanted = ORDERS[name]([VMALLOC + 2 * PAGE * number for number in range(COUNT)])
    _write(core, wanted, 3, notes_last)
    assert addresses(core) == wanted
    kinds = re.findall(r"^ +(NOTE|LOAD) ", readelf(core, "-l"), re.M)
    assert kinds.index("NOTE") == (COUNT if notes_last else 0)
    assert readelf(core, "-n").count("NT_PRSTATUS") == 3


@pytest.mark.parametrize("more", [0, 10, 66_000])
def test_segments_are_added(tmp_path: Path, more: int) -> None:
    """Behind the others, or in order; more than e_phnum counts too."""
    core, many = tmp_path / "core", tmp_path / "many"
    _write(core, [VMALLOC + 4 * PAGE, VMALLOC + PAGE], 1, False)
    assert _with_more(core, many, more, False) == more + 2
    found = addresses(many)
    assert found[:2] == [VMALLOC + 4 * PAGE, VMALLOC + PAGE]
    assert len(set(found)) == more + 2
    _with_more(core, many, more, True)
    assert addresses(many) == sorted(found)
