"""The file of each module: found by its name, proven by its build id, its sections given their addresses.

Debug packages put ``NAME.ko`` (Debian, Ubuntu) or ``NAME.ko.debug`` (Fedora, SUSE) below
/usr/lib/debug; without them the module itself, perhaps compressed, has the names of functions at least.
A file that is compressed is written out for gdb, which reads none.

Names come out of the dump: only one that can be part of a file name is looked for.  References: kmod
(mod_name equality of - and _); gABI, section headers; the packages named.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kdump_elftool.codecs.whole import Held, decompressed
from kdump_elftool.elf.module import ModuleElf, read_module, without_addresses
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.jobs.modules import LoadedModule
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
SAFE_SECTION = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,127}")
_FILE = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,60})\.ko(\.debug)?(\.xz|\.zst|\.gz)?(\.debug)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SYSTEM = (
    "usr/lib/debug/lib/modules/{release}",
    "usr/lib/debug/usr/lib/modules/{release}",
    "lib/modules/{release}",
    "usr/lib/modules/{release}",
)
_NOT_ENTERED = frozenset({"build", "source", ".git"})
"""In /lib/modules/RELEASE these lead into the kernel's sources."""
_MOST_ENTRIES = 300_000
_MOST_CANDIDATES = 16
_LARGEST_FILE, _LARGEST_COPY = 1 << 30, 256 << 20
_PERCPU = ".data..percpu"
_NOWHERE_64, _NOWHERE_32 = 1 << 60, 0x1000
"""Where sections go that are not in memory: left alone gdb puts them at 0, and would name a call of NULL
after the first function in them.  No kernel runs at these."""

Keep = Callable[[str, bytes], str]
"""Keeps contents in a file for gdb, by a name for it; returns its path.  Raises OutputError."""


@dataclass(frozen=True)
class ModuleFile:
    """A module's file; ``sections`` are its section names with the addresses that gdb is to be given."""

    path: str
    sections: tuple[tuple[str, int], ...]
    has_types: bool


@dataclass
class ModuleFinder:
    """Looks for the files of one kernel's modules; what was refused is in ``refused``, (path, reason)."""

    kind: ElfKind
    e_machine: int
    release: str | None
    keep: Keep
    directories: tuple[str, ...]
    refused: list[tuple[str, str]] = field(default_factory=list)
    _index: dict[str, list[str]] | None = None

    def find(self, loaded: LoadedModule) -> ModuleFile | None:
        """The best file of a module: one with types before one without; None where there is none."""
        name = loaded.module.name.decode("latin-1")
        if not SAFE_NAME.fullmatch(name):
            return None
        refused: list[tuple[str, str]] = []
        best: tuple[str, ModuleElf, bytes | None] | None = None
        for path in self._candidates(name, loaded.build_id):
            opened = self._open(path, loaded, refused)
            if opened is not None and (best is None or opened[1].has_types):
                best = opened
                if opened[1].has_types:
                    break
        if best is None:
            self.refused += refused
            return None
        path, elf, contents = best
        if contents is not None:
            path = self.keep(f"{name}-{(elf.build_id or b'').hex()[:16]}.ko", contents)
        log.info("module %s: %s", name, printable(path))
        return ModuleFile(path, addresses(elf, loaded), elf.has_types)

    def _candidates(self, name: str, build_id: bytes | None) -> list[str]:
        if self._index is None:
            self._index = index_files(self.directories)
        found = []
        if build_id is not None and len(build_id) > 1:
            digits = build_id.hex()
            below = f".build-id/{digits[:2]}/{digits[2:]}.debug"
            found = [os.path.join(top, below) for top in self.directories]
            found += [os.path.join(top, "usr/lib/debug", below) for top in self.directories]
            found = [path for path in found if os.path.exists(path)]
        named = self._index.get(same_name(name), [])
        # what may have types comes first, and what is named after the release
        return [*found, *sorted(named, key=self._order)][:_MOST_CANDIDATES]

    def _order(self, path: str) -> tuple[bool, bool, str]:
        other = self.release is not None and f"/{self.release}/" not in path
        return other, "debug" not in path, path

    def _open(
        self, path: str, loaded: LoadedModule, refused: list[tuple[str, str]]
    ) -> tuple[str, ModuleElf, bytes | None] | None:
        """(path, what is in it, its contents if gdb cannot read the file as it is)."""
        if not fits_command(path):
            refused.append((printable(path), "gdb cannot be told a name that is no plain text"))
            return None
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return None
            with InputFile.open(path) as file:
                contents = decompressed(file, _LARGEST_FILE)
                source = file if contents is None else Held(file.path, contents)
                elf = read_module(source)
                why_not = self._why_not(elf, loaded)
                if why_not is None and elf.has_addresses and elf.has_types and source.size <= _LARGEST_COPY:
                    contents = without_addresses(source)
        except (OSError, KdumpError) as error:
            why_not = error.message if isinstance(error, KdumpError) else str(error.strerror)
        if why_not is not None:
            log.info("module %s: %s is not used: %s", loaded.name, printable(path), why_not)
            refused.append((printable(path), why_not))
            return None
        return path, elf, contents

    def _why_not(self, elf: ModuleElf, loaded: LoadedModule) -> str | None:
        """Why this is not the file of that module; None when it must be."""
        if elf.kind != self.kind or elf.e_machine != self.e_machine:
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
        if elf.release is None or elf.release != self.release:
            return f"the dump has no build id of the module, and the file is of {elf.release or 'no release'}"
        there = {section.name for section in elf.sections}
        missing = [section.name for section in loaded.sections if section.name.decode("latin-1") not in there]
        return f"it has no section {printable(missing[0])}" if missing else None


