"""Types out of a vmlinux without BTF: named by file or directory, found by itself, or refused."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders import dwarf as d
from tests.builders.check import read_core
from tests.builders.kernel import BUILD_ID, LINK_TEXT
from tests.builders.notes import prstatus_pid, prstatus_register
from tests.builders.task_kernel import TaskKernel, make_task_kernel

PROCESSES = [1, 3, 1, 2]
RELEASE = "6.1.0-test-amd64"


def vmlinux_of(made: TaskKernel, build_id: bytes | None = BUILD_ID) -> bytes:
    """A vmlinux whose DWARF tells what the OFFSET lines of ``made.extra`` do."""
    structs: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for line in made.extra.splitlines():
        if line.startswith("OFFSET("):
            name, _, offset = line.removeprefix("OFFSET(").partition(")=")
            struct, _, member = name.partition(".")
            structs[struct].append((member, int(offset)))
    number = d.base("long", 8)
    records = [
        d.record(name, 4096, *(d.member(member, number, at) for member, at in members))
        for name, members in structs.items()
    ]
    writer = d.DwarfWriter()
    writer.add(d.UnitSpec("kernel/sched/core.c", LINK_TEXT, 0x1000, [number, *records]))
    symbols = {"_stext": LINK_TEXT, "schedule": LINK_TEXT + 0x100}
    return d.elf_file(writer.sections(), symbols, build_id=build_id)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A dump, the symbols that its kernel's kallsyms would tell, a vmlinux in a directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make_task_kernel(PROCESSES)
    (tmp_path / "dump").write_bytes(made.kernel.dump())
    (tmp_path / "extra").write_text(
        "".join(line + "\n" for line in made.extra.splitlines() if line.startswith("SYMBOL"))
    )
    place = tmp_path / "debug" / "boot" / f"vmlinux-{RELEASE}"
    place.parent.mkdir(parents=True)
    place.write_bytes(vmlinux_of(made))
    return made, tmp_path / "dump", tmp_path / "extra", place


def run(capfd, *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.mark.parametrize("by", ["file", "directory", "debuginfod cache"])
def test_every_register_of_every_task(files, capfd, tmp_path, monkeypatch, by):
    made, dump, extra, place = files
    velf, named = tmp_path / "velf", [] if by == "debuginfod cache" else ["-m", place]
    if by == "directory":
        named = ["-m", tmp_path / "debug"]
    elif not named:
        monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "client"))
        cached = tmp_path / "client" / BUILD_ID.hex() / "debuginfo"
        cached.parent.mkdir(parents=True)
        place.rename(cached)
    code, _, err = run(capfd, "tovelf", "-p", "-i", dump, "-e", extra, "-o", velf, *named, "--verbose")
    assert code == 0, err
    notes = {
        prstatus_pid(desc): desc
        for name, kind, desc in read_core(velf).notes()
        if (name, kind) == ("CORE", 1)
    }
    for tid, expected in made.asleep.items():
        assert {name: prstatus_register(notes[tid], name) for name in expected} == expected
    assert "OFFSET(task_struct.pid): 0x98 (vmlinux DWARF)" in err
    if by != "file":
        assert f"by its build id {BUILD_ID.hex()}" in err
    if named:
        assert f"symbol-file -o {made.kernel.spec.kaslr_offset:#x} {place}" in err


def test_the_found_file_is_not_overwritten(files, capfd, tmp_path):
    _, dump, extra, place = files
    before = place.read_bytes()
    code, _, err = run(capfd, "tovelf", "-p", "-i", dump, "-e", extra, "-m", tmp_path / "debug", "-o", place)
    assert code == 2
    assert "is the input itself" in err
    assert place.read_bytes() == before


@pytest.mark.parametrize("command", ["tovelf", "ps", "info", "addrandoff", "vminfo"])
@pytest.mark.parametrize("by", ["file", "directory"])
def test_a_wrong_one_is_refused_with_both_build_ids(files, capfd, tmp_path, command, by):
    made, dump, extra, place = files
    place.write_bytes(vmlinux_of(made, b"\xee" * 20))
    named = place if by == "file" else tmp_path / "debug"
    options = ["-o", tmp_path / "out"] if command == "tovelf" else []
    code, _, err = run(capfd, command, dump, "-e", extra, "-m", named, *options)
    assert (code, "ee" * 20 in err, BUILD_ID.hex() in err) == (0 if command == "info" else 1, True, True)
    assert not (tmp_path / "out").exists()


def test_ps_is_the_same_from_the_cache(files, capfd, tmp_path):
    _, dump, extra, place = files
    first = run(capfd, "ps", dump, "-e", extra, "-m", place)
    assert first[0] == 0, first[2]
    assert first[1].count("\n") == 10
    image = place.read_bytes()
    place.write_bytes(image.replace(b"task_struct", b"task_xtruct"))  # only a cache knows it now
    assert run(capfd, "ps", dump, "-e", extra, "-m", place) == first


def test_without_types_the_user_is_told(files, capfd):
    _, dump, extra, _ = files
    code, _, err = run(capfd, "ps", dump, "-e", extra)
    assert code == 1
    assert "give the kernel's vmlinux with -m" in err


def test_without_pyelftools_the_user_is_told_what_to_install(files, capfd, monkeypatch, tmp_path):
    _, dump, extra, place = files
    for name in [name for name in sys.modules if name.split(".")[0] == "elftools"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("dwarf_file", "dwarf_unit"):
        monkeypatch.delitem(sys.modules, f"kdump_elftool.kernel.{name}", raising=False)
    code, _, err = run(capfd, "ps", dump, "-e", extra, "-m", place)
    assert code == 1
    assert "pip install 'kdump-elftool[dwarf]'" in err
    code, out, err = run(capfd, "vminfo", place)
    assert code == 0
    assert "pip install 'kdump-elftool[dwarf]'" in err
    assert "SYMBOL(_stext)" in out


def test_vminfo_of_a_vmlinux_without_btf(files, capfd):
    *_, place = files
    code, out, err = run(capfd, "vminfo", "--keys", "thread", place, "--verbose")
    assert code == 0, err
    assert "OFFSET(task_struct.tasks)=128" in out.splitlines()
    assert "OFFSET(inactive_task_frame.ret_addr)=48" in out.splitlines()
    assert "(vmlinux DWARF)" in err


# info: every value and its source


def test_info_lists_every_value_with_its_source(files, capfd):
    _, dump, extra, place = files
    code, out, err = run(capfd, "info", dump, "-e", extra, "-m", place, "--verbose")
    assert code == 0, err
    assert "tasks:         9" in out
    symbol = int(extra.read_text().split("init_task)=")[1].split()[0], 16)
    for line in (
        "  pgt_root: ",
        "  kaslr_offset: 0x",
        "  OFFSET(task_struct.pid): 0x98 (vmlinux DWARF)",
        f"  SYMBOL(init_task): {symbol:#x} (-e {extra})",
        "  SYMBOL(swapper_pg_dir): ",
        "  NUMBER(MAX_PHYSMEM_BITS): 0x2e (not in VMCOREINFO: as x86_64 4-level has it)",
    ):
        assert line in out, line
    count = next(line for line in out.splitlines() if line.endswith("values were used:"))
    assert int(count.split()[0]) == len([line for line in out.splitlines() if line.startswith("  ")])


def test_info_without_verbose_asks_for_no_tasks(files, capfd):
    _, dump, extra, place = files
    out = run(capfd, "info", dump, "-e", extra, "-m", place)[1]
    assert "tasks:" not in out
    assert "values were used" not in out
    document = json.loads(run(capfd, "info", dump, "--json")[1])
    assert {"name": "OSRELEASE", "value": RELEASE, "source": "VMCOREINFO"} in document["facts"]


def test_info_says_why_tasks_are_unknown(files, capfd):
    _, dump, *_ = files
    code, out, _ = run(capfd, "info", dump, "--verbose")
    assert code == 0
    assert "tasks:         unknown: the tasks cannot be found" in out


def test_info_with_a_misread_build_id(capfd, tmp_path):
    misread = (b"\x14\0\0\0\x03\0\0\0GNU\0" + BUILD_ID[:8]).hex()
    made = make_task_kernel(PROCESSES, vmcoreinfo={"BUILD-ID": misread})
    dump: Path = tmp_path / "dump"
    dump.write_bytes(made.kernel.dump())
    code, out, _ = run(capfd, "info", dump, "--verbose")
    assert code == 0
    assert f"build id:      {BUILD_ID[:8].hex()}... (VMCOREINFO, misread by that kernel" in out
    place = tmp_path / "vmlinux"
    place.write_bytes(vmlinux_of(made))
    assert "not the kernel" not in run(capfd, "info", dump, "-m", place)[2]
    place.write_bytes(vmlinux_of(made, b"\xee" * 20))
    assert f"that of the dump begins with {BUILD_ID[:8].hex()}" in run(capfd, "info", dump, "-m", place)[2]
