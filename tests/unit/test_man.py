"""The man page and the completion say what the parser says, and the comparison notices when not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kdump_elftool.cli.main import build_parser
from tools import gen_completion, gen_man
from tools.cli_model import read_commands

COMMANDS = read_commands(build_parser())


def plain(page: str) -> str:
    """The page without font changes and escapes."""
    return re.sub(r"\\f[A-Z]", "", page).replace("\\-", "-")


def test_page_is_current() -> None:
    assert gen_man.main(["--check"]) == 0


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_of_help_stands_in_the_page(command, capsys: pytest.CaptureFixture[str]) -> None:
    """From what --help prints, not from the generator's own reading of the parser."""
    with pytest.raises(SystemExit):
        build_parser().parse_args([command.name, "--help"])
    shown = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", capsys.readouterr().out))
    assert len(shown) > 5
    text = plain(gen_man.PAGE.read_text(encoding="utf-8"))
    sections = {part.split("\n", 1)[0]: part for part in re.split(r"(?m)^\.S[HS] ", text)}
    own = sections[command.name] + sections["With every command"]
    assert {name for name in shown if not re.search(rf"(?<![\w-]){name}(?![\w-])", own)} == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"\fB\-\-zero\-excluded\fR", r"\fB\-\-gone\fR"),
        (".TP\n\\fB\\-\\-undo\\fR\n", ""),
        ('.\\" begin makedyn options\n', ""),
        ('.\\" begin makedyn options', '.\\" begin maketea options'),
    ],
    ids=["renamed option", "missing option", "missing block", "unknown command"],
)
def test_stale_page_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    page = gen_man.PAGE.read_text(encoding="utf-8")
    assert old in page
    stale = tmp_path / "page.1"
    stale.write_text(page.replace(old, new), encoding="utf-8")
    assert gen_man.main(["--check", str(stale)]) == 1


def test_sections_that_readers_are_sent_to() -> None:
    page = gen_man.PAGE.read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^\.SH (.*)$", page)
    wanted = ["QEMU DUMPS", "MAKEDUMPFILE DUMPS", "PROCESSES AS THREADS", "KERNEL MODULES", "EXIT STATUS"]
    assert [heading for heading in wanted if heading not in headings] == []


@pytest.mark.skipif(
    not shutil.which("groff") and os.environ.get("CI") != "true", reason="groff is not installed"
)
def test_groff_has_no_complaint() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", gen_man.PAGE], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "SYNOPSIS" in re.sub("\x1b\\[[0-9;]*m|.\b", "", done.stdout)


def test_completion_is_current_and_notices_when_not(tmp_path: Path) -> None:
    assert gen_completion.main(["--check"]) == 0
    stale = tmp_path / "stale.bash"
    stale.write_text(gen_completion.completion().replace("--undo", "--gone"), encoding="utf-8")
    assert gen_completion.main(["--check", str(stale)]) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kdump-elftool mak", ["makedyn"]),
        ("kdump-elftool tovelf --zero", ["--zero-excluded"]),
        ("kdump-elftool makedyn --un", ["--undo"]),
        ("kdump-elftool tovelf -I p", ["pelf"]),
        ("kdump-elftool tovelf -m --", []),
    ],
)
def test_completion_in_bash(words: str, expected: list[str]) -> None:
    split = words.split()
    script = (
        f"source {gen_completion.SCRIPT}; COMP_WORDS=({words}); COMP_CWORD={len(split) - 1}; "
        "_kdump_elftool; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
