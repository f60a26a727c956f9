"""``kdump-elftool gdb``: which core is used, what gdb is told, and that no name becomes a command."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import read_core
from tests.builders.elfcore import build_core
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel
from tests.builders.task_kernel import make_task_kernel
from tests.builders.tools import command

RECORDER = """#!/bin/sh
for word; do printf '<%s>\\n' "$word"; done
while [ $# -gt 1 ] && [ "$1" != -x ]; do shift; done
echo --
cat "$2"
exit ${CODE:-0}
"""
"""A gdb that says how it was started, and what the script is."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a dump and its vmlinux, and a gdb that records.

    Syncing would take most of the time; tests/unit/test_files.py sees that it is done.
    """
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernel = make_kernel(SMALL)
    (tmp_path / "vmcore").write_bytes(kernel.dump())
    (tmp_path / "vmlinux").write_bytes(build_vmlinux())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gdb").write_text(RECORDER)
    (tmp_path / "bin" / "gdb").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def told(capfd):
    """``told(*words)``: exit code, stdout, stderr of ``gdb --no-procthreads``."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["gdb", "--no-procthreads", *map(str, words)])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def files(script: str) -> dict[str, Path]:
    """What gdb is told to open, with links resolved."""
    core = re.search(r'^python gdb.execute\("core-file (\S+)", to_string=True\)$', script, re.M)
    symbols = re.search(r"^symbol-file (?:-o 0x[0-9a-f]+ )?(\S+)$", script, re.M)
    found = {"core": core, "symbols": symbols}
    return {name: Path(match[1]).resolve() for name, match in found.items() if match}


def test_converts_and_says_what_gdb_would_run(place, told):
    code, script, err = told("--print-script", "-l", "all", place / "vmcore", place / "vmlinux")
    assert code == 0
    assert [line for line in err.splitlines() if "the modules are not known to gdb" not in line] == []
    assert files(script) == {"core": place / "vmcore.velf", "symbols": place / "vmlinux"}
    offset = make_kernel(SMALL).spec.kaslr_offset
    assert f"\nsymbol-file -o {offset:#x} " in script
    assert script.splitlines()[-1] == "kd-start"
    assert read_core(place / "vmcore.velf").loads
    assert (place / "vmcore.velf").stat().st_mode & 0o777 == 0o600


def test_the_order_of_dump_and_vmlinux_does_not_matter(place, told):
    first = told("--print-script", place / "vmcore", place / "vmlinux")[1]
    assert told("--print-script", "-q", place / "vmlinux", place / "vmcore")[1] == first
    assert told("--print-script", "-q", "-m", place / "vmlinux", place / "vmcore")[1] == first


def test_used_again_and_found_again(place, told):
    """What was named once need not be named again, and nothing is written twice."""
    told("--print-script", place / "vmcore", place / "vmlinux")
    before = (place / "vmcore.velf").stat()
    code, script, err = told("--print-script", place / "vmcore")
    assert code == 0
    assert "used again" in err
    assert files(script) == {"core": place / "vmcore.velf", "symbols": place / "vmlinux"}
    after = (place / "vmcore.velf").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def newer(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda place: newer(place / "vmcore"), "the dump is another one now"),
        (
            lambda place: (place / "vmcore").write_bytes(make_kernel(SMALL, cpus=3).dump()),
            "the dump is another one now",
        ),
        (lambda place: ("-l", "all"), "it was made in another way"),
        (lambda place: ("--zero-excluded",), "it was made in another way"),
    ],
    ids=["touched", "another", "level", "excluded"],
)
def test_made_again_when_something_changed(place, told, change, why):
    told("--print-script", place / "vmcore", place / "vmlinux")
    before = (place / "vmcore.velf").stat().st_ino
    more = change(place)
    code, _, err = told("--print-script", *(more if isinstance(more, tuple) else ()), place / "vmcore")
    assert code == 0
    assert f"made again: {why}" in err
    assert "used again" not in err
    assert (place / "vmcore.velf").stat().st_ino != before


def test_made_again_once_there_is_a_vmlinux(place, told):
    _, script, err = told("--print-script", place / "vmcore")
    assert "symbols" not in files(script)
    assert "no vmlinux of this kernel was found" in err
    _, script, err = told("--print-script", place / "vmcore", place / "vmlinux")
    assert "made again: it was made without a vmlinux" in err
    assert "symbols" in files(script)


