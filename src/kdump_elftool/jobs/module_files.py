"""The file of each module (``plain.module_files``), as a file that gdb reads.

gdb reads no compressed one: that is written out for it, and so is one whose sections have addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from kdump_elftool.codecs.whole import Held, decompressed
from kdump_elftool.files import InputFile
from kdump_elftool.jobs.modules import LoadedModule
from kdump_elftool.plain.module_elf import ModuleElf, read_module
from kdump_elftool.plain.module_files import ModuleFinder, section_addresses
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

_LARGEST_FILE = 1 << 30

Keep = Callable[[str, bytes], str]
"""Keeps contents in a file for gdb, by a name for it; returns its path.  Raises OutputError."""


@dataclass(frozen=True)
class ModuleFile:
    """A module's file; ``sections`` are its section names with the addresses that gdb is to be given."""

    path: str
    sections: tuple[tuple[str, int], ...]
    has_types: bool


def find_file(finder: ModuleFinder, loaded: LoadedModule, keep: Keep) -> ModuleFile | None:
    """The best file of a module; None where there is none.  Raises OutputError."""
    refused = len(finder.refused)
    found = finder.find(loaded)
    for path, why in finder.refused[refused:]:
        log.info("module %s: %s is not used: %s", loaded.name, path, why)
    if found is None:
        return None
    path, elf, contents = found
    if contents is not None:
        path = keep(f"{loaded.name}-{(elf.build_id or b'').hex()[:16]}.ko", contents)
    log.info("module %s: %s", loaded.name, printable(path))
    return ModuleFile(path, section_addresses(elf, loaded), elf.has_types)


def open_module(path: str) -> tuple[ModuleElf, bytes | None]:
    """What is in a file, compressed or not, and its contents if it was.  Raises OSError, KdumpError."""
    with InputFile.open(path) as file:
        contents = decompressed(file, _LARGEST_FILE)
        source = file if contents is None else Held(file.path, contents)
        return read_module(source.path, source.read_at), contents
