"""gdb: which program it is, and how it is started.

A distribution's gdb reads the cores of its own machine alone; Debian and others have gdb-multiarch for
the rest, elsewhere gdb is built for all of them.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from typing import NoReturn

from kdump_elftool.arch.base import Architecture
from kdump_elftool.errors import KdumpError
from kdump_elftool.safe_text import printable

_READS = {
    "x86_64": ("x86_64", "i386"),
    "i686": ("i386",),
    "aarch64": ("arm64", "arm"),
    "armv7l": ("arm",),
}
"""By what uname calls a machine: whose cores its own gdb reads."""
_GDB_NAMES = {"x86_64": "i386:x86-64", "arm64": "aarch64"}
GDB, MULTIARCH = "gdb", "gdb-multiarch"


def check_named(named: str | None) -> None:
    """Raises KdumpError when there is no gdb of that name, or none at all: before the long work begins."""
    if named is not None:
        if shutil.which(named) is None:
            raise KdumpError(f"there is no program {printable(named)}", hint="--gdb takes gdb's name or path")
    elif shutil.which(GDB) is None and shutil.which(MULTIARCH) is None:
        raise KdumpError("there is no gdb", hint="install gdb (10 or newer), or name it with --gdb")


def find_gdb(named: str | None, arch: Architecture) -> str:
    """The path of gdb: the one that the user named, or one that reads this machine's cores.

    Raises KdumpError.
    """
    check_named(named)
    found = shutil.which(named) if named is not None else None
    if found is not None:
        return found
    own, multiarch = shutil.which(GDB), shutil.which(MULTIARCH)
    if arch.name in _READS.get(platform.machine(), ()):
        chosen = own or multiarch
    else:
        chosen = multiarch or (own if own is not None and _reads(own, arch) else None)
    if chosen is None:
        raise KdumpError(
            f"gdb on this machine does not read cores of {arch.name}",
            hint="install gdb-multiarch, or name another one with --gdb",
        )
    return chosen


def start(program: str, script: tuple[str, ...], more: list[str]) -> NoReturn:
    """Become gdb, which then has the terminal, its signals and its exit code for itself.

    Raises KdumpError when that is not possible.
    """
    argv = [program, "-q", "-x", _readable(script), *more]
    # the interpreter ignores these two, and what is ignored stays so
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, argv)
    except OSError as error:
        raise KdumpError(f"cannot start {printable(program)}: {error.strerror}") from None


def run(program: str, script: tuple[str, ...], more: list[str]) -> int:
    """Let gdb do it, without a terminal and without the user's own gdbinit; its exit code."""
    name = _readable(script)
    argv = [program, "-nx", "-q", "-batch", "-x", name, *more]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, check=False, close_fds=False, env=_plain_environment()
        )
    except OSError as error:
        raise KdumpError(f"cannot start {printable(program)}: {error.strerror}") from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _readable(script: tuple[str, ...]) -> str:
    """A name by which a process with our descriptors reads the script; nothing has to be removed."""
    fd = os.memfd_create("kdump-elftool.gdb", 0)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write("".join(f"{line}\n" for line in script).encode())
    os.set_inheritable(fd, True)
    return f"/proc/self/fd/{fd}"


def _plain_environment() -> dict[str, str]:
    """Without servers to ask: whoever is not asked whether to download must not have to wait for it."""
    return {name: value for name, value in os.environ.items() if name != "DEBUGINFOD_URLS"}


def _reads(program: str, arch: Architecture) -> bool:
    """Whether this gdb knows the machine at all."""
    asked = f"set architecture {_GDB_NAMES.get(arch.name, arch.name)}"
    try:
        done = subprocess.run(
            [program, "-nx", "-q", "-batch", "-ex", asked],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"Undefined item" not in done.stderr
