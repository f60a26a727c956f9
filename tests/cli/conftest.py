"""Run the command line in process and look at everything a user would see of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import Core, check_shape, read_core
from tests.builders.descriptors import leaked, open_descriptors


@dataclass(frozen=True)
class Result:
    """One run: exit code, streams, and the core it wrote (None: no file there)."""

    code: int
    out: str
    err: str
    path: Path

    @property
    def core(self) -> Core:
        """The output, shape checked."""
        core = read_core(self.path)
        check_shape(core)
        return core

    def lines(self, kind: str) -> list[str]:
        """Lines of stderr that begin with ``kind:``."""
        return [line for line in self.err.splitlines() if line.startswith(kind + ":")]


Tovelf = Callable[..., Result]


@pytest.fixture
def tovelf(tmp_path, capfd, monkeypatch) -> Iterator[Tovelf]:
    """``tovelf(image, *options)``: convert, and check the manners that hold for every run.

    Syncing would take most of the time of some 800 runs; tests/unit/test_files.py sees that it is done.
    """
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    def run(image: bytes, *options: str, name: str = "dump") -> Result:
        dump, output = tmp_path / name, tmp_path / "out.velf"
        output.unlink(missing_ok=True)
        dump.write_bytes(image)
        before = set(os.listdir(tmp_path))
        descriptors = open_descriptors()
        code = main(["tovelf", "-l", "all", "-i", str(dump), "-o", str(output), *options])
        captured = capfd.readouterr()
        result = Result(code, captured.out, captured.err, output)
        check_manners(result, before, set(os.listdir(tmp_path)))
        assert not leaked(descriptors), "a descriptor leaked"
        assert dump.read_bytes() == image, "input changed"
        return result

    yield run
    for path in tmp_path.iterdir():  # some 15 MB a test, and pytest keeps the directories of three runs
        if path.is_file():
            path.unlink()


def check_manners(result: Result, before: set[str], after: set[str]) -> None:
    """Error and hint or a core; no traceback; nothing left over."""
    assert "Traceback" not in result.err
    assert "internal error" not in result.err, result.err
    assert "RuntimeWarning" not in result.err
    assert not [char for char in result.err + result.out if ord(char) < 32 and char != "\n"]
    errors, hints = result.lines("error"), result.lines("hint")
    if errors:
        assert result.code in (1, 2)
        assert (len(errors), len(hints)) == (1, 1), result.err
        assert after == before
    else:
        assert result.code in (0, 1)
        assert after == before | {"out.velf"}
        assert read_core(result.path).segments
