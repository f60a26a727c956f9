"""The file of each module: found by its name, proven by its build id, its sections given their addresses.

Names come out of the dump and of files, and a gdb command can run programs: no name of a module reaches
one, and of sections only those that are made of letters, digits and a few marks.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from kdump_elftool.errors import KdumpError, UsageError
from kdump_elftool.plain.module_elf import ModuleElf, without_addresses
from kdump_elftool.plain.module_index import FileIndex, safe_name
from kdump_elftool.plain.module_sections import Section
from kdump_elftool.plain.modules import Module
from kdump_elftool.safe_text import printable

_SECTION = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[A-Za-z0-9_./+~:=@%,][A-Za-z0-9_./+~:=@%,-]*")
_LARGEST_COPY = 256 << 20
_PERCPU = ".data..percpu"
_NOWHERE = {8: 1 << 60, 4: 0x1000}
"""Where sections go that are not in memory: left alone gdb puts them at 0, and would name a call of NULL
after the first function in them.  No kernel runs at these."""


class Loaded(Protocol):
    """A module in memory, with what tells its file from others."""

    @property
    def module(self) -> Module:
        """From the kernel's list."""

    @property
    def sections(self) -> tuple[Section, ...]:
        """Those that are in memory."""

    @property
    def build_id(self) -> bytes | None:
        """None where the kernel does not have it."""


class Machine(NamedTuple):
    """What a file must be made for; ``release`` is the kernel's, if that is known."""

    word: int
    order: str
    e_machine: int
    release: str | None


class Found(NamedTuple):
    """A module's file; gdb is to be given ``contents`` in its place where they are not None."""

    path: str
    elf: ModuleElf
    contents: bytes | None


Open = Callable[[str], "tuple[ModuleElf, bytes | None]"]
"""What is in a file, and its contents if it was compressed.  Raises OSError, KdumpError."""


class ModuleFinder:
    """Looks for the files of one kernel's modules; what was refused is in ``refused``, (path, reason)."""

    def __init__(self, machine: Machine, index: FileIndex, open_file: Open) -> None:
        self.index = index
        self.refused: list[tuple[str, str]] = []
        self._machine = machine
        self._open_file = open_file

    def find(self, loaded: Loaded) -> Found | None:
        """The best file of a module: one with types before one without; None where there is none."""
        name = safe_name(loaded.module)
        if name is None:
            return None
        refused: list[tuple[str, str]] = []
        best: Found | None = None
        for path in self.index.candidates(name, loaded.build_id):
            try:
                found = self._opened(path, loaded, refused)
            except OSError as error:
                refused.append((printable(path), str(error.strerror)))
            except KdumpError as error:
                refused.append((printable(path), error.message.removeprefix(f"{path}: ")))
            else:
                if found is not None and (best is None or found.elf.has_types):
                    best = found
                    if found.elf.has_types:
                        break
        if best is None:
            self.refused += refused
        return best

    def _opened(self, path: str, loaded: Loaded, refused: list[tuple[str, str]]) -> Found | None:
        if not fits_command(path):
            refused.append((printable(path), "gdb cannot be told a name that is no plain text"))
            return None
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        elf, contents = self._open_file(path)
        why = why_not(elf, loaded, self._machine)
        if why is not None:
            refused.append((printable(path), why))
            return None
        if elf.has_addresses and elf.has_types:
            contents = _without_addresses(path, contents)
        return Found(path, elf, contents)


def _without_addresses(path: str, contents: bytes | None) -> bytes | None:
    """A copy, unless that would be too large."""
    if contents is None and os.stat(path).st_size <= _LARGEST_COPY:
        with open(path, "rb") as file:
            contents = file.read(_LARGEST_COPY)
    return (
        contents if contents is None or len(contents) > _LARGEST_COPY else without_addresses(path, contents)
    )


def why_not(elf: ModuleElf, loaded: Loaded, machine: Machine) -> str | None:
    """Why this is not the file of that module; None when it must be."""
    if (elf.word, elf.order, elf.e_machine) != machine[:3]:
        return "it is of another machine"
    if not elf.has_symbols:
        return "it has no symbols"
    if loaded.build_id is not None:
        if elf.build_id is None:
            return "it has no build id"
        if elf.build_id != loaded.build_id:
            return f"its build id is {elf.build_id.hex()}, that of the module is {loaded.build_id.hex()}"
        return None
    # without a build id in the dump: built for this release, and with these sections
    if elf.release is None or elf.release != machine.release:
        release = "no release" if elf.release is None else printable(elf.release)
        return f"the dump has no build id of the module, and the file is of {release}"
    there = {section.name for section in elf.sections}
    missing = [section.name for section in loaded.sections if section.name.decode("latin-1") not in there]
    return f"it has no section {printable(missing[0])}" if missing else None


def section_addresses(elf: ModuleElf, loaded: Loaded) -> tuple[tuple[str, int], ...]:
    """An address for each section of the file that would be in memory: where it is, or nowhere."""
    module = loaded.module
    live = {section.name.decode("latin-1"): section.vaddr for section in reversed(loaded.sections)}
    nowhere = _NOWHERE[elf.word]
    found: dict[str, int] = {}
    for name, size, align in elf.sections:
        if name in found or not _SECTION.fullmatch(name):
            continue
        vaddr = module.percpu if name == _PERCPU else live.get(name, 0)
        if not vaddr or (name != _PERCPU and module.region_of(vaddr, size) is None):
            vaddr = nowhere = -(-nowhere // align) * align
            nowhere += size
        found[name] = vaddr
    return tuple(found.items())


def fits_command(path: str) -> bool:
    """Whether a path can be part of a gdb command."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not _CONTROL.search(path)


def quoted(path: str) -> str:
    """A path as one argument of a gdb command.  Raises UsageError for one with control characters."""
    if not fits_command(path):
        raise UsageError(f"gdb cannot be told to open {printable(path)}: its name is no plain text")
    if _PLAIN.fullmatch(path):
        return path
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def add_command(word: str, sections: Iterable[tuple[str, int]]) -> str:
    """add-symbol-file as gdb 10 and later know it, of a path that is one word."""
    places = "".join(f" -s {name} {vaddr:#x}" for name, vaddr in sections)
    return f"add-symbol-file {word}{places}"
