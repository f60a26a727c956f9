"""Modules in real dumps against /proc/modules, /sys/module, /proc/kallsyms of the guest, and their files.

One dump of each kernel: what is read does not depend on the format of the dump.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, SymbolTableSection

from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.jobs.module_symbols import ModuleSymbols, module_symbols
from kdump_elftool.jobs.modules import LoadedModules, list_modules
from kdump_elftool.kernel.vmlinux import read_vmlinux
from lab.kernels import module_depends
from tests.lab.dumps import (
    GDB_MULTIARCH,
    IN_CI,
    IN_FULL,
    LabDump,
    gdb,
    kdump_elftool,
    one_of_each_kernel,
    one_of_each_row,
)

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

EM_MIPS = 8
KINDS = {"mipsel": (32, "<"), "mips64el": (64, "<"), "mips": (32, ">"), "mips64": (64, ">")}
MACHINES = {
    "x86_64": "i386:x86-64",
    "i386": "i386",
    "arm64": "aarch64",
    "arm": "arm",
    "mips": "mips:isa32r2",
    "mips64": "mips:isa64r2",
}
"""What gdb calls them."""
GONE = re.compile(r".*\.init\..*|\.symtab|\.strtab|\.data\.\.percpu|__ex_table_init")
"""Sections that the kernel frees once a module runs, or that have no address."""
EMPTY = ""
"""Among the names of an object of no size, such as a lock's class without lockdep: it is nowhere."""
PATCHED = 8
"""arm64's functions begin with room for patches, which only lines of a function before it cover."""
SHORT = " "
"""Among the names of a function that has no such room: it would not fit."""
DUMPS = one_of_each_kernel(one_of_each_row())
NAMED = [dump for dump in DUMPS if not IN_CI or dump.row.partition(".")[0] in IN_FULL]
"""Whose symbols gdb is asked for: it takes seconds each."""


@dataclass(frozen=True)
class Opened:
    dump: LabDump
    file: Dump
    kernel: Kernel
    loaded: LoadedModules
    truth: dict[str, Any]

    @property
    def debug(self) -> Path:
        return (self.dump.directory / "debug-modules").resolve()

    @property
    def stripped(self) -> Path:
        return (self.dump.directory / "modules").resolve()

    def symbols(self, directory: Path, scratch: Path) -> ModuleSymbols:
        known = self.loaded.target.known
        return module_symbols(self.file, self.kernel, [str(directory)], str(scratch), known)

    @property
    def names(self) -> list[dict[str, str]]:
        """Symbols by /proc/kallsyms, but for those of generated code and marks of what is code or data."""
        modules = {module["name"] for module in self.truth["modules"]}
        return [
            symbol
            for symbol in self.truth["module_symbols"]
            if symbol["module"] in modules and not symbol["name"].startswith("$")
        ]

    def file_of(self, name: str) -> Path:
        return next(path for path in self.debug.iterdir() if path.stem.replace("-", "_") == name)


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    with opening(request.param) as found:
        yield found


@pytest.fixture(scope="module", params=NAMED, ids=lambda dump: dump.id)
def named(request: pytest.FixtureRequest) -> Iterator[Opened]:
    with opening(request.param) as found:
        yield found


@contextmanager
def opening(dump: LabDump) -> Iterator[Opened]:
    dump.check()
    raw = KINDS.get(dump.arch)
    options = OpenOptions(e_machine=EM_MIPS, kind=ElfKind(*raw)) if raw else OpenOptions()
    with ExitStack() as stack:
        vmlinux = read_vmlinux(stack.enter_context(InputFile.open(str(dump.vmlinux))))
        file = open_dump(
            stack.enter_context(InputFile.open(str(dump.path))), "raw" if raw else "auto", options
        )
        kernel = open_kernel(file, KernelRequest(vmlinux=vmlinux))
        yield Opened(dump, file, kernel, list_modules(file, kernel), dump.truth)


def test_the_list(opened: Opened) -> None:
    """Names, sizes and bases as /proc/modules had them, in its order."""
    ours = [
        {"name": loaded.name, "size": loaded.module.size, "addr": f"{loaded.module.base:#x}"}
        for loaded in opened.loaded.modules
    ]
    assert ours == opened.truth["modules"]
    assert len(ours) >= 4
    assert opened.loaded.warnings == ()
    assert {loaded.module.state_name for loaded in opened.loaded.modules} == {"Live"}


