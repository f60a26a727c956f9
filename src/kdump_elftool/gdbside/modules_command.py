"""``kd-mods``: symbols of the kernel's modules, from their files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gdb

from kdump_elftool.errors import FormatError
from kdump_elftool.gdbside.command import Command, say, usage, warn
from kdump_elftool.gdbside.lsmod_command import tell_damage
from kdump_elftool.gdbside.release import release_of
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.module_elf import ModuleElf, read_module
from kdump_elftool.plain.module_files import (
    Found,
    Machine,
    ModuleFinder,
    add_command,
    quoted,
    section_addresses,
)
from kdump_elftool.plain.module_index import FileIndex, safe_name, safe_release, usual_directories
from kdump_elftool.plain.module_sections import Section, read_build_id, read_sections
from kdump_elftool.plain.modules import STATES, Module, read_modules
from kdump_elftool.safe_text import printable

_MAGICS = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh")
_SHOWN = 10


class _InMemory(NamedTuple):
    module: Module
    sections: tuple[Section, ...]
    build_id: bytes | None


class KdMods(Command):
    """Load the symbols of the kernel's modules from their files.

    kd-mods [DIRECTORY...]

    For each module its .ko or .ko.debug is looked for by name and build id, below the directories or, without
    any, where distributions put them and beside the vmlinux. It is loaded with the addresses that its
    sections have in the kernel; what is loaded already stays as it is. gdb cannot read compressed files:
    'kdump-elftool gdb --modules DIRECTORY' decompresses them for it."""

    NAME = "kd-mods"
    COMPLETES = gdb.COMPLETE_FILENAME

    def run(self, words: list[str]) -> None:
        """A line a module that is loaded, then what was not."""
        if any(word.startswith("-") for word in words):
            raise usage(self)
        kernel = target()
        listed = read_modules(kernel)
        tell_damage(listed)
        finder = _finder(kernel, [_directory(word) for word in words])
        done: dict[str, list[str]] = {"loaded": [], "loaded before": [], "without a file": []}
        for module in listed.modules:
            name = safe_name(module)
            if name is None:
                warn(f"{printable(module.name)}: no file is looked for by a name like that")
            elif module.state != STATES.index("Unformed"):
                done[_load(kernel, finder, module, name)].append(name)
        for path, why in finder.refused:
            warn(f"{path} is not used: {why}")
        if finder.index.cut is not None:
            warn(f"not all of {printable(finder.index.cut)} was searched: it holds too many files")
        _tell(done, finder)


def _directory(word: str) -> str:
    path = os.path.abspath(os.path.expanduser(word))
    if not os.path.isdir(path):
        raise gdb.GdbError(f"{printable(path)} is no directory")
    return path


def _finder(kernel: GdbTarget, directories: list[str]) -> ModuleFinder:
    if kernel.core is None:
        raise gdb.GdbError("this core is no ELF file: which machine it is of is not known")
    release = safe_release(release_of(kernel))
    if not directories:
        directories = [*usual_directories(release), *_beside_vmlinux()]
    machine = Machine(kernel.word, kernel.order, kernel.core.machine, release)
    return ModuleFinder(machine, FileIndex(directories, release), _open)


def _beside_vmlinux() -> list[str]:
    vmlinux = gdb.current_progspace().filename
    return [] if vmlinux is None else [os.path.dirname(os.path.realpath(vmlinux))]


def _open(path: str) -> tuple[ModuleElf, bytes | None]:
    with open(path, "rb") as file:
        if file.read(8).startswith(_MAGICS):
            raise FormatError(path, "it is compressed, which gdb cannot read")

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        return read_module(path, read), None


def _load(kernel: GdbTarget, finder: ModuleFinder, module: Module, name: str) -> str:
    """What became of it, as :meth:`KdMods.run` counts it."""
    loaded = _InMemory(module, read_sections(kernel, module), read_build_id(kernel, module))
    present = gdb.objfiles()
    build_id = None if loaded.build_id is None else loaded.build_id.hex()
    if build_id is not None and any(each.build_id == build_id for each in present):
        return "loaded before"
    found = finder.find(loaded)
    if found is None:
        return "without a file"
    if any(
        each.filename is not None and os.path.realpath(each.filename) == os.path.realpath(found.path)
        for each in present
    ):
        return "loaded before"
    path = found.path if found.contents is None else _kept(name, found)
    try:
        with _without_index_cache():
            gdb.execute(add_command(quoted(path), section_addresses(found.elf, loaded)), to_string=True)
    except gdb.error as error:
        warn(f"{printable(found.path)}: {error}")
        return "without a file"
    say(f"{name}: {printable(found.path)}")
    return "loaded"


@contextmanager
def _without_index_cache() -> Iterator[None]:
    """gdb's index of a module has the addresses of this dump, and gdb would believe it in the next one."""
    was_on = "\nThe index cache is currently enabled." in gdb.execute("show index-cache", to_string=True)
    if was_on:
        _set_index_cache("off")
    try:
        yield
    finally:
        if was_on:
            _set_index_cache("on")


def _set_index_cache(state: str) -> None:
    # gdb 12 gave the command another name
    try:
        gdb.execute(f"set index-cache enabled {state}")
    except gdb.error:
        gdb.execute(f"set index-cache {state}")


_scratch: list[str] = []


def _kept(name: str, found: Found) -> str:
    """A file with other contents than the one that was found, for as long as gdb runs."""
    if not _scratch:
        _scratch.append(tempfile.mkdtemp(prefix="kdump-elftool-"))
        atexit.register(shutil.rmtree, _scratch[0], ignore_errors=True)
    path = os.path.join(_scratch[0], f"{name}.ko")
    with open(path, "wb") as file:
        file.write(found.contents or b"")
    return path


def _tell(done: dict[str, list[str]], finder: ModuleFinder) -> None:
    total = sum(map(len, done.values()))
    counts = ", ".join(f"{len(names)} {what}" for what, names in done.items() if names)
    say(f"{total} modules: {counts}" if counts else "no modules")
    missing = done["without a file"]
    if not missing:
        return
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    say(f"without a file: {', '.join(missing[:_SHOWN])}{more}")
    if any("compressed" in why for _, why in finder.refused):
        say("hint: 'kdump-elftool gdb --modules DIRECTORY' decompresses modules for gdb")
    elif not finder.index.directories:
        say("hint: kd-mods DIRECTORY says where they are")
    else:
        say(f"searched: {', '.join(map(printable, finder.index.directories))}")
