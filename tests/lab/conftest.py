"""Each lab dump is converted once; everything that is asked of the result shares that file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.cli.main import main
from tests.lab.dumps import LabDump, kdump_elftool, selected_dumps

DUMPS = selected_dumps()


@dataclass(frozen=True)
class Converted:
    """A dump and its velf; ``summary`` is what ``--json`` printed."""

    dump: LabDump
    velf: Path
    summary: dict[str, Any]
    stderr: str

    @property
    def symbol_file(self) -> str:
        """gdb's command for symbols at the right place, vmlinux not being the program."""
        return f"symbol-file -o {self.summary['kaslr_offset']} {self.dump.vmlinux}"


Answer = Callable[..., tuple[str, str]]


@pytest.fixture
def answer(capfd: pytest.CaptureFixture[str]) -> Answer:
    """``answer(*words)``: what a command prints, standard error too; it must succeed.

    In this process: where many commands are compared their start would take most of the time.
    """

    def run(*words: str | Path) -> tuple[str, str]:
        code = main([*map(str, words)])
        printed = capfd.readouterr()
        assert code == 0, printed.err
        return printed.out, printed.err

    return run


@pytest.fixture(scope="session", params=DUMPS, ids=lambda dump: dump.id)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    yield from _convert(request.param, tmp_path_factory)


@pytest.fixture(
    scope="session",
    params=[dump for dump in DUMPS if dump.scenario in ("kdump", "panic")],
    ids=lambda dump: dump.id,
)
def crashed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    yield from _convert(request.param, tmp_path_factory)


def _convert(dump: LabDump, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    dump.check()
    velf = tmp_path_factory.mktemp(dump.row) / f"{dump.file}.velf"
    before = dump.path.stat()
    done = kdump_elftool("tovelf", "-l", "all", "-i", dump.path, "-m", dump.vmlinux, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    after = dump.path.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    yield Converted(dump, velf, json.loads(done.stdout), done.stderr)
    velf.unlink()
