"""The dump in sample/: it answers what ./demo asks, and the guest that died says whether that is right."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.cache import Cache
from kdump_elftool.cli.main import main
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.dwarf_types import DwarfTypes
from kdump_elftool.kernel.vmlinux import Vmlinux, read_vmlinux
from kdump_elftool.kernel.vmlinux_source import CachedAnswers, vmlinux_dwarf
from tests.builders.tools import command, gdb_batch, readelf_complaints

SAMPLE = Path(__file__).parents[2] / "sample"
DUMP = SAMPLE / "crash.kdump"
TRUTH: dict[str, Any] = json.loads((SAMPLE / "truth.json").read_text(encoding="utf-8"))
MOST_BYTES = 4_000_000
FRAME = re.compile(r"^#\d+ +0x[0-9a-f]+ in (\S+) \((.*)\)$", re.MULTILINE)
Answer = Callable[..., dict[str, Any]]


@pytest.fixture
def answer(capfd: pytest.CaptureFixture[str]) -> Answer:
    """``answer(COMMAND)``: what a command says of the sample as JSON."""

    def ask(name: str, *options: str) -> dict[str, Any]:
        assert main([name, str(DUMP), "--json", *options]) == 0
        said = json.loads(capfd.readouterr().out)
        assert isinstance(said, dict)
        return said

    return ask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The vmlinux made of it."""
    path = tmp_path_factory.mktemp("sample") / "vmlinux.dump"
    assert main(["mkvmlinux", str(DUMP), "-o", str(path), "-q"]) == 0
    yield path
    path.unlink()


def test_size() -> None:
    assert DUMP.stat().st_size <= MOST_BYTES


def test_readme_names_the_kernel() -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    version = re.search(r"Debian (\d\S+) \(", TRUTH["version"])
    assert version is not None
    for word in (TRUTH["packages"][0].split("_")[0], TRUTH["release"], version[1], "GPL-2.0"):
        assert word in text, word
    assert f"{DUMP.stat().st_size:,} bytes" in text


def test_info(answer: Answer) -> None:
    said = answer("info")
    assert said["release"] == TRUTH["release"]
    assert said["panic_pid"] == TRUTH["crasher"]["pid"]
    assert said["panic_comm"] == TRUTH["crasher"]["comm"]
    assert said["panic_cpu"] == TRUTH["crasher"]["cpu"]
    assert said["categories"]["kernel"] == said["memory"]["present_pages"]


def test_tasks(answer: Answer) -> None:
    listed = [(task["pid"], task["tid"], task["comm"]) for task in answer("ps")["tasks"]]
    assert sorted(listed) == sorted(
        [
            *((task["pid"], task["tid"], task["comm"]) for task in TRUTH["tasks"]),
            *((0, 0, f"swapper/{cpu}") for cpu in range(2)),
        ]
    )


def test_made_vmlinux(made: Path) -> None:
    assert readelf_complaints(made) == []


def test_no_index_of_a_made_vmlinux(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gdb knows an index by build id, which is that of the kernel's own vmlinux: another file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = tmp_path / "script"
    words = [
        "tovelf",
        "-q",
        str(DUMP),
        "-m",
        str(made),
        "-o",
        str(tmp_path / "v"),
        "--gdb-script",
        str(script),
    ]
    assert main(words) == 0
    lines = script.read_text(encoding="utf-8")
    assert "symbol-file" in lines
    assert "index-cache" not in lines


def test_types_of_a_made_vmlinux_are_the_dump_s(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a form that takes ten seconds to read."""

    def read(vmlinux: Vmlinux) -> None:
        raise AssertionError(vmlinux.path)

    monkeypatch.setattr("kdump_elftool.kernel.vmlinux_source.open_dwarf_types", read)
    assert main(["tovelf", "-q", "-p", str(DUMP), "-m", str(made), "-o", str(tmp_path / "velf")]) == 0


def test_answers_of_a_made_vmlinux_are_not_kept(made: Path, tmp_path: Path) -> None:
    """With its build id they would be those of the kernel's own."""
    cache = Cache.open({"XDG_CACHE_HOME": str(tmp_path)})
    assert cache is not None
    with cache, InputFile.open(str(made)) as file:
        vmlinux = replace(read_vmlinux(file), build_id=b"\1" * 20)
        assert vmlinux.is_made
        for is_made in (True, False):
            source = vmlinux_dwarf(replace(vmlinux, is_made=is_made), cache, pytest.fail)
            assert isinstance(source, DwarfTypes if is_made else CachedAnswers)


def test_offsets_of_saved_registers_that_cannot_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    extra, velf = tmp_path / "extra", tmp_path / "velf"
    words = ["tovelf", "-p", "-e", str(extra), str(DUMP), "-o", str(velf)]
    for offset in (16384, 99999):
        extra.write_text(f"OFFSET(inactive_task_frame.ret_addr)={offset}\n", encoding="ascii")
        assert main(words) == 1
        assert f"cannot have saved rip {offset} bytes into" in capfd.readouterr().err
        assert not velf.exists()
    extra.write_text("OFFSET(inactive_task_frame.ret_addr)=-8\n", encoding="ascii")
    assert main(words) == 0
    assert "OFFSET(inactive_task_frame.ret_addr) cannot be -8" in capfd.readouterr().err


@pytest.mark.gdb
def test_types(made: Path) -> None:
    shown = gdb_batch([f"file {made}", "ptype /o struct task_struct", "ptype write_sysrq_trigger"])
    assert re.search(r"/\* +\d+ +\| +16 \*/ +char comm\[16\];", shown)
    assert "type = long (struct file *, const char *, size_t, loff_t *)" in shown


@pytest.mark.gdb
def test_backtrace(tmp_path: Path) -> None:
    """The frames are those of the trace that the kernel itself printed when it died."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    velf = ("--velf", str(tmp_path / "sample.velf"))
    asked = ("-ex", "kd-info", "-ex", "lsmod", "-ex", "p $kd_task(1)->comm")
    argv = command("gdb", str(DUMP), *velf, "--batch", "--", *asked)
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    frames = FRAME.findall(done.stdout)
    assert [name for name, _ in frames][:1] == ["__crash_kexec"]
    printed = TRUTH["call_trace"]
    assert [name for name, _ in frames][1 : len(printed)] == printed[1:], done.stdout
    arguments = dict(frames)["write_sysrq_trigger"]
    assert re.findall(r"(\w+)=", arguments) == ["file", "buf", "count", "ppos"]
    assert all(module["name"] in done.stdout for module in TRUTH["modules"])
    assert f"comm {TRUTH['crasher']['comm']}" in done.stdout
    assert '= "init' in done.stdout