def usual_directories(release: str | None, root: str = "/") -> tuple[str, ...]:
    """Where distributions put the modules of a release, debug information first.

    ``release`` must be fit to be part of a path (``jobs.debug_files.safe_release``).
    """
    if release is None:
        return ()
    return tuple(os.path.join(root, name.format(release=release)) for name in _SYSTEM)


def fits_command(path: str) -> bool:
    """Whether a path can be part of a gdb command."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not _CONTROL.search(path)


def same_name(name: str) -> str:
    """- and _ are the same in the name of a module."""
    return name.replace("-", "_")


def index_files(directories: Iterable[str]) -> dict[str, list[str]]:
    """All module files below these directories by the names of their modules."""
    found: dict[str, list[str]] = {}
    left = _MOST_ENTRIES
    seen: set[tuple[int, int]] = set()
    for top in directories:
        for folder, folders, files in os.walk(top, followlinks=True):
            left -= len(folders) + len(files)
            if left < 0 or not _is_new(folder, seen):
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if name not in _NOT_ENTERED)
            for name in files:
                match = _FILE.fullmatch(name)
                if match:
                    found.setdefault(same_name(match["name"]), []).append(os.path.join(folder, name))
        if left < 0:
            log.warning("not all of %s was searched for modules: it holds too many files", printable(top))
            break
    return found


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """False for a directory that a link has led to before."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def addresses(elf: ModuleElf, loaded: LoadedModule) -> tuple[tuple[str, int], ...]:
    """An address for each section of the file that would be in memory: where it is, or nowhere."""
    module = loaded.module
    live: Mapping[str, int] = {
        section.name.decode("latin-1"): section.vaddr for section in reversed(loaded.sections)
    }
    nowhere = _NOWHERE_64 if elf.kind.bits == 64 else _NOWHERE_32
    found: dict[str, int] = {}
    for section in elf.sections:
        name, size = section.name, section.size
        if name in found or not SAFE_SECTION.fullmatch(name):
            continue
        vaddr = module.percpu if name == _PERCPU else live.get(name, 0)
        if not vaddr or (name != _PERCPU and module.region_of(vaddr, size) is None):
            vaddr = nowhere = -(-nowhere // section.align) * section.align
            nowhere += size
        found[name] = vaddr
    return tuple(found.items())
