"""The copy of Python, numpy and kdump-elftool for a crash initramfs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdump_elftool.jobs.initramfs import (
    HOME,
    STDLIB_LEFT_OUT,
    check,
    choose_numpy,
    choose_stdlib,
    copy_modules,
    fill,
)

HOOK = Path(__file__).parents[3] / "contrib" / "initramfs-hook"


def tool(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """What the launcher runs, with the tree where it is instead of at /."""
    environment = {"PYTHONHOME": str(home), "PYTHONPATH": str(home / "packages")}
    argv = [home / "bin/python3", "-S", "-s", "-P", "-B", "-m", "kdump_elftool", *args]
    return subprocess.run(argv, env=environment, capture_output=True, text=True)


def test_topelf_needs_nothing_that_is_left_out():
    script = "import kdump_elftool.cli.topelf, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    left_out = STDLIB_LEFT_OUT - {"site-packages", "dist-packages"}
    assert {name.partition(".")[0] for name in loaded.split()} & (left_out | {"elftools"}) == set()


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("json", True),
        ("os.py", True),
        ("test", False),
        ("tkinter", False),
        ("site-packages", False),
        ("config-3.11-x86_64-linux-gnu", False),
        ("_struct.cpython-311-x86_64-linux-gnu.so", True),
        ("zlib.cpython-311-x86_64-linux-gnu.so", True),
        ("_ssl.cpython-311-x86_64-linux-gnu.so", False),
        ("_testcapi.cpython-311-x86_64-linux-gnu.so", False),
        ("_tkinter.cpython-311-x86_64-linux-gnu.so", False),
    ],
)
def test_what_is_taken_of_the_standard_library(name: str, taken: bool):
    assert choose_stdlib(Path("lib/python3.11") / name) == taken


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("numpy/_core", True),
        ("numpy/fft", False),
        ("numpy/f2py", False),
        ("numpy/lib/_polynomial_impl.py", True),
        ("numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so", True),
        ("numpy/_core/_multiarray_tests.cpython-311-x86_64-linux-gnu.so", False),
        ("numpy/_core/_simd.cpython-311-x86_64-linux-gnu.so", False),
        ("numpy/_core/fft.py", True),
    ],
)
def test_what_is_taken_of_numpy(name: str, taken: bool):
    assert choose_numpy(Path(name)) == taken


def test_modules_are_compiled_and_tests_stay_behind(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in ("inner", "tests", "__pycache__"):
        (source / folder).mkdir(parents=True)
    (source / "one.py").write_text("x = 1\n")
    (source / "inner/two.py").write_text("y = 2\n")
    (source / "inner/typed.pyi").write_text("y: int\n")
    (source / "inner/fast.abi3.so").write_bytes(b"\x7fELF")
    (source / "tests/test_one.py").write_text("")
    (source / "__pycache__/one.pyc").write_bytes(b"")
    objects = list(copy_modules(source, target, lambda _path: True))
    assert objects == [target / "inner/fast.abi3.so"]
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {"one.pyc", "inner/two.pyc", "inner/fast.abi3.so"}


def test_the_hook_has_no_prerequisites_and_no_default_folder():
    environment = {"PATH": os.environ["PATH"]}
    asked = subprocess.run([HOOK, "prereqs"], env=environment, capture_output=True, text=True)
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
    # mkinitramfs leaves out hooks that the shell can't parse
    assert subprocess.run(["sh", "-n", HOOK]).returncode == 0


@pytest.mark.slow
def test_the_copy_runs_on_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    root = tmp_path / "root"
    fill(root)
    home = root / HOME
    assert "MB" in capfd.readouterr().err
    launcher = root / "usr/bin/kdump-elftool"
    assert os.access(launcher, os.X_OK)
    assert subprocess.run(["sh", "-n", launcher]).returncode == 0
    assert list(home.rglob("*.py")) == []
    shown = tool(home, "topelf", "--help")
    assert shown.returncode == 0, shown.stderr
    refused = tool(home, "topelf", "-i", str(launcher), "-o", str(tmp_path / "out"))
    assert refused.returncode == 1
    assert refused.stderr.startswith("error:")
    assert "internal error" not in refused.stderr
    # a second run replaces the copy
    (home / "old").touch()
    fill(root)
    assert not (home / "old").exists()


@pytest.mark.slow
def test_a_copy_that_lacks_a_module_is_an_error(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / HOME / "packages/numpy/version.pyc").unlink()
    with pytest.raises(SystemExit, match="does not run"):
        check(tmp_path / HOME)
