"""``kd-mods`` on a synthetic kernel with modules: which files it loads, where, what it says of the others."""

from __future__ import annotations

import lzma
import os
import re
from pathlib import Path

import pytest

from tests.builders.modules import Made
from tests.builders.tools import gdb_batch, run_command
from tests.unit.jobs.modulekernel import module_file, modules_dump

pytestmark = pytest.mark.gdb


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "files" / "kernel"
    folder.mkdir(parents=True)
    return folder


def in_gdb(folder: Path, made: tuple[Made, ...], *commands: str) -> list[str]:
    """What each command shows, and in the end all errors; ``{0}`` is where the first module's text is."""
    dump, extra, memory = modules_dump(*made)
    (folder / "dump").write_bytes(dump)
    (folder / "extra").write_text(extra)
    words = (str(folder / "dump"), "-e", str(folder / "extra"), "-o", str(folder / "velf"))
    assert run_command("tovelf", *words).returncode == 0
    gdbinit = run_command("gdbinit").stdout.decode().strip()
    asked = [part for each in commands for part in (each.format(*memory.texts), "echo ==\\n")]
    shown = gdb_batch([f"source {gdbinit}", f"core-file {folder / 'velf'}", "echo ==\\n", *asked])
    assert "Traceback" not in shown
    assert "Python Exception" not in shown
    return shown.split("==\n")[1:]


def test_files_are_loaded_where_the_modules_are(files, tmp_path):
    """Once: asked again, nothing is loaded twice."""
    (files / "lab-mod.ko").write_bytes(module_file(function="lab_function"))
    wanted = f"kd-mods {tmp_path / 'files'}"
    made = (Made(b"lab_mod"), Made(b"other", build_id=bytes(range(1, 21))))
    loaded, symbol, again, _ = in_gdb(tmp_path, made, wanted, "info symbol {0}", wanted)
    assert f"lab_mod: {files / 'lab-mod.ko'}\n" in loaded
    assert "2 modules: 1 loaded, 1 without a file\nwithout a file: other\n" in loaded
    assert symbol == "lab_function in section .text\n"
    assert "2 modules: 1 loaded before, 1 without a file\n" in again
    assert "lab-mod.ko" not in again


def test_without_build_ids(files, tmp_path):
    """The release decides; and the same file is known by its name."""
    (files / "lab.ko").write_bytes(module_file(vermagic="6.1.0-test-amd64", function="lab_function"))
    wanted = f"kd-mods {tmp_path / 'files'}"
    loaded, again, _ = in_gdb(tmp_path, (Made(build_id=b""),), wanted, wanted)
    assert "1 modules: 1 loaded\n" in loaded
    assert "1 modules: 1 loaded before\n" in again


def test_addresses_in_the_file_are_taken_out(files, tmp_path):
    """gdb gets a copy, which is gone with gdb."""
    (files / "lab.ko").write_bytes(module_file(types=True, sh_addr=0x40, function="lab_function"))
    paths = "python print([each.filename for each in gdb.objfiles()])"
    wanted = f"kd-mods {tmp_path / 'files'}"
    loaded, symbol, copies, again, _ = in_gdb(tmp_path, (Made(),), wanted, "info symbol {0}", paths, wanted)
    assert f"lab: {files / 'lab.ko'}\n" in loaded
    assert symbol == "lab_function in section .text\n"
    (copy,) = re.findall(r"'([^']+/lab\.ko)'", copies)
    assert copy != str(files / "lab.ko")
    assert not os.path.exists(os.path.dirname(copy))
    assert "1 loaded before" in again


def test_what_is_not_loaded_is_said(files, tmp_path):
    (files / "lab.ko.xz").write_bytes(lzma.compress(module_file()))
    (files / "second.ko").write_bytes(module_file(b"\7" * 20))
    made = (Made(), Made(b"second"))
    shown, errors = in_gdb(tmp_path, made, f"kd-mods {tmp_path / 'files'}")
    assert "2 modules: 2 without a file\nwithout a file: lab, second\n" in shown
    assert "hint: 'kdump-elftool gdb --modules DIRECTORY' decompresses modules for gdb" in shown
    assert f"{files / 'lab.ko.xz'} is not used: it is compressed, which gdb cannot read" in errors
    assert f"{files / 'second.ko'} is not used: its build id is {'07' * 20}" in errors


def test_no_file_anywhere(tmp_path):
    """In the usual places of a release that no distribution has; and a word that names no place."""
    shown, _, _, errors = in_gdb(tmp_path, (Made(),), "kd-mods", "kd-mods /no/such", "kd-mods -a")
    assert "without a file: lab\nsearched: /usr/lib/debug/lib/modules/6.1.0-test-amd64, " in shown
    assert "/no/such is no directory" in errors
    assert "that makes no sense to kd-mods" in errors


EVIL = (
    b"x;shell touch pwned",
    b"a\nshell touch pwned",
    b'q"uote',
    b"../files/kernel/lab",
    b"\x1b[31m",
    b"$(id)",
)


def test_hostile_names_do_nothing(files, tmp_path, monkeypatch):
    """Neither those of modules nor those of files."""
    monkeypatch.chdir(tmp_path)
    odd = files / 'a "b" \\ shell touch pwned'
    odd.mkdir()
    (odd / "fine.ko").write_bytes(module_file(function="lab_function"))
    (files / "x;shell touch pwned.ko").write_bytes(module_file())
    (files / "lab.ko").write_bytes(module_file())
    made = (Made(b"fine"), *map(Made, EVIL))
    shown, symbol, errors = in_gdb(tmp_path, made, f"kd-mods {tmp_path / 'files'}", "info symbol {0}")
    assert "1 modules: 1 loaded\n" in shown
    assert symbol == "lab_function in section .text\n"
    assert errors.count("no file is looked for by a name like that") == len(EVIL)
    assert re.findall(r"[^ -~\n\t]", shown + errors) == []
    assert not list(tmp_path.rglob("pwned"))
