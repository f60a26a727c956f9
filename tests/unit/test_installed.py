"""The package under test is the one that was meant, and it is complete."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import kdump_elftool

ROOT = Path(__file__).parents[2]
WHEEL_ENV = os.environ.get("KDUMP_ELFTOOL_TEST_WHEEL")


def test_version_is_the_one_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version("kdump-elftool") == project["version"]
    shown = subprocess.run(
        [sys.executable, "-m", "kdump_elftool", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"kdump-elftool {project['version']}\n"


@pytest.mark.skipif(not WHEEL_ENV, reason="only ./test installs the wheel")
def test_wheel_is_what_is_tested() -> None:
    package = Path(str(kdump_elftool.__file__)).parent
    assert package.parent.name == "site-packages"
    assert Path(str(WHEEL_ENV)).resolve() in package.resolve().parents
    source = ROOT / "src" / "kdump_elftool"
    shipped = {path.relative_to(package) for path in package.rglob("*") if path.suffix != ".pyc"}
    expected = {path.relative_to(source) for path in source.rglob("*") if path.suffix != ".pyc"}
    assert {path for path in expected - shipped if path.name != "__pycache__"} == set()
    assert not any(str(source.parent) == entry for entry in sys.path)


@pytest.mark.skipif(not WHEEL_ENV, reason="only ./test installs the wheel")
def test_wheel_brings_its_command_and_man_page() -> None:
    environment = Path(str(WHEEL_ENV))
    shown = subprocess.run(
        [environment / "bin" / "kdump-elftool", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("kdump-elftool ")
    assert (environment / "share" / "man" / "man1" / "kdump-elftool.1").is_file()
