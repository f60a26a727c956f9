"""Two dumps of one kernel, whose modules lie elsewhere, and gdb's cache of indexes: lines stay right.

gdb names the index of a file after its build id, and writes into that of a relocatable file where it was
loaded.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kdump_elftool.arch import find_architecture
from kdump_elftool.cache import Cache
from kdump_elftool.elf.constants import EM_X86_64
from kdump_elftool.jobs.gdb_script import Names, script
from kdump_elftool.jobs.gdb_session import Session
from tests.builders.modules import Made
from tests.builders.tools import gdb_batch, run_command
from tests.unit.jobs.modulekernel import modules_dump

pytestmark = pytest.mark.gdb

SOURCE = """
.globl lab_function
.type lab_function, @function
lab_function:
    nop
    nop
    ret
.size lab_function, . - lab_function
"""
LINE = 'Line 6 of "lab_mod.s" starts at address'
"""The second nop's."""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module with lines and the build id of tests.unit.jobs.modulekernel."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "lab_mod.s").write_text(SOURCE)
    build_id = f"--build-id=0x{bytes(range(20)).hex()}"
    for command in (
        ("as", "--64", "-g", "-o", "lab_mod.o", "lab_mod.s"),
        ("ld", "-r", build_id, "-o", "lab_mod.ko", "lab_mod.o"),
    ):
        subprocess.run(command, cwd=folder, check=True)
    return folder / "lab_mod.ko"


def on(directory: Path) -> list[str]:
    return [f"set index-cache directory {directory}", "set index-cache enabled on"]


def test_kd_mods(module: Path, tmp_path: Path) -> None:
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    # the module is the first, and then the second
    for number, made in enumerate(((), (Made(b"other", build_id=bytes(range(1, 21))),))):
        dump, extra, memory = modules_dump(*made, Made(b"lab_mod"))
        (tmp_path / "dump").write_bytes(dump)
        (tmp_path / "extra").write_text(extra)
        velf = tmp_path / f"velf{number}"
        words = (str(tmp_path / "dump"), "-e", str(tmp_path / "extra"), "-o", str(velf))
        assert run_command("tovelf", *words).returncode == 0
        start = [*on(tmp_path / "cache"), f"source {gdbinit}", f"core-file {velf}"]
        asked = [f"kd-mods {module.parent}", f"info line *{memory.texts[-1] + 1:#x}", "show index-cache"]
        shown = gdb_batch([*start, *asked])
        assert LINE in shown
        assert "The index cache is currently enabled." in shown


def test_the_script_of_a_session(module: Path, tmp_path: Path) -> None:
    cache = Cache.open({"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert cache is not None
    dump, extra, _ = modules_dump(Made(b"lab_mod"))
    (tmp_path / "dump").write_bytes(dump)
    (tmp_path / "extra").write_text(extra)
    velf = str(tmp_path / "velf")
    words = (str(tmp_path / "dump"), "-e", str(tmp_path / "extra"), "-o", velf)
    assert run_command("tovelf", *words).returncode == 0
    # any file with symbols is a vmlinux here
    subprocess.run(["ld", "--build-id=sha1", "-e", "0", "-o", "linked", module], cwd=tmp_path, check=True)
    for text in (0xFFFFFFFFC0100000, 0xFFFFFFFFC0200000):
        load = (f"add-symbol-file {module} -s .text {text:#x}",)
        arch = find_architecture(EM_X86_64, 64)
        assert arch is not None
        session = Session(velf, arch, str(tmp_path / "linked"), None, False, behind=load)
        lines = script(session, Names(cache))
        (tmp_path / "script").write_text("\n".join(lines) + "\n")
        assert LINE in gdb_batch([f"source {tmp_path / 'script'}", f"info line *{text + 1:#x}"])
    # of the vmlinux there is one
    assert len(list(Path(cache.path, "gdb-index").iterdir())) == 1
    cache.close()
