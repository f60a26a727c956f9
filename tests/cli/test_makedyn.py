"""makedyn: two bytes of a vmlinux, nothing else, and back."""

from __future__ import annotations

import io
import json
import os
import stat
import struct

import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.cli.main import main
from tests.builders.elfcore import CoreSpec, SegmentSpec, build_core
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel

TIME = 1_600_000_000_123_456_789


@pytest.fixture
def vmlinux(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(build_vmlinux())
    os.chmod(path, 0o640)
    os.utime(path, ns=(TIME, TIME))
    return path


def e_type(path) -> str:
    return ELFFile(io.BytesIO(path.read_bytes())).header["e_type"]


def test_in_place_and_undo(vmlinux, capfd):
    before = vmlinux.read_bytes()
    assert main(["makedyn", str(vmlinux)]) == 0
    after = vmlinux.read_bytes()
    assert (e_type(vmlinux), len(after)) == ("ET_DYN", len(before))
    assert [at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [16]
    assert vmlinux.stat().st_mtime_ns == TIME, "gdb compares the time with the core's"
    assert stat.S_IMODE(vmlinux.stat().st_mode) == 0o640
    assert main(["makedyn", "--undo", str(vmlinux)]) == 0
    assert vmlinux.read_bytes() == before
    assert vmlinux.stat().st_mtime_ns == TIME
    assert capfd.readouterr() == ("", "")


def test_twice_is_once(vmlinux):
    assert main(["makedyn", str(vmlinux)]) == 0
    once = vmlinux.read_bytes()
    assert main(["makedyn", str(vmlinux)]) == 0
    assert vmlinux.read_bytes() == once
    assert main(["makedyn", "--undo", str(vmlinux)]) == 0
    assert main(["makedyn", "--undo", str(vmlinux)]) == 0
    assert e_type(vmlinux) == "ET_EXEC"


def test_several(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(build_vmlinux())
    assert main(["makedyn", *map(str, paths)]) == 0
    assert [e_type(path) for path in paths] == ["ET_DYN", "ET_DYN"]


def test_copy(vmlinux, tmp_path):
    before = vmlinux.read_bytes()
    copy = tmp_path / "copy"
    assert main(["makedyn", "-o", str(copy), str(vmlinux)]) == 0
    assert vmlinux.read_bytes() == before
    assert e_type(copy) == "ET_DYN"
    assert copy.read_bytes()[18:] == before[18:]
    assert sorted(os.listdir(tmp_path)) == ["copy", "vmlinux"]
    assert main(["makedyn", "--undo", "-o", str(tmp_path / "back"), str(copy)]) == 0
    assert (tmp_path / "back").read_bytes() == before


def test_copy_onto_itself_is_refused(vmlinux, capfd):
    before = vmlinux.read_bytes()
    assert main(["makedyn", "-o", str(vmlinux), str(vmlinux)]) == 2
    assert vmlinux.read_bytes() == before


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("elf_class", [32, 64])
def test_every_class_and_byte_order(tmp_path, elf_class, order):
    path = tmp_path / "vmlinux"
    spec = CoreSpec([SegmentSpec(0, b"x")], elf_class=elf_class, big_endian=order == ">", e_type=2, machine=8)
    path.write_bytes(build_core(spec))
    assert main(["makedyn", str(path)]) == 0
    assert struct.unpack_from(order + "H", path.read_bytes(), 16) == (3,)
    assert e_type(path) == "ET_DYN"


@pytest.mark.parametrize(
    "image", [b"", b"text", build_vmlinux()[:40], make_kernel(SMALL).dump()[:8192], build_vmlinux(e_type=1)]
)
def test_what_is_no_vmlinux_stays_as_it_is(tmp_path, image, capfd):
    path = tmp_path / "file"
    path.write_bytes(image)
    assert main(["makedyn", str(path)]) == 1
    assert path.read_bytes() == image
    assert main(["makedyn", "-o", str(tmp_path / "copy"), str(path)]) == 1
    assert os.listdir(tmp_path) == ["file"]
    err = capfd.readouterr().err
    assert err.count("error: ") == err.count("hint: ") == 2


@pytest.mark.parametrize("argv", [["-o", "copy"], ["-o", "copy", "a", "b"], ["--no-such-option"]])
def test_usage(argv, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["makedyn", *argv]) == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words", [(), ("--undo",), ("--json",)])
def test_a_file_has_to_be_named(capfd, words):
    assert main(["makedyn", *words]) == 2
    assert capfd.readouterr() == (
        "",
        "error: no file is named that may be changed\nhint: kdump-elftool makedyn VMLINUX...\n",
    )


def test_json_stays_out_of_a_copy_on_stdout(vmlinux, capfdbinary):
    before = vmlinux.read_bytes()
    assert main(["makedyn", "--json", "-o", "-", str(vmlinux)]) == 0
    out, err = capfdbinary.readouterr()
    assert out == before[:16] + b"\3" + before[17:]
    assert json.loads(err) == {"schema": "kdump-elftool/makedyn/1", "changed": ["-"]}


def test_missing_file(capfd):
    assert main(["makedyn", "/nowhere/vmlinux"]) == 1
    assert "/nowhere/vmlinux" in capfd.readouterr().err