def test_a_vmlinux_that_is_gone_leaves_the_core_as_it_is(place, told):
    told("--print-script", place / "vmcore", place / "vmlinux")
    (place / "vmlinux").unlink()
    code, script, err = told("--print-script", place / "vmcore")
    assert code == 0
    assert "used again" in err
    assert "symbols" not in files(script)


@pytest.mark.parametrize("made_by", ["somebody", "tovelf"])
def test_other_peoples_files_are_not_replaced(place, told, made_by):
    velf = place / "vmcore.velf"
    velf.write_text("precious\n")
    if made_by == "tovelf":
        assert main(["tovelf", "-q", "-l", "all", "-i", str(place / "vmcore"), "-o", str(velf)]) == 0
    before = velf.read_bytes()
    code, _, err = told("--print-script", place / "vmcore")
    assert code == 1
    assert "this command did not make it" in err
    assert "--force" in err
    assert velf.read_bytes() == before
    assert told("--print-script", "--force", place / "vmcore")[0] == 0
    assert velf.read_bytes() != before


def test_a_core_is_opened_as_it_is(place, told):
    velf = place / "mine"
    assert main(["tovelf", "-q", "-i", str(place / "vmcore"), "-o", str(velf)]) == 0
    before = velf.read_bytes()
    code, script, _ = told("--print-script", velf, place / "vmlinux")
    assert code == 0
    assert files(script) == {"core": velf, "symbols": place / "vmlinux"}
    assert velf.read_bytes() == before
    assert sorted(path.name for path in place.iterdir() if path.is_file()) == ["mine", "vmcore", "vmlinux"]


@pytest.mark.parametrize("lacks", ["KERNELOFFSET", "SYMBOL(_stext)"])
def test_a_core_that_was_made_without_the_vmlinux(place, told, lacks):
    """The vmlinux says where it was linked, the core where the kernel ran; if it does not, that is said."""
    lines = dict.fromkeys({"KERNELOFFSET", lacks})
    kernel = make_kernel(SMALL, vmcoreinfo=lines)
    (place / "vmcore").write_bytes(kernel.dump())
    assert main(["tovelf", "-q", "-i", str(place / "vmcore"), "-o", str(place / "mine")]) == 0
    code, script, err = told("--print-script", place / "mine", place / "vmlinux")
    assert code == 0
    known = lacks == "KERNELOFFSET"
    assert ("where the kernel ran is not known" in err) is not known
    assert (f"\nsymbol-file -o {kernel.spec.kaslr_offset:#x} " in script) is known
    assert ("\nsymbol-file /" in script) is not known


@pytest.mark.parametrize("words", [("-l", "all"), ("--no-procthreads",), ()], ids=str)
def test_what_has_no_effect_on_a_core_is_said(place, capfd, words):
    velf = place / "mine"
    assert main(["tovelf", "-q", "-i", str(place / "vmcore"), "-o", str(velf)]) == 0
    assert main(["gdb", "--print-script", *words, str(velf)]) == 0
    assert ("it stays as it is" in capfd.readouterr().err) == bool(words)


def test_only_tovelf_has_to_say_how_to_load_the_vmlinux(place, capfd):
    """Two pages of the image are behind p_filesz; the command gdb loads the vmlinux as tovelf advises."""
    kernel = make_kernel(SMALL)
    parts = []
    for part in kernel.segments()[1:]:
        if part.paddr == 0x400000:
            parts.append(replace(part, data=part.data[:0x100000], memsz=0x102000))
            part = replace(part, paddr=0x502000, vaddr=part.vaddr + 0x102000, data=part.data[0x102000:])
        parts.append(part)
    (place / "vmcore").write_bytes(build_core(replace(kernel.core_spec(), segments=parts)))
    advice = "2 pages of the kernel image are absent: give gdb vmlinux with 'symbol-file -o OFFSET'"
    words = ["-m", str(place / "vmlinux"), str(place / "vmcore")]
    assert main(["tovelf", "-o", str(place / "core"), *words]) == 0
    assert advice in capfd.readouterr().err
    assert main(["tovelf", "-o", str(place / "core"), "--strict", *words]) == 1
    capfd.readouterr()
    assert main(["gdb", "--print-script", "--no-procthreads", *words]) == 0
    script, err = capfd.readouterr()
    assert "the kernel image" not in err
    assert f"\nsymbol-file -o {kernel.spec.kaslr_offset:#x} " in script


def test_another_name_for_the_core(place, told):
    code, script, _ = told("--print-script", "--velf", place / "other", place / "vmcore")
    assert code == 0
    assert files(script)["core"] == place / "other"
    assert not (place / "vmcore.velf").exists()


