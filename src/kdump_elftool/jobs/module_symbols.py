"""Symbols of a dump's modules for gdb: its commands, and files made where a module's own is missing.

``module_symbols()`` is what ``kdump-elftool gdb`` and ``tovelf --gdb-script`` call.  Names come out of the
dump, and a gdb command can run programs: a module becomes part of a command only if its name is made
of letters, digits, ``_`` and ``-``; any other is left out and named in ``refused``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdump_elftool.cache import Cache
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import open_output
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.module_files import ModuleFile, find_file, open_module
from kdump_elftool.jobs.module_objects import symbols_as_file
from kdump_elftool.jobs.modules import LoadedModules, modules_by
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.modules import SymbolColumns
from kdump_elftool.plain.module_files import Machine, ModuleFinder, add_command, quoted
from kdump_elftool.plain.module_index import FileIndex, safe_name, safe_release, usual_directories
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

_UNFORMED = 3


@dataclass(frozen=True)
class Missing:
    """A module without a file; ``named`` when the dump itself has told the names of its functions."""

    name: str
    named: bool


@dataclass(frozen=True)
class Refused:
    """A file or module that is not used, and why; printable."""

    what: str
    why: str


@dataclass(frozen=True)
class ModuleSymbols:
    """What makes gdb know the modules.

    ``loads`` is a file for each module that has one, its own or one made out of the dump; ``files`` are the
    modules' names with the files that were found; ``missing`` those without one; ``refused`` what was left
    out.
    """

    loads: tuple[ModuleFile, ...]
    files: tuple[tuple[str, str], ...]
    missing: tuple[Missing, ...]
    refused: tuple[Refused, ...]
    warnings: tuple[str, ...]

    @property
    def commands(self) -> tuple[str, ...]:
        """Whole gdb commands, one a file, of nothing but paths of this machine, section names and numbers.

        gdb lists the sections of each at length, unless run by ``gdb.execute(command, to_string=True)``.
        Raises UsageError for a path that no command can hold.
        """
        return self.commands_with(quoted)

    def commands_with(self, word: Callable[[str], str]) -> tuple[str, ...]:
        """As :attr:`commands`; ``word`` makes a path a word of a command, by quotes or by a link to it."""
        return tuple(add_command(word(file.path), file.sections) for file in self.loads)


def module_symbols(
    dump: Dump, kernel: Kernel, directories: Sequence[str], scratch: str, known: Knowledge | None = None
) -> ModuleSymbols:
    """The modules of a dump and their symbols.

    ``directories`` are searched for files of modules, with all that is below them; where none are given,
    the places of distributions for this release, and that of the vmlinux.  ``scratch`` is a directory for
    files that gdb will read: symbols out of the dump, and modules that had to be decompressed where there
    is no cache.  ``known`` is what was asked already.  Raises IdentityError where the modules cannot be
    found, OutputError.
    """
    loaded = modules_by(known or knowledge(dump, kernel), dump, kernel)
    kind = ElfKind(8 * loaded.target.word, loaded.target.order)
    finder, keep = _finder(kernel, kind, directories), _Keeper(kernel.request.cache, scratch)
    made = _Made(kernel.arch.e_machine, _flags(dump, kernel), kind, scratch, loaded)
    loads: list[ModuleFile] = []
    files: list[tuple[str, str]] = []
    missing: list[Missing] = []
    refused: list[Refused] = []
    for number, module in enumerate(loaded.modules):
        if safe_name(module.module) is None:
            refused.append(Refused(module.name, "a module of that name is given to no debugger"))
            continue
        if module.module.state == _UNFORMED:
            continue
        found = find_file(finder, module, keep)
        if found is not None:
            files.append((module.name, found.path))
        else:
            found = made.file(number)
            missing.append(Missing(module.name, found is not None))
        if found is not None:
            loads.append(found)
    refused += [Refused(path, why) for path, why in finder.refused]
    if finder.index.cut is not None:
        log.warning(
            "not all of %s was searched for modules: it holds too many files", printable(finder.index.cut)
        )
    log.info("modules: %d, %d of them with a file", len(loaded.modules), len(files))
    return ModuleSymbols(tuple(loads), tuple(files), tuple(missing), tuple(refused), loaded.warnings)


def _finder(kernel: Kernel, kind: ElfKind, directories: Sequence[str]) -> ModuleFinder:
    release = safe_release(kernel.info.text("OSRELEASE"))
    places = tuple(directories) or (*usual_directories(release), *_beside(kernel))
    machine = Machine(kind.bits // 8, kind.order, kernel.arch.e_machine, release)
    return ModuleFinder(machine, FileIndex(places, release), open_module)


@dataclass(frozen=True)
class _Keeper:
    """Where decompressed modules go: the user's cache, else the scratch directory."""

    cache: Cache | None
    scratch: str

    def __call__(self, name: str, data: bytes) -> str:
        path = None if self.cache is None else self.cache.file(f"module-{name}", data)
        return path or write(self.scratch, name, data)


def write(scratch: str, name: str, data: bytes) -> str:
    """A file in the scratch directory.  Raises OutputError."""
    path = os.path.join(scratch, name)
    with open_output(path) as output:
        output.write_at(0, data)
        output.commit()
    return path


def _beside(kernel: Kernel) -> tuple[str, ...]:
    """The directory of the vmlinux, if one is known."""
    if kernel.vmlinux is None:
        return ()
    return (os.path.dirname(os.path.realpath(kernel.vmlinux.path)),)


def _flags(dump: Dump, kernel: Kernel) -> int:
    """The ABI, by which gdb knows MIPS machines from each other."""
    return dump.e_flags or (kernel.vmlinux.e_flags if kernel.vmlinux is not None else 0)


@dataclass
class _Made:
    """Makes files of symbols out of the dump; all symbols are read when the first one is wanted."""

    e_machine: int
    e_flags: int
    kind: ElfKind
    scratch: str
    loaded: LoadedModules
    _symbols: SymbolColumns | None = None

    def file(self, number: int) -> ModuleFile | None:
        """A file for this module, which needs no section addresses; None where it has no symbols."""
        if self._symbols is None:
            self._symbols = self.loaded.symbols()
        module = self.loaded.modules[number]
        data = symbols_as_file(module, self._symbols, number, self.kind, self.e_machine, self.e_flags)
        if data is None:
            return None
        name = f"{module.name}-symbols-{module.module.vaddr:x}.o"
        return ModuleFile(write(self.scratch, name, data), (), has_types=False)
