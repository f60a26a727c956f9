"""The gdb side in the oldest gdb that it is for: 10.1 of Debian 11, whose Python is 3.9.

The judge is the gdb of this system: the same commands on the same core show the same there.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdump_elftool import gdbside
from lab.roots import run_in_root
from tests.lab.dumps import HERE, LabDump, gdb, kdump_elftool, selected_dumps, tool_root
from tests.lab.test_every_command import BROKEN, FUNCTIONS, questions

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.root, pytest.mark.slow]

# a kernel of the same system; the root is for the matrix alone
DUMPS = [dump for dump in selected_dumps() if dump.row == "x64-510-l4.kdump"]
PACKAGE = Path(gdbside.__file__).resolve().parents[1]
OWN_WORDS = ("p ", "kd-percpu ", "kd-list ", "kd-rbtree ", "kd-mods")
"""What gdb itself prints of values and files is not the same in every version."""


@dataclass(frozen=True)
class Shown:
    """What a command line shows, or why it does not, in the old gdb and in the new one."""

    dump: LabDump
    version: str
    stderr: str
    old: dict[str, list[str]]
    new: dict[str, list[str]]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("older")
    velf, wanted = folder / "velf", folder / "wanted"
    done = kdump_elftool("tovelf", "-p", "--json", "-o", velf, dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    offset = json.loads(done.stdout)["kaslr_offset"]
    lines = [line for each in questions(dump).values() for line in each] + [*FUNCTIONS]
    wanted.write_text(json.dumps(lines))

    def commands(root: str) -> list[str]:
        """The same, with paths of inside or outside of the root."""
        return [
            "set python print-stack full",
            f"source {root}{PACKAGE}/gdbside/kdump_gdbinit",
            f"core-file {root}{velf}",
            f"symbol-file -o {offset} {root}{dump.vmlinux}",
            f"source {root}{HERE}/gdb_every_command.py",
        ]

    argv = ["gdb", "-nx", "-nh", "-batch", "-ex", "show version"]
    for command in commands("/mnt"):
        argv += ["-ex", command]
    binds = {at: f"/mnt{at}" for at in (PACKAGE, folder, dump.vmlinux.parent, HERE)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_WANTED", f"/mnt{wanted}")
        patch.setenv("KD_ANSWER", f"/mnt{folder}/old")
        old = run_in_root(tool_root("bullseye"), argv, binds=binds, timeout=600)
    assert (folder / "old").exists(), old.stdout[-1000:] + old.stderr[-3000:]
    gdb(*commands(""), KD_WANTED=str(wanted), KD_ANSWER=str(folder / "new"))
    answers = [json.loads((folder / name).read_text())["shown"] for name in ("old", "new")]
    version = re.search(r"GNU gdb .*?(\d+)\.\d+", old.stdout)[1]
    yield Shown(dump, version, old.stderr, *(dict(zip(lines, each, strict=True)) for each in answers))
    velf.unlink()


def test_every_command_runs(shown: Shown) -> None:
    assert int(shown.version) < 13
    assert not BROKEN.search(shown.stderr), shown.stderr[-2000:]
    assert not [(line, each) for line, each in shown.old.items() if any(map(BROKEN.search, each))]
    assert shown.old["dmesg"] == [kdump_elftool("dmesg", shown.dump.path).stdout, ""]


def test_it_shows_what_a_newer_one_shows(shown: Shown) -> None:
    """Refusals too."""
    ours = {line for line in shown.new if not line.startswith(OWN_WORDS)}
    assert len(ours) > 25
    assert not [line for line in sorted(ours) if shown.old[line] != shown.new[line]]
    for line in shown.new.keys() - ours:
        assert bool(shown.old[line][1]) == bool(shown.new[line][1]), line


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_a_session_without_vmlinux(dump: LabDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of ``kdump-elftool gdb``, and the types, names and frames that it makes: DWARF 5."""
    dump.check()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no vmlinux is remembered
    done = kdump_elftool("gdb", "--print-script", "-q", "--velf", tmp_path / "velf", dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / "script"
    script.write_text(done.stdout)
    argv = ["gdb", "-nx", "-nh", "-batch", "-q", "-x", str(script), "-ex", "kd-bt all"]
    binds = {at: str(at) for at in (PACKAGE, tmp_path)}
    old = run_in_root(tool_root("bullseye"), argv, binds=binds, timeout=600)
    new = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=600)
    assert (old.returncode, old.stderr) == (0, "")
    assert old.stdout == new.stdout
    assert "__schedule ()" in old.stdout