def test_in_place(place, told):
    before = (place / "vmcore").read_bytes()
    code, script, _ = told("--print-script", "--in-place", place / "vmcore", place / "vmlinux")
    assert code == 0
    assert files(script)["core"] == place / "vmcore"
    assert not (place / "vmcore.velf").exists()
    changed = (place / "vmcore").read_bytes()
    assert changed[64 : len(before)] == before[64:]
    assert told("--print-script", place / "vmcore")[1] == script, "the second time nothing is left to do"
    assert main(["tovelf", "-q", "--undo", "-i", str(place / "vmcore")]) == 0
    assert (place / "vmcore").read_bytes() == before


def test_json(place, told):
    code, out, _ = told("--json", place / "vmcore", place / "vmlinux")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "kdump-elftool/gdb/1"
    assert (found["velf"], found["vmlinux"]) == (str(place / "vmcore.velf"), str(place / "vmlinux"))
    assert int(found["kaslr_offset"], 16) == make_kernel(SMALL).spec.kaslr_offset
    assert "kd-start" in found["script"]


def test_starts_gdb(place):
    """The program is gdb afterwards: its exit code, its words; SIGPIPE ends it as it ends others."""
    argv = command("gdb", "--no-procthreads", "vmcore", "vmlinux", "--", "-ex", "info threads", "--tui")
    done = subprocess.run(
        argv, cwd=place, capture_output=True, text=True, env={**os.environ, "CODE": "7"}, timeout=60
    )
    words, _, script = done.stdout.partition("--\n")
    assert done.returncode == 7
    assert re.fullmatch(r"<-q>\n<-x>\n<\S+>\n<-ex>\n<info threads>\n<--tui>\n", words)
    assert files(script) == {"core": place / "vmcore.velf", "symbols": place / "vmlinux"}


def test_batch(place, told):
    code, out, _ = told("--batch", place / "vmcore", place / "vmlinux", "--", "-ex", "p 1")
    words, _, script = out.partition("--\n")
    assert code == 0
    assert re.fullmatch(r"<-nx>\n<-q>\n<-batch>\n<-x>\n<\S+>\n<-ex>\n<p 1>\n", words)
    assert script.splitlines()[-2:] == ["kd-start", "backtrace"]


def test_exit_code_of_batch_is_gdbs(place, told, monkeypatch):
    monkeypatch.setenv("CODE", "1")
    assert told("--batch", place / "vmcore")[0] == 1


def test_no_gdb(place, told, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    code, _, err = told(place / "vmcore")
    assert (code, err) == (
        1,
        "error: there is no gdb\nhint: install gdb (10 or newer), or name it with --gdb\n",
    )
    code, _, err = told("--gdb", "no-such", place / "vmcore")
    assert (code, err.splitlines()[0]) == (1, "error: there is no program no-such")
    assert not (place / "vmcore.velf").exists(), "said before the long work"
    assert told("--print-script", place / "vmcore")[0] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no dump is named"),
        (["vmlinux"], "no dump is named"),
        (["-"], "no dump is named"),
        (["vmcore", "vmlinux", "vmlinux"], "one vmlinux is needed, not 2"),
        (["-m", "vmlinux", "vmcore", "vmlinux"], "one vmlinux is needed, not 2"),
        (["vmcore", "--in-place", "-l", "kernel"], "--in-place keeps every page"),
    ],
)
def test_what_makes_no_sense(place, told, monkeypatch, words, why):
    monkeypatch.chdir(place)
    code, _, err = told("--print-script", *words)
    assert code == 2
    assert why in err


NAMES = [
    "with space",
    "vm'core",
    'vm"core',
    "vm\\core",
    "vm\nshell touch planted\n",
    'x", to_string=True); import os; os.system("touch planted") #',
    "$(touch planted)",
    "`touch planted`",
    "; shell touch planted",
    "-ex",
    "ünï",
    "\udcff\udcfe",
    "\x1b]0;title\x07",
]


