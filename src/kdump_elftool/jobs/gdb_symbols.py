"""gdb: symbols beside those of the vmlinux, which are frames by the kernel's own tables, and its modules.

Without a vmlinux they are all in one that is made of the dump.

They are files in a folder beside the core, with a list of the commands that load them.  That list may
have come from anywhere, together with the core: a line of it that is more than the name of a file and
the addresses of sections counts as none, and everything is made again.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import open_output
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.gdb_script import PLAIN, Names
from kdump_elftool.jobs.gdb_session import Session, vmlinux_key
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.kernel.vmlinux import Vmlinux

log = logging.getLogger(__name__)

SUFFIX = ".symbols"
LIST = "commands.json"
MADE = "vmlinux.dump"
SCHEMA = "kdump-elftool/symbols/1"
_UNUSED = "without a vmlinux files of modules are not used: names and types are the dump's own"
_COMMAND = re.compile(
    rf"add-symbol-file (?P<path>{PLAIN})(?: -s [A-Za-z0-9_.][A-Za-z0-9_.$-]{{0,127}} 0x[0-9a-f]{{1,16}})*"
)
_MOST, _LONGEST, _LARGEST = 4096, 1 << 16, 16 << 20

OpenKernel = Callable[[], tuple[Dump, Kernel]]


@dataclass(frozen=True)
class MoreSymbols:
    """Commands for gdb, before the vmlinux and after it, and what is worth saying about them."""

    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def with_symbols(
    session: Session,
    vmlinux: Vmlinux | None,
    directories: Sequence[str],
    names: Names,
    open_kernel: OpenKernel,
) -> tuple[Session, tuple[str, ...]]:
    """The session with the symbols that belong to its core, made if they are not there yet; warnings.

    ``directories`` are searched for files of modules; without any, the usual ones are.  ``open_kernel`` is
    called only if something has to be made.
    """
    folder = session.velf + SUFFIX
    made_of: list[object] = [*_stamp(session.velf), vmlinux_key(vmlinux)]
    made_of += map(os.path.abspath, directories)
    found = _recorded(os.path.join(folder, LIST), made_of)
    if found is None:
        try:
            found = _make(*open_kernel(), folder, directories, names)
            _record(os.path.join(folder, LIST), made_of, found)
        except (KdumpError, OSError) as error:
            why = error.message if isinstance(error, KdumpError) else error.strerror
            found = MoreSymbols(warnings=(f"gdb does without modules and the kernel's own frames: {why}",))
    return replace(session, before=found.before, behind=found.behind), found.warnings


def has_made_vmlinux(session: Session) -> bool:
    """Whether the names are those of the dump itself."""
    made = os.path.realpath(os.path.join(session.velf + SUFFIX, MADE))
    # what a command names may be a link
    return any(os.path.realpath(command.split()[1]) == made for command in session.before)


def _make(dump: Dump, kernel: Kernel, folder: str, directories: Sequence[str], names: Names) -> MoreSymbols:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if kernel.vmlinux is None:
        try:
            found = _make_vmlinux(dump, kernel, os.path.join(folder, MADE), names)
            return replace(found, warnings=(*found.warnings, _UNUSED)) if directories else found
        except KdumpError as error:
            found = _make_more(dump, kernel, folder, directories, names)
            return replace(found, warnings=(error.message, *found.warnings))
    return _make_more(dump, kernel, folder, directories, names)


def _make_vmlinux(dump: Dump, kernel: Kernel, path: str, names: Names) -> MoreSymbols:
    """One file that has the modules and the frames, too."""
    # a core whose symbols are there already need not load this
    from kdump_elftool.jobs.mkvmlinux import make_vmlinux

    made = make_vmlinux(dump, kernel)
    _write(path, made.data)
    return MoreSymbols((f"add-symbol-file {names.word(path)}",), (), made.missing)


def _make_more(
    dump: Dump, kernel: Kernel, folder: str, directories: Sequence[str], names: Names
) -> MoreSymbols:
    """Beside a vmlinux."""
    from kdump_elftool.jobs.frames import frame_file
    from kdump_elftool.jobs.knowledge import knowledge
    from kdump_elftool.jobs.module_symbols import module_symbols

    known = knowledge(dump, kernel)
    warnings: list[str] = []
    behind: tuple[str, ...] = ()
    with_files: set[str] = set()
    try:
        modules = module_symbols(dump, kernel, directories, folder, known)
        behind = modules.commands_with(names.word)
        with_files = {name for name, _ in modules.files}
        nameless = [missing.name for missing in modules.missing if not missing.named]
        # of what is not known the conversion has told already
        warnings += [text for text in modules.warnings if text not in known.advice]
        warnings += [f"module {each.what}: {each.why}" for each in modules.refused]
        if nameless:
            warnings.append(f"no symbols of {len(nameless)} modules: {', '.join(nameless[:5])}")
    except KdumpError as error:
        warnings.append(f"the modules are not known to gdb: {error.message}")
    frames = frame_file(dump, kernel, known, skip_modules=with_files)
    if frames is None:
        return MoreSymbols((), behind, tuple(warnings))
    warnings += frames.warnings
    path = os.path.join(folder, "frames.o")
    _write(path, frames.data)
    return MoreSymbols((f"add-symbol-file {names.word(path)}",), behind, tuple(warnings))


def _write(path: str, data: bytes) -> None:
    with open_output(path) as out:
        out.write_at(0, data)
        out.finish(len(data))
        out.commit()


def _record(path: str, made_of: list[object], found: MoreSymbols) -> None:
    document = {"schema": SCHEMA, "made_of": made_of, "before": found.before, "behind": found.behind}
    _write(path, json.dumps(document).encode())


def _recorded(path: str, made_of: list[object]) -> MoreSymbols | None:
    """What an earlier run made of the same; None when there is nothing that can be used."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    lists = [document.get(name) for name in ("before", "behind")]
    if document.get("made_of") != made_of or not all(map(_usable, lists)):
        log.info("symbols: %s is of something else", path)
        return None
    return MoreSymbols(*(tuple(each) for each in lists if each is not None))


def _usable(commands: object) -> bool:
    """Whether these are commands that load files which are there."""
    if not isinstance(commands, list) or len(commands) > _MOST:
        return False
    for command in commands:
        found = _COMMAND.fullmatch(command) if isinstance(command, str) and len(command) < _LONGEST else None
        if found is None or not os.path.isfile(found["path"]):
            return False
    return True


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
