"""``kdump-elftool gdb`` with the real gdb: names that are commands, and notes that somebody has changed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.check import read_core
from tests.builders.kernel import build_vmlinux
from tests.builders.task_kernel import AT, make_task_kernel
from tests.builders.tasks import OFFSETS
from tests.builders.tools import command

pytestmark = pytest.mark.gdb

COMMS = {
    2: b'"\n\x1b]0;x\x07$(id)',
    3: b"\nshell touch pw\n",
    4: b"`touch planted`",
    5: b"\xff\xfe%s%n\\",
    6: b"'); import os #",
}
FOLDER = "a b\nshell touch planted\n\"; '$(touch planted)\x1b[31m"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A dump whose tasks, and whose files, have names that somebody chose with care."""
    tmp_path = tmp_path_factory.mktemp("session")
    made = make_task_kernel([1, 3, 1, 2])
    for vaddr, _, tid, _ in made.tasks.expected:
        if tid in COMMS:
            at = AT + vaddr - made.tasks.base + OFFSETS["task_struct.comm"]
            made.kernel.ram.write(at, COMMS[tid].ljust(16, b"\0"))
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "vm core").write_bytes(made.kernel.dump())
    (folder / "vm linux").write_bytes(build_vmlinux())
    (tmp_path / "extra").write_text(made.extra)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        patch.chdir(tmp_path)
        yield folder


@pytest.fixture(scope="module")
def velf(place) -> bytes:
    """A core that was made of it."""
    run("--print-script", "-q", "-e", "extra", "--velf", "core.velf", place / "vm core")
    return Path("core.velf").read_bytes()


def run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command("gdb", *map(str, words)),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def printable(done: subprocess.CompletedProcess[str]) -> str:
    """What was printed, which has to be fit for a terminal."""
    assert re.fullmatch(r"[\x20-\x7e\t\n]*", done.stdout + done.stderr)
    return done.stdout


def planted() -> list[Path]:
    return [path for path in Path().rglob("*") if path.name in ("planted", "pw")]


def escaped(byte: int) -> str:
    if byte == 0x5C:
        return "\\\\"
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"


def test_names_are_names(place):
    words = ("--batch", "-e", "extra", place / "vm core", place / "vm linux", "--", "-ex", "info threads")
    for _ in range(2):  # converted, then used again
        shown = printable(run(*words))
        assert planted() == []
    names = dict(re.findall(r'^[* ] +\d+ +LWP (-?\d+) +"(.*?)" ', shown, re.M))
    for tid, comm in COMMS.items():
        readable = "".join(map(escaped, comm))
        assert names[str(tid)] == readable


def test_gdb_has_what_it_needs(place):
    more = ("-ex", "python print(len(gdb.selected_inferior().threads()), gdb.objfiles()[0].filename)")
    shown = run("--batch", "-e", "extra", place / "vm core", place / "vm linux", "--", *more).stdout
    assert shown.endswith(f"8 {place / 'vm linux'}\n"), "what is behind the links"
    assert planted() == []


def forge(image: bytes, change) -> Path:
    """The core with another text in the summary note, of the same length."""
    (text,) = [desc for name, kind, desc in read_core(image).notes() if (name, kind) == ("kdump-elftool", 1)]
    document = json.loads(text)
    change(document)
    forged = json.dumps(document, separators=(",", ":")).encode()
    assert len(forged) <= len(text)
    path = Path("forged.velf")
    path.write_bytes(image.replace(text, forged.ljust(len(text))))
    return path


EVIL = '\x1b[2J"\nshell touch planted\n'


@pytest.mark.parametrize(
    "crash",
    [
        {"message": EVIL, "comm": EVIL, "cpu": 1, "pid": 3},
        {"message": ["list"], "comm": {}, "cpu": "1", "pid": 1 << 70},
        {"message": None, "cpu": -5, "pid": -1},
        {"cpu": 1 << 40, "pid": 0},
        {"cpu": True, "pid": False},
        [],
        "text",
        7,
    ],
    ids=str,
)
def test_a_forged_summary(velf, crash):
    """A core that came from somewhere may say anything of itself."""

    def change(document: dict) -> None:
        del document["made_of"], document["coverage"]
        document["facts"] = [{"name": "release", "value": EVIL}, 5, {"name": ["release"]}][
            : 1 if crash else 3
        ]
        document["crash"] = crash

    shown = printable(run("--batch", forge(velf, change)))
    assert [line.partition(":")[0] for line in shown.splitlines()[:5]] == [
        "release",
        "panic message",
        "task",
        "tasks",
        "commands",
    ]
    assert planted() == []


@pytest.mark.parametrize("cpu", [-5, -1, 2, 1 << 30])
def test_a_forged_cpu_of_a_core_without_tasks(place, cpu):
    """Threads are the CPUs in their order then; that one is none of them."""
    run("--print-script", "-q", "-e", "extra", "--no-procthreads", "--velf", "cpus.velf", place / "vm core")

    def change(document: dict) -> None:
        del document["made_of"], document["coverage"]
        document["crash"] = {"message": "x", "cpu": cpu, "pid": None}

    shown = printable(run("--batch", forge(Path("cpus.velf").read_bytes(), change)))
    labels = [line.partition(":")[0] for line in shown.splitlines()[:5]]
    assert labels == ["release", "panic message", "task", "cpus", "commands"]


OFFSETS_OF_SOMEBODY = [
    "0x1; shell touch planted",
    "1\nshell touch planted",
    [1],
    None,
    "-0x5",
    "0x" + "f" * 17,
]


@pytest.mark.parametrize(
    "offset", OFFSETS_OF_SOMEBODY, ids=lambda offset: str(OFFSETS_OF_SOMEBODY.index(offset))
)
def test_a_forged_offset(place, velf, offset):
    """It is not used: VMCOREINFO has where a symbol was."""

    def change(document: dict) -> None:
        del document["made_of"], document["coverage"]
        document["facts"] = [{"name": "kaslr_offset", "value": offset}]

    done = run("--print-script", forge(velf, change), place / "vm linux")
    assert "shell" not in done.stdout
    (symbols,) = re.findall(r"^symbol-file .*$", done.stdout, re.M)
    real = run("--print-script", "core.velf", place / "vm linux")
    assert symbols in real.stdout.splitlines()


def test_what_gdb_cannot_open_is_exit_code_1(velf):
    """A script ends at its first error."""
    path = Path("core.velf")
    script = run("--print-script", "-q", path).stdout
    Path("script").write_text(script.replace("core.velf", "gone.velf"))
    done = subprocess.run(["gdb", "-nx", "-q", "-batch", "-x", "script"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "No such file" in done.stderr
    assert "release:" not in done.stdout