def test_beside_the_dump_may_be_no_place(place, told):
    """As for /proc/kcore."""
    with (place / "vmcore").open("rb") as file:
        path = f"/proc/self/fd/{file.fileno()}"
        code, _, err = told("--print-script", path, place / "vmlinux")
    assert code == 1
    assert f"error: cannot write {path}.velf: " in err
    assert err.endswith("hint: --velf FILE puts the core elsewhere\n")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_becomes_a_command(place, told, name):
    """Every line of the script is one of ours, whatever the files are called."""
    folder = place / ("d" + name)
    folder.mkdir()
    (place / "vmcore").rename(folder / name)
    (place / "vmlinux").rename(folder / ("k" + name))
    code, script, err = told("--print-script", folder / name, folder / ("k" + name))
    assert code == 0, err
    assert files(script) == {"core": folder / f"{name}.velf", "symbols": folder / ("k" + name)}
    plain = r"/[A-Za-z0-9_./-]+"
    known = [
        "python|try:|end|kd-start|except gdb.error:|set print thread-events off",
        rf"set index-cache directory {plain}",
        r'    gdb.execute\("set index-cache (enabled )?(on|off)"\)',
        rf'python gdb.execute\("core-file {plain}", to_string=True\)',
        rf"symbol-file -o 0x[0-9a-f]+ {plain}",
        rf"source {plain}",
    ]
    unknown = [line for line in script.splitlines() if not re.fullmatch("|".join(known), line)]
    assert unknown == []