def test_users(opened: Opened) -> None:
    """Who uses whom, as the modules' files say what they depend on."""
    depends = {
        loaded.name: module_depends(opened.file_of(loaded.name).read_bytes())
        for loaded in opened.loaded.modules
    }
    for loaded in opened.loaded.modules:
        users = {
            name
            for name, needed in depends.items()
            if loaded.name in [one.replace("-", "_") for one in needed]
        }
        assert loaded.module.users is not None
        assert {user.decode() for user in loaded.module.users} == users
        assert loaded.module.references is not None
        assert len(users) <= loaded.module.references < 1000
    # a file system on a loop device is mounted in every guest that has ext4
    if "no file system" not in (opened.dump.directory / "console.log").read_text(errors="replace"):
        assert next(loaded.module.references for loaded in opened.loaded.modules if loaded.name == "loop")


def test_sections(opened: Opened) -> None:
    """At the addresses of /sys/module/NAME/sections; those that are missing are freed by now."""
    for loaded in opened.loaded.modules:
        expected = opened.truth["module_sections"][loaded.name]
        ours = {section.name.decode(): f"{section.vaddr:#x}" for section in loaded.sections}
        assert ours == {name: expected[name] for name in ours}
        missing = {name for name in expected if name not in ours and not GONE.fullmatch(name)}
        assert not missing, (loaded.name, missing)
        assert ".text" in ours or not any(name.startswith(".text") for name in expected)


def test_build_ids(opened: Opened) -> None:
    """Those of the files."""
    for loaded in opened.loaded.modules:
        assert loaded.build_id is not None
        assert loaded.build_id.hex() == build_id(opened.file_of(loaded.name)), loaded.name


def build_id(path: Path) -> str:
    with path.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, NoteSection):
                for note in section.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return note["n_desc"]
    raise AssertionError(f"{path} has no build id")


@cache
def aliases(path: Path) -> dict[str, set[str]]:
    """All names that a symbol of a file goes by: those of the same place."""
    with path.open("rb") as file:
        symtab = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(symtab, SymbolTableSection)
        places: dict[tuple[Any, int], set[str]] = {}
        rows = [
            (symbol.name, (symbol["st_shndx"], symbol["st_value"]), symbol["st_size"])
            for symbol in symtab.iter_symbols()
        ]
    for name, place, _ in rows:
        places.setdefault(place, set()).add(name)
    found: dict[str, set[str]] = {}
    for name, place, size in rows:
        found.setdefault(name, set()).update(places[place])
        if not size:
            found[name].add(EMPTY)
        if size <= PATCHED:
            found[name].add(SHORT)
    return found


def asked(opened: Opened, found: ModuleSymbols, scratch: Path, *questions: str) -> list[str]:
    """What gdb says with these symbols and nothing else."""
    script = scratch / "load.py"
    lines = [f"gdb.execute({command!r}, to_string=True)" for command in found.commands]
    script.write_text("\n".join(["import gdb", *lines, ""]))
    more = scratch / "questions.gdb"
    more.write_text("\n".join(["set print demangle off", *questions, ""]))
    machine = f"set architecture {MACHINES[opened.kernel.arch.name]}"
    done = gdb(machine, f"source {script}", f"source {more}", program=GDB_MULTIARCH)
    assert (done.returncode, done.stderr) == (0, "")
    _, *answers = done.stdout.splitlines()
    wanted = [question for question in questions if question.startswith("info")]
    assert len(answers) == len(wanted), answers[:20]
    return answers


def check_names(opened: Opened, answers: list[str]) -> None:
    """Each symbol of the guest's /proc/kallsyms is named by gdb, in a file of its own module."""
    symbols = opened.names
    assert len(symbols) > 50
    for symbol, answer in zip(symbols, answers, strict=True):
        known = aliases(opened.file_of(symbol["module"]))[symbol["name"]]
        if EMPTY in known and symbol["type"] in "bd":
            continue
        name = re.fullmatch(
            r"(\S+) in section \S+ of \S*/([\w-]+?)(-[0-9a-f]{16}|-symbols-[0-9a-f]+)?\.k?o", answer
        )
        assert name is not None, (symbol, answer)
        assert name[1] in known, (symbol, answer)
        assert name[2].replace("-", "_") == symbol["module"]


def addresses(opened: Opened) -> list[str]:
    return [f"info symbol {symbol['addr']}" for symbol in opened.names]


