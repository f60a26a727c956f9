"""Dumps that were compressed as a whole: every command takes them as they are."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.codecs import index
from tests.builders.check import check_subset, read_core
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel
from tests.builders.streams import COMPRESS, SHAPES


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL)


@pytest.fixture(scope="module")
def image(kernel):
    return kernel.dump()


@pytest.mark.parametrize("name", [*COMPRESS, "xz, blocks", "gzip, two members"])
def test_same_core_as_from_the_bare_dump(tovelf, image, name):
    plain = tovelf(image).path.read_bytes()
    result = tovelf(SHAPES[name](image))
    assert result.code == 0
    assert not result.err
    assert result.path.read_bytes() == plain


def test_layers_nest(tovelf, image):
    plain = tovelf(image).path.read_bytes()
    assert tovelf(COMPRESS["xz"](gzip.compress(image, 1))).path.read_bytes() == plain
    many = image
    for _ in range(6):
        many = gzip.compress(many, 1)
    assert "gzip" in tovelf(many).lines("error")[0]


def test_a_temporary_file_is_told_once(tovelf, image, monkeypatch, tmp_path):
    monkeypatch.setattr(index, "GAP", 1 << 20)
    monkeypatch.delenv("TMPDIR", raising=False)
    plain = tovelf(image).path.read_bytes()
    result = tovelf(COMPRESS["zstd"](image))
    assert result.err.count("temporary file") == 1
    assert str(tmp_path) in result.err, "beside the output"
    assert result.path.read_bytes() == plain
    assert "temporary" not in tovelf(COMPRESS["zstd"](image), "-q").err


def test_what_the_originals_manual_says(image, tmp_path):
    """``topelf -o - | gzip >pmcore.gz``, then ``tovelf -i pmcore.gz -o velf``."""
    (tmp_path / "vmcore").write_bytes(image)
    topelf = f"{sys.executable} -m kdump_elftool topelf -l all -i {tmp_path}/vmcore"
    subprocess.run(
        f"{topelf} | gzip -1 >{tmp_path}/pmcore.gz", shell=True, check=True, stderr=subprocess.PIPE
    )
    assert (tmp_path / "pmcore.gz").stat().st_size > 10_000
    for name in ("pmcore.gz", "vmcore"):
        assert main(["tovelf", "-l", "all", "-i", f"{tmp_path}/{name}", "-o", f"{tmp_path}/{name}.velf"]) == 0
    velfs = [read_core(tmp_path / f"{name}.velf") for name in ("pmcore.gz", "vmcore")]
    for load in velfs[1].loads:
        size = load["p_filesz"]
        assert velfs[0].read(load["p_vaddr"], size) == velfs[1].read(load["p_vaddr"], size)


def test_topelf_and_info(image, tmp_path, capfd):
    (tmp_path / "d.gz").write_bytes(gzip.compress(image, 1))
    (tmp_path / "d").write_bytes(image)
    for name in ("d", "d.gz"):
        assert main(["topelf", "-l", "all", "-i", f"{tmp_path}/{name}", "-o", f"{tmp_path}/{name}.pelf"]) == 0
    assert (tmp_path / "d.gz.pelf").read_bytes() == (tmp_path / "d.pelf").read_bytes()
    capfd.readouterr()
    assert main(["info", f"{tmp_path}/d.gz", "--json"]) in (0, 1)
    assert json.loads(capfd.readouterr().out)["release"] == "6.1.0-test-amd64"


@pytest.mark.parametrize("name", COMPRESS)
def test_cut_off(tovelf, image, kernel, name):
    at = len(image) - 0x5000
    cut = COMPRESS[name](image[:at]) + COMPRESS[name](image[at:])[:20]
    result = tovelf(cut)
    assert result.code == 0
    assert any(
        f"{name} stream ends early, at file offset {len(cut):#x}" in line for line in result.lines("warning")
    )
    (coverage,) = result.lines("coverage")
    assert f"truncated at file offset {at:#x}" in coverage
    assert check_subset(result.core, kernel) > 1000
    assert tovelf(cut, "--strict").code == 1


def test_damaged(tovelf, image, kernel):
    damaged = bytearray(gzip.compress(image, 1))
    damaged[-6] ^= 1
    result = tovelf(bytes(damaged))
    assert result.code == 0
    assert "checksum" in result.lines("warning")[0]
    assert tovelf(bytes(damaged), "--strict").code == 1


@pytest.mark.parametrize("name", COMPRESS)
def test_what_is_inside_is_named(tovelf, name):
    assert "this is Windows" not in tovelf(COMPRESS[name](b"text" * 100)).lines("error")[0]
    assert "migration" in tovelf(COMPRESS[name](b"QEVM\0\0\0\3" + bytes(1000))).lines("error")[0]
    assert "empty" in tovelf(COMPRESS[name](b"")).lines("error")[0] or name


@pytest.mark.parametrize("name", COMPRESS)
def test_nothing_is_changed_inside(tmp_path, image, capfd, name):
    path = tmp_path / "dump"
    path.write_bytes(COMPRESS[name](image))
    (tmp_path / "vmlinux").write_bytes(build_vmlinux())
    before = path.read_bytes()
    for command in (["tovelf", "--in-place", "-i"], ["addrandoff", "-m", f"{tmp_path}/vmlinux", "-v"]):
        assert main([*command, str(path)]) == 1
        err = capfd.readouterr().err
        assert f"error: {path}: the dump is inside a {name} stream" in err
        assert "hint: " in err
    assert main(["tovelf", "--undo", "-i", str(path)]) == 1
    assert path.read_bytes() == before
