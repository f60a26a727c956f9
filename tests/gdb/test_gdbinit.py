"""gdb sources the file, wherever it lies and whatever it is called by."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.builders.tools import gdb_batch, run_command

pytestmark = pytest.mark.gdb

LOADED = "python import kdump_elftool.gdbside.loader as l; print('loaded from', l.__file__)"


def gdbinit() -> Path:
    return Path(run_command("gdbinit").stdout.decode().strip())


def test_path_is_told_as_json_too():
    told = json.loads(run_command("gdbinit", "--json").stdout)
    assert told == {"schema": "kdump-elftool/gdbinit/1", "path": str(gdbinit())}
    assert gdbinit().is_file()


@pytest.mark.parametrize("times", [1, 2])
def test_sourced(times):
    shown = gdb_batch([f"source {gdbinit()}"] * times + [LOADED, "python import sys; print(sys.path)"])
    assert shown.splitlines()[0] == f"loaded from {gdbinit().parent / 'loader.py'}"
    assert "Error" not in shown
    assert f"'{gdbinit().parents[2]}'" not in shown  # what else is installed there is not for gdb


def test_sourced_by_links_and_from_other_places(tmp_path, monkeypatch):
    (tmp_path / "mine").symlink_to(gdbinit())
    (tmp_path / "again").symlink_to("mine")
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "./again", tmp_path / "again"):
        assert gdb_batch([f"source {name}", LOADED]).startswith("loaded from"), name
    (tmp_path / "init").write_text(f"source {tmp_path / 'again'}\n")
    assert gdb_batch(["source init", LOADED]).startswith("loaded from")


def test_another_package_in_its_place(tmp_path):
    """Sourced from elsewhere afterwards, all of it is that one's."""
    copied = tmp_path / "kdump_elftool"
    shutil.copytree(gdbinit().parents[1], copied, ignore=shutil.ignore_patterns("__pycache__"))
    shown = gdb_batch([f"source {gdbinit()}", f"source {copied / 'gdbside' / 'kdump_gdbinit'}", LOADED])
    assert shown.splitlines()[0] == f"loaded from {copied / 'gdbside' / 'loader.py'}"


def test_a_copy_alone_says_what_to_do(tmp_path):
    shutil.copy(gdbinit(), tmp_path)
    shown = gdb_batch([f"source {tmp_path / 'kdump_gdbinit'}"])
    assert "kdump_gdbinit does not find the rest of kdump-elftool beside it" in shown
    assert "Traceback" not in shown


def test_in_the_checkout_it_is_at_the_top():
    top = Path(__file__).parents[2] / "kdump_gdbinit"
    assert os.path.samefile(top, Path(__file__).parents[2] / "src/kdump_elftool/gdbside/kdump_gdbinit")


@pytest.mark.parametrize(
    ("version", "wanted"), [("10.1", True), ("13.1", True), ("14.1", False), ("16.3", False)]
)
def test_the_unwinder_is_for_gdbs_that_need_it(version, wanted):
    shown = gdb_batch(
        [
            f"source {gdbinit()}",
            "python from kdump_elftool.gdbside.arm64_unwinder import mis_unwinds",
            f"python print('needed', mis_unwinds('{version}'))",
        ]
    )
    assert shown.startswith(f"needed {wanted}")