def room(opened: Opened, symbol: dict[str, str]) -> int:
    """Bytes at the beginning of a function that have no lines."""
    short = SHORT in aliases(opened.file_of(symbol["module"]))[symbol["name"]]
    return PATCHED if opened.kernel.arch.name == "arm64" and not short else 0


def test_names_and_lines_by_the_files(named: Opened, tmp_path: Path) -> None:
    """The files with types beside the vmlinux; functions have lines, and nothing is at NULL."""
    found = named.symbols(named.debug, tmp_path)
    assert (found.missing, found.refused, found.warnings) == ((), (), ())
    assert [name for name, _ in found.files] == [loaded.name for loaded in named.loaded.modules]
    functions = [
        symbol
        for symbol in named.names
        # room for patches has no lines, nor have all parts that were split off
        if symbol["type"] in "tT" and not re.match(r"__pfx_|.*\.cold$", symbol["name"])
    ]
    places = [int(symbol["addr"], 16) + room(named, symbol) for symbol in functions]
    lines = [f"info line *{place:#x}" for place in places]
    # gdb finds the units of 32-bit addresses of MIPS only once they are read
    expand = ["maint expand-symtabs"] if named.kernel.arch.name.startswith("mips") else []
    questions = [*expand, *addresses(named), *lines, "info symbol 0", "info symbol 8"]
    answers = asked(named, found, tmp_path, *questions)
    count = len(named.names)
    check_names(named, answers[:count])
    assert answers[-2:] == ["No symbol matches 0.", "No symbol matches 8."]
    for place, answer in zip(places, answers[count:-2], strict=True):
        said = re.match(r'Line \d+ of "[^"]+\.[chS]" starts at address (\w+) .*ends at (\w+)', answer)
        assert said is not None, answer
        assert int(said[1], 16) <= place < int(said[2], 16), (hex(place), answer)


CORES = [dump for dump in NAMED if dump.file != "qemu.raw"]


@pytest.mark.parametrize("dump", CORES, ids=lambda dump: dump.id)
def test_kd_mods(dump: LabDump, tmp_path: Path) -> None:
    """Inside a gdb that has nothing but the core: the same names; and once is enough."""
    velf = tmp_path / "velf"
    made = kdump_elftool("tovelf", "-i", dump.path, "-m", dump.vmlinux, "-o", velf)
    assert made.returncode == 0, made.stderr
    with opening(dump) as named:
        load = f"kd-mods {named.debug}"
        more = tmp_path / "questions.gdb"
        more.write_text(
            "\n".join(["set print demangle off", load, "echo == names\\n", *addresses(named), load])
        )
        gdbinit = kdump_elftool("gdbinit").stdout.strip()
        done = gdb(f"source {gdbinit}", f"core-file {velf}", f"source {more}", program=GDB_MULTIARCH)
        # gdb has no symbols when it opens the core
        assert "Python" not in done.stderr
        first, _, rest = done.stdout.partition("== names\n")
        count = len(named.loaded.modules)
        *answers, again = rest.splitlines()
        assert f"{count} modules: {count} loaded\n" in first
        assert again == f"{count} modules: {count} loaded before"
        check_names(named, answers)


def test_names_by_the_dump_alone(named: Opened, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    found = named.symbols(nothing, tmp_path)
    assert (found.files, found.refused, found.warnings) == ((), (), ())
    assert all(missing.named for missing in found.missing)
    assert [missing.name for missing in found.missing] == [loaded.name for loaded in named.loaded.modules]
    check_names(named, asked(named, found, tmp_path, *addresses(named)))


def test_names_by_stripped_modules(named: Opened, tmp_path: Path) -> None:
    """What the kernel itself loaded: names, no lines."""
    found = named.symbols(named.stripped, tmp_path)
    assert (found.missing, found.refused, found.warnings) == ((), (), ())
    check_names(named, asked(named, found, tmp_path, *addresses(named)))


def test_a_module_of_another_build(named: Opened, tmp_path: Path) -> None:
    """The build id tells: not the name."""
    name = named.loaded.modules[0].name
    data = named.file_of(name).read_bytes()
    right = bytes.fromhex(build_id(named.file_of(name)))
    assert data.count(right) == 1
    path = tmp_path / f"{name}.ko"
    path.write_bytes(data.replace(right, right[::-1]))
    found = named.symbols(tmp_path, tmp_path)
    assert [refused.what for refused in found.refused] == [str(path)]
    assert right[::-1].hex() in found.refused[0].why
    assert found.missing[0].name == name
