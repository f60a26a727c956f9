"""gdb: the commands that open a core with everything that belongs to it, as a script for gdb.

gdb's commands take names of files in different ways: some to the end of the line, some as words with
quotes and backslashes, and that changed between its versions.  So only names without any character that
could mean something stand in a script; others get a link in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kdump_elftool.cache import Cache
from kdump_elftool.errors import KdumpError
from kdump_elftool.gdbside import gdbinit_path
from kdump_elftool.jobs.gdb_session import Session
from kdump_elftool.safe_text import printable

PLAIN = r"/[A-Za-z0-9_./+,:=@%~-]*"
"""A path that every command of every gdb takes as it is."""
_PLAIN = re.compile(PLAIN)
_WORDS = re.compile(r"[A-Za-z0-9_./+,:=@%~$ -]+")
_ADD = "kdump_elftool_add"
_ADDING = (
    "python",
    f"def {_ADD}(command):",
    "    try:",
    "        gdb.execute(command, to_string=True)",
    "    except gdb.error as error:",
    '        gdb.write("warning: %s: %s\\n" % (command.split()[1], error), gdb.STDERR)',
    "end",
)
INDEX_DIRECTORY = "gdb-index"
START = "kd-start"
"""gdbside/session_command.py."""


@dataclass(frozen=True)
class Names:
    """Names of files as words of a script; ``cache`` has the links."""

    cache: Cache | None

    def word(self, path: str) -> str:
        """``path``, or a link to it.  Raises KdumpError where none can be made."""
        whole = os.path.abspath(path)
        if _PLAIN.fullmatch(whole):
            return whole
        digest = hashlib.sha256(os.fsencode(whole)).hexdigest()
        made = self.cache.link(f"name-{digest[:32]}", whole) if self.cache is not None else None
        if made is None or not _PLAIN.fullmatch(made):
            raise KdumpError(
                f"{printable(whole)}: gdb may misread this name, and there is no place for a link to it",
                hint="give the file a name of letters and digits, or set XDG_CACHE_HOME to such a directory",
            )
        return made


def script(session: Session, names: Names, *, backtrace: bool = False) -> tuple[str, ...]:
    """The lines; every one is a command of gdb.  Raises KdumpError."""
    return tuple(_lines(session, names, backtrace))


def _lines(session: Session, names: Names, backtrace: bool) -> Iterator[str]:
    yield "set print thread-events off"
    # gdb knows an index by build id, and would take that of the kernel's own vmlinux for a made one
    has_index = session.vmlinux is not None and not session.is_made
    indexed = has_index and names.cache is not None and _index_directory(names.cache)
    if indexed:
        yield f"set index-cache directory {indexed}"
        yield from _index("on")
    # gdb has something to say about each thread, and shows a frame before it has symbols
    yield _quietly(f"core-file {names.word(session.velf)}")
    if session.before or session.behind:
        yield from _ADDING
    yield from _added(session.before)
    if session.vmlinux is not None:
        offset = f"-o {session.kaslr_offset:#x} " if session.kaslr_offset else ""
        yield f"symbol-file {offset}{names.word(session.vmlinux)}"
    if indexed and session.behind:
        # gdb would write down a module's addresses, and believe them in the next dump of that kernel
        yield from _index("off")
    yield from _added(session.behind)
    if indexed and session.behind:
        # gdb 10 to 12 write that of the vmlinux when it is first needed
        yield from _index("on")
    if session.before or session.behind:
        yield f"python del {_ADD}"
    yield f"source {names.word(gdbinit_path())}"
    yield START
    if backtrace:
        yield "backtrace"


def _quietly(command: str) -> str:
    return f'python gdb.execute("{_checked(command)}", to_string=True)'


def _added(commands: tuple[str, ...]) -> Iterator[str]:
    """Of each file gdb would list the sections, and one that it cannot read is no reason to end."""
    for command in commands:
        yield f'python {_ADD}("{_checked(command)}")'


def _checked(command: str) -> str:
    """A command of plain words.  Raises KdumpError for others."""
    if not _WORDS.fullmatch(command):
        raise KdumpError(f"gdb may misread {printable(command)}", hint="give plain names to files")
    return command


def _index_directory(cache: Cache) -> str | None:
    """Where gdb keeps what it read of a vmlinux's types, for all sessions."""
    directory = cache.directory(INDEX_DIRECTORY)
    return directory if directory is not None and _PLAIN.fullmatch(directory) else None


def _index(state: str) -> Iterator[str]:
    # gdb 12 gave the command another name
    yield "python"
    yield "try:"
    yield f'    gdb.execute("set index-cache enabled {state}")'
    yield "except gdb.error:"
    yield f'    gdb.execute("set index-cache {state}")'
    yield "end"