def test_a_place_for_links_is_needed(place, told, monkeypatch):
    odd = place / "a b"
    odd.mkdir()
    (place / "vmcore").rename(odd / "vmcore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(odd))
    code, _, err = told("--print-script", odd / "vmcore")
    assert code == 1
    assert "there is no place for a link to it" in err


def test_the_core_says_what_it_is_made_of(place, told):
    """docs/notes.md: made_of and crash, and no name of a file."""
    told("--print-script", place / "vmcore", place / "vmlinux")
    notes = read_core(place / "vmcore.velf").notes()
    (text,) = [desc for name, kind, desc in notes if (name, kind) == ("kdump-elftool", 1)]
    document = json.loads(text)
    status = (place / "vmcore").stat()
    assert document["made_of"]["files"] == [[status.st_ino, status.st_size, status.st_mtime_ns]]
    assert str(place).encode() not in text


def test_a_thread_for_each_task(place, capfd):
    made = make_task_kernel([1, 3, 1, 2])
    (place / "tasks").write_bytes(made.kernel.dump())
    (place / "extra").write_text(made.extra)
    words = ["gdb", "-q", "--print-script", "-e", str(place / "extra"), str(place / "tasks")]
    assert main(words) == 0
    with_tasks = [entry for entry in read_core(place / "tasks.velf").notes() if entry[:2] == ("CORE", 1)]
    assert main([*words, "--no-procthreads"]) == 0
    without = [entry for entry in read_core(place / "tasks.velf").notes() if entry[:2] == ("CORE", 1)]
    assert (len(with_tasks), len(without)) == (8, 2)


def script_of_tovelf(place, *words: str) -> str:
    argv = ["tovelf", "-q", "--gdb-script", str(place / "open.gdb"), "-m", str(place / "vmlinux"), *words]
    assert main(argv) == 0
    assert (place / "open.gdb").stat().st_mode & 0o777 == 0o600
    return (place / "open.gdb").read_text()


def test_tovelf_writes_the_script(place, told):
    script = script_of_tovelf(place, "-i", str(place / "vmcore"), "-o", str(place / "out"))
    assert files(script) == {"core": place / "out", "symbols": place / "vmlinux"}
    wanted = told("--print-script", place / "vmcore", place / "vmlinux")[1]
    assert script == wanted.replace("vmcore.velf", "out")


def test_tovelf_in_place_writes_the_script(place):
    script = script_of_tovelf(place, "--in-place", "-i", str(place / "vmcore"))
    assert files(script) == {"core": place / "vmcore", "symbols": place / "vmlinux"}


def test_no_script_of_what_is_converted_already(place, told, capfd):
    """It says so, and how to have one."""
    argv = ["tovelf", "--in-place", "-i", str(place / "vmcore"), "-m", str(place / "vmlinux")]
    assert main(argv) == 0
    capfd.readouterr()
    assert main([*argv, "--gdb-script", str(place / "open.gdb")]) == 0
    *_, warning = capfd.readouterr().err.splitlines()
    assert not (place / "open.gdb").exists()
    start = "warning: no script is written: kdump-elftool gdb "
    assert warning.startswith(start)
    assert warning.endswith(" prints it")
    words = warning.removeprefix(start).removesuffix(" prints it").split()
    assert words == ["--print-script", str(place / "vmcore")]
    assert files(told(*words)[1])["core"] == place / "vmcore"


@pytest.mark.parametrize("words", [("-o", "-"), (), ("-o", "out", "--gdb-script", "-")])
def test_a_script_needs_names(place, capfd, monkeypatch, words):
    monkeypatch.chdir(place)
    argv = ["tovelf", "--gdb-script", "open.gdb", "-i", "vmcore", *words]
    assert main(argv) == 2
    assert "needs a core that has a name" in capfd.readouterr().err


@pytest.mark.parametrize("words", [("-o", "./both"), ("--in-place",)], ids=["copy", "in place"])
def test_a_script_does_not_replace_the_core(place, capfd, monkeypatch, words):
    monkeypatch.chdir(place)
    (place / "both").symlink_to("vmcore" if "-o" not in words else "target")
    before = (place / "vmcore").read_bytes()
    assert main(["tovelf", "--gdb-script", "both", "-i", "vmcore", *words]) == 2
    assert "the script would replace the core" in capfd.readouterr().err
    assert (place / "vmcore").read_bytes() == before
    assert not (place / "target").exists()


@pytest.mark.parametrize("how", ["--in-place", "copy"])
@pytest.mark.parametrize("path", ["vmlinux", "extra", "found/vmlinux"])
def test_a_script_replaces_nothing_that_is_read(place, capfd, monkeypatch, how, path):
    """Neither what is named, nor what is found in a directory."""
    monkeypatch.chdir(place)
    (place / "extra").write_text("X=1\n")
    (place / "found").mkdir()
    (place / "found" / "vmlinux").write_bytes((place / "vmlinux").read_bytes())
    before = {name: (place / name).read_bytes() for name in ("vmcore", path)}
    argv = ["tovelf", "--gdb-script", path, "-i", "vmcore", "-e", "extra"]
    argv += ["-m", "found" if "/" in path else "vmlinux"]
    assert main([*argv, *(["-o", "out"] if how == "copy" else [how])]) == 2
    assert f"the output {path} is the input itself" in capfd.readouterr().err
    assert {name: (place / name).read_bytes() for name in before} == before
    assert not (place / "out").exists()


@pytest.mark.parametrize("how", ["--in-place", "copy"])
@pytest.mark.parametrize(
    ("script", "code", "why"),
    [
        ("no/such/script", 1, "cannot write no/such/script: No such file or directory"),
        (".", 2, "the output . is a directory"),
        ("vmcore", 2, "the script would replace the core|the output vmcore is the input itself"),
    ],
)
def test_a_script_that_cannot_be_is_noticed_first(place, capfd, monkeypatch, how, script, code, why):
    """Neither is there a core, nor is the dump changed: "failed" says that nothing was done."""
    monkeypatch.chdir(place)
    before, names = (place / "vmcore").read_bytes(), sorted(os.listdir(place))
    argv = ["tovelf", "-m", "vmlinux", "-i", "vmcore", "--gdb-script", script]
    assert main([*argv, *(["-o", "out"] if how == "copy" else [how])]) == code
    assert re.search(why, capfd.readouterr().err)
    assert (place / "vmcore").read_bytes() == before
    assert sorted(set(os.listdir(place)) - {"cache"}) == names


def test_no_script_without_a_core(place, capfd, monkeypatch):
    """What was opened for the script goes again when the core cannot be made."""
    monkeypatch.chdir(place)
    names = set(os.listdir(place))
    argv = ["tovelf", "-q", "-m", "vmlinux", "-i", "vmcore", "--gdb-script", "open.gdb", "-o", "no/such/core"]
    assert main(argv) == 1
    assert set(os.listdir(place)) - {"cache"} == names


@pytest.mark.parametrize("how", ["--in-place", "copy"])
def test_a_name_gdb_misreads_is_noticed_first(place, capfd, monkeypatch, how):
    odd = place / "a b"
    odd.mkdir()
    (place / "vmlinux").rename(odd / "vmlinux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(odd))
    monkeypatch.chdir(place)
    before = (place / "vmcore").read_bytes()
    argv = ["tovelf", "-m", "a b/vmlinux", "-i", "vmcore", "--gdb-script", "open.gdb"]
    assert main([*argv, *(["-o", "out"] if how == "copy" else [how])]) == 1
    assert "there is no place for a link to it" in capfd.readouterr().err
    assert (place / "vmcore").read_bytes() == before
    assert not (place / "out").exists()


def told_command(place, capfd, folder: Path) -> list[bytes]:
    """What ``tovelf``, with core and vmlinux in ``folder``, says opens the core: the words a shell makes."""
    folder.mkdir(exist_ok=True)
    (folder / "vmlinux").write_bytes((place / "vmlinux").read_bytes())
    argv = ["tovelf", "--verbose", "-i", str(place / "vmcore"), "-m", str(folder / "vmlinux")]
    assert main([*argv, "-o", str(folder / "core")]) == 0
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("open it with: ")
    assert told.isascii()
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {told[14:]}"], capture_output=True, check=True
    ).stdout
    return words.split(b"\0")[:-1]


def test_tovelf_names_gdbs_commands_where_the_names_are_plain(place, capfd):
    words = told_command(place, capfd, place)
    assert words[:2] == [b"gdb", b"-ex"]
    assert words[2] == f"core-file {place}/core".encode()
    assert re.fullmatch(rf"symbol-file -o 0x[0-9a-f]+ {place}/vmlinux", words[4].decode())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "-ex"], ids=ascii)
