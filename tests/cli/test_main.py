"""The program itself: version, help, usage errors, choice of the input."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from kdump_elftool.cli.main import build_parser, main
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel
from tests.builders.tools import command


def test_version(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"kdump-elftool {version('kdump-elftool')}\n"
    assert main(["-v"]) == 0


@pytest.mark.parametrize("argv", [["--help"], ["tovelf", "--help"], ["makedyn", "--help"]])
def test_help_goes_to_stdout(argv, capfd):
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert "kdump-elftool" in out
    assert err == ""


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["--nonsense"], ["tovelf", "--level"], ["tovelf", "-l", "x"]]
)
def test_usage_errors_are_two_lines_and_exit_2(argv, capfd):
    assert main(argv) == 2
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["help"], "help is no command", "one of topelf, tovelf, "),
        (
            ["dump"],
            "dump is no command",
            "kdump-elftool info dump says what a dump is, kdump-elftool gdb dump",
        ),
        (["du\x1bmp"], "du\\x1bmp is no command", "one of topelf"),
        (["info", "--frob", "dump"], "unrecognized arguments: --frob", "kdump-elftool info --help"),
        (["--frob"], "unrecognized arguments: --frob", "kdump-elftool --help"),
        (["gdbinit", "dump"], "unrecognized arguments: dump", "kdump-elftool gdbinit --help"),
        (["gdb", "."], "no dump is named: . is a directory", "kdump-elftool gdb DUMP [VMLINUX]"),
        (["gdb", "vmlinux"], "no dump is named: vmlinux is the vmlinux", "kdump-elftool gdb DUMP [VMLINUX]"),
        (["info", "dump", "vmlinux"], "2 files are given", "vmlinux is given with -m"),
        (
            ["tovelf", "-i", "vmlinux", "-m", "dump"],
            "dump: this is an ELF core file",
            "-m wants the vmlinux; a dump",
        ),
    ],
)
def test_slips_of_a_newcomer(argv, message, hint, dump, monkeypatch, capfd):
    """What is wrong, and what to type instead."""
    monkeypatch.chdir(dump.parent)
    (dump.parent / "vmlinux").write_bytes(build_vmlinux())
    assert main(argv) in (1, 2)
    error, said = capfd.readouterr().err.splitlines()
    assert error.startswith(f"error: {message}")
    assert said.startswith("hint: ")
    assert hint in said


@pytest.mark.parametrize("length", [0x800, 0x2000])
def test_a_dump_that_ends_before_its_memory(length, dump, tmp_path, capfd):
    """What to do first is to copy it again."""
    dump.write_bytes(dump.read_bytes()[:length])
    assert main(["tovelf", "-i", str(dump), "-o", str(tmp_path / "out")]) == 1
    hint = capfd.readouterr().err.splitlines()[-1]
    assert hint.startswith(
        f"hint: the dump is not whole (truncated at file offset {length:#x}): copy it again"
    )


def test_every_command_has_the_common_options():
    (commands,) = [action for action in build_parser()._actions if action.dest == "command"]
    assert {"tovelf", "makedyn"} <= commands.choices.keys()
    wanted = {"--verbose", "--quiet", "--debug", "--json", "--strict", "--force", "--no-progress"}
    for parser in commands.choices.values():
        assert wanted <= parser._option_string_actions.keys()


@pytest.fixture
def dump(tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(make_kernel(SMALL).dump())
    return path


@pytest.mark.parametrize("how", [["-i"], ["-v"], ["--infile"], ["--vmcore"], []])
def test_three_ways_to_name_the_dump(how, dump, tmp_path, capfd):
    assert main(["tovelf", *how, str(dump), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").exists()


def test_two_dumps_are_refused(dump, tmp_path, capfd):
    assert main(["tovelf", "-l", "all", "-i", str(dump), str(dump), "-o", str(tmp_path / "out")]) == 2
    assert os.listdir(tmp_path) == ["dump"]


@pytest.mark.parametrize(
    "words",
    [
        ("topelf", "-i", "dump", "-o", "out"),
        ("topelf", "dump", "-o", "out"),
        ("tovelf", "-i", "dump", "-o", "out"),
        ("tovelf", "dump", "--in-place"),
        ("tovelf", "-i", "dump", "--undo"),
        ("dumpmem", "-i", "dump", "0", "1"),
        ("virttophys", "-i", "dump", "0"),
        ("addrandoff", "-i", "dump", "-m", "vmlinux"),
    ],
    ids=" ".join,
)
def test_two_options_that_name_the_dump_are_refused(words, dump, monkeypatch, capfd):
    """-v names it when nothing else does."""
    monkeypatch.chdir(dump.parent)
    (dump.parent / "other").write_bytes(dump.read_bytes())
    before = dump.read_bytes()
    assert main([*words, "-v", "other"]) == 2
    how = "-i" if "-i" in words else "DUMP"
    assert capfd.readouterr().err.startswith(f"error: -v and {how} both name a dump\nhint: leave out one; ")
    assert sorted(os.listdir(dump.parent)) == ["dump", "other"]
    assert dump.read_bytes() == (dump.parent / "other").read_bytes() == before


@pytest.mark.parametrize("intype", ["auto", "pelf"])
def test_input_type(intype, dump, tmp_path, capfd):
    assert main(["tovelf", "-I", intype, "-i", str(dump), "-o", str(tmp_path / "out")]) == 0


def test_forced_type_does_not_make_a_dump_of_a_text(tmp_path, capfd):
    (tmp_path / "text").write_text("no dump\n" * 100)
    assert main(["tovelf", "-I", "pelf", "-i", str(tmp_path / "text"), "-o", str(tmp_path / "out")]) == 1
    assert capfd.readouterr().err.startswith("error: ")


def test_default_input_is_proc_vmcore(tmp_path, capfd):
    if os.path.exists("/proc/vmcore"):
        pytest.skip("this machine is a crash kernel")
    assert main(["tovelf", "-o", str(tmp_path / "out")]) == 1
    assert "/proc/vmcore" in capfd.readouterr().err
    assert os.listdir(tmp_path) == []


def test_debug_shows_the_traceback_of_an_error(tmp_path, capfd):
    (tmp_path / "dump").write_bytes(b"nothing")
    argv = ["tovelf", "-l", "all", "-i", str(tmp_path / "dump"), "-o", str(tmp_path / "out")]
    assert main(argv) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert main([*argv, "--debug"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "error: " in err


def test_json_without_an_output_file_leaves_stdout_to_the_core(dump, capfdbinary):
    assert main(["tovelf", "-l", "all", "-i", str(dump), "--json"]) == 0
    out, err = capfdbinary.readouterr()
    assert out[:4] == b"\x7fELF"
    assert err.lstrip()[:1] == b"{"


def test_statistics_do_not_follow_the_core_on_the_same_stream(dump, capfdbinary, tmp_path):
    assert main(["tovelf", "-l", "all", "-i", str(dump), "-o", str(tmp_path / "file")]) == 0
    capfdbinary.readouterr()
    assert main(["tovelf", "-l", "all", "-i", str(dump)]) == 0
    out, err = capfdbinary.readouterr()
    assert out == (tmp_path / "file").read_bytes()
    assert b"Accepted" in err


def test_rich_is_not_needed():
    """The crash kernel has numpy and the standard library only."""
    code = (
        "import sys; sys.modules['rich'] = None; import kdump_elftool.cli.main as m; sys.exit(m.main(['-v']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def without(closed: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run with some of the standard streams closed, as ``>&-`` of a shell does."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(*argv)]
    return subprocess.run(shell, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_neither_fail_nor_get_into_the_core(dump, tmp_path, closed):
    whole, path = tmp_path / "whole", tmp_path / "out"
    assert main(["tovelf", "-l", "all", "-i", str(dump), "-o", str(whole)]) == 0
    done = without(closed, "tovelf", "-l", "all", "-i", str(dump), "-o", str(path), "--verbose")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert path.read_bytes() == whole.read_bytes()
    assert without(closed, "info", str(dump)).returncode == 0


def test_what_needs_a_closed_stream_says_so(dump):
    done = without("<&-", "info", "-")
    assert (done.returncode, done.stderr) == (
        1,
        "error: -: the file is empty\nhint: was the dump written at all?\n",
    )
    done = without(">&-", "tovelf", "-q", "-i", str(dump))
    assert (done.returncode, done.stderr) == (1, "error: cannot write stdout: Bad file descriptor\n")
