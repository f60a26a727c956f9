"""What the documents promise exists: files, commands, options, targets, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kdump_elftool.cli.main import build_parser
from tools.cli_model import read_commands, read_program

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "sample/README.md"])
TREES = ("src", "lab", "tools", "bench", "tests", "docs", "contrib", ".ci")
# pages that documents may send their readers to; addresses of package archives are nobody's business
HOSTS = {"keepachangelog.com", "semver.org"}
EXAMPLE = re.compile(r"(.*\.)?(example|invalid|localhost)(\..*)?|127\.0\.0\.1|[{<$].*")


def text_files() -> list[Path]:
    """Every file of the checkout that people read or run."""
    top = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    deep = [path for tree in TREES for path in (ROOT / tree).rglob("*") if path.is_file()]
    return [path for path in top + deep if "__pycache__" not in path.parts and path.suffix != ".pyc"]


def document_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=DOCUMENTS, ids=document_id)
def document(request: pytest.FixtureRequest) -> str:
    return request.param.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=document_id)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


def test_make_targets_exist(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*):", makefile))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", document, re.MULTILINE))
    assert named - targets == set()


def test_options_of_the_command_exist(document: str) -> None:
    commands = {command.name: command for command in read_commands(build_parser())}
    program = {name for option in read_program(build_parser()).options for name in option.names}
    for line in re.findall(r"kdump-elftool (?![:(])([^`#|\n]*)", document):
        words = line.split()
        if not words or words[0].startswith("-"):
            assert set(words) <= program | {"..."}, line
        elif words[0] in commands:
            known = {name for option in commands[words[0]].options for name in option.names}
            assert {word for word in words if re.match(r"--?[a-zA-Z]", word)} <= known, line


def test_commands_in_code_blocks_exist(document: str) -> None:
    commands = {command.name for command in read_commands(build_parser())}
    for block in re.findall(r"(?ms)^```\w*\n(.*?)^```", document):
        used = re.findall(r"(?m)^(?:[#$] )?kdump-elftool ([a-z]+)", block)
        assert set(used) <= commands


def test_changelog_has_this_version_and_real_dates() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    headings = re.findall(r"(?m)^## (.*)$", changes)
    assert all(
        re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d|\[Unreleased\]", heading) for heading in headings
    )
    released = [heading for heading in headings if heading != "[Unreleased]"]
    assert released[0].startswith(f"[{version}]")


def test_constraints_hold_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 10
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    wanted = [entry for group in project["dependency-groups"].values() for entry in group]
    wanted += project["project"]["dependencies"] + project["build-system"]["requires"]
    names = [re.split(r"[<>=]", entry)[0].lower() for entry in wanted if isinstance(entry, str)]
    assert [name for name in names if not re.search(rf"(?m)^{name}==", pins)] == []


def test_no_address_of_an_archive_anywhere() -> None:
    files = text_files()
    assert len(files) > 50
    found = [
        (document_id(path), host)
        for path in files
        for host in re.findall(r"https?://([^/\s\"'`)>:\\]+)", path.read_text("utf-8", "replace"))
        if host not in HOSTS and not EXAMPLE.fullmatch(host)
    ]
    assert found == []