def test_tovelf_names_a_command_that_copes_with_the_names(place, capfd, told, name):
    """gdb's own take a name apart at blanks and more; and what is printed has to be the name."""
    folder = place / ("d" + name)
    words = told_command(place, capfd, folder)
    core, vmlinux = (os.fsencode(folder / each) for each in ("core", "vmlinux"))
    assert words == [b"kdump-elftool", b"gdb", core, b"-m", vmlinux]
    code, script, _ = told("--print-script", *map(os.fsdecode, words[2:]))
    assert (code, files(script)) == (0, {"core": folder / "core", "symbols": folder / "vmlinux"})


def recorded(place) -> tuple[Path, dict]:
    """The list of commands beside the core, to be changed."""
    path = place / "vmcore.velf.symbols" / "commands.json"
    return path, json.loads(path.read_text())


def with_behind(place, commands: object) -> None:
    path, document = recorded(place)
    path.write_text(json.dumps({**document, "behind": commands}))


def test_symbols_are_used_again_while_their_files_are_there(place, told):
    told("--print-script", place / "vmcore", place / "vmlinux")
    (place / "module.ko").write_text("")
    load = f"add-symbol-file {place / 'module.ko'} -s .text 0xffffffffc0000000 -s .data..read_mostly 0x1000"
    with_behind(place, [load])
    script = told("--print-script", place / "vmcore")[1]
    assert re.search(
        rf'^symbol-file .*^python kdump_elftool_add\("{re.escape(load)}"\)$', script, re.M | re.S
    )
    (place / "module.ko").unlink()
    assert "add-symbol-file" not in told("--print-script", place / "vmcore")[1]
    assert recorded(place)[1]["behind"] == []


@pytest.mark.parametrize(
    "command",
    [
        "shell touch planted",
        'add-symbol-file /dev/null"); import os; os.system("touch planted") #',
        "add-symbol-file /dev/null\nshell touch planted",
        "add-symbol-file /dev/null -s .text $(touch)",
        "add-symbol-file /dev/null -s .text 0x1 -x",
        "add-symbol-file -o 0 /dev/null",
        "add-symbol-file relative",
        "source /dev/null",
        ["list"],
        7,
        None,
    ],
    ids=str,
)
def test_a_list_of_somebody_is_not_run(place, told, command):
    """It lies beside the core, and may have come with it."""
    first = told("--print-script", place / "vmcore", place / "vmlinux")[1]
    for commands in ([command], command):
        with_behind(place, commands)
        assert told("--print-script", place / "vmcore")[1] == first
        assert recorded(place)[1]["behind"] == []


def test_symbols_of_another_core_are_not_used(place, told):
    told("--print-script", place / "vmcore", place / "vmlinux")
    (place / "module.ko").write_text("")
    with_behind(place, [f"add-symbol-file {place / 'module.ko'}"])
    assert "module.ko" in told("--print-script", place / "vmcore")[1]
    assert "module.ko" not in told("--print-script", "--modules", place, place / "vmcore")[1]
    with_behind(place, [f"add-symbol-file {place / 'module.ko'}"])
    assert "module.ko" not in told("--print-script", "--force", place / "vmcore")[1]


def test_symbols_that_cannot_be_kept_are_no_reason_to_stop(place, told):
    (place / "vmcore.velf.symbols").write_text("in the way")
    code, script, err = told("--print-script", place / "vmcore", place / "vmlinux")
    assert code == 0
    assert "gdb does without modules" in err
    assert script.splitlines()[-1] == "kd-start"
