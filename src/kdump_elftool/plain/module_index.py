"""Files that may be those of modules: by name, below directories or where distributions put them.

Debug packages put ``NAME.ko`` (Debian, Ubuntu) or ``NAME.ko.debug`` (Fedora, SUSE) below
/usr/lib/debug; without them the module itself, perhaps compressed, has the names of functions at least.
Names come out of the dump: only one that can be part of a file name is looked for.  References: kmod
(mod_name equality of - and _); the packages named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from kdump_elftool.plain.modules import Module

_NAME = re.compile(rb"[A-Za-z0-9_-]{1,60}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")
"""__NEW_UTS_LEN is 64 (include/uapi/linux/utsname.h)."""
_FILE = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,60})\.ko(\.debug)?(\.xz|\.zst|\.gz)?(\.debug)?")
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


class FileIndex:
    """Files below directories by the modules they may belong to; looked for when the first one is asked."""

    def __init__(self, directories: Iterable[str], release: str | None) -> None:
        self.directories = tuple(directories)
        self.cut: str | None = None
        """A directory that holds too much to be searched to its end."""
        self._release = release
        self._named: dict[str, list[str]] | None = None

    def candidates(self, name: str, build_id: bytes | None) -> list[str]:
        """Paths, the most promising ones first."""
        if self._named is None:
            self._named, self.cut = index_files(self.directories)
        found = []
        if build_id is not None and len(build_id) > 1:
            digits = build_id.hex()
            below = f".build-id/{digits[:2]}/{digits[2:]}.debug"
            found = [os.path.join(top, below) for top in self.directories]
            found += [os.path.join(top, "usr/lib/debug", below) for top in self.directories]
            found = [path for path in found if os.path.exists(path)]
        named = self._named.get(same_name(name), [])
        # what may have types comes first, and what is named after the release
        return [*found, *sorted(named, key=self._order)][:_MOST_CANDIDATES]

    def _order(self, path: str) -> tuple[bool, bool, str]:
        other = self._release is not None and f"/{self._release}/" not in path
        return other, "debug" not in path, path


def safe_release(release: str | None) -> str | None:
    """The release if it can be part of a file name: it is what a dump says."""
    return release if release is not None and _RELEASE.fullmatch(release) else None


def usual_directories(release: str | None, root: str = "/") -> tuple[str, ...]:
    """Where distributions put the modules of a release, debug information first.

    ``release`` must be fit to be part of a path (:func:`safe_release`).
    """
    if release is None:
        return ()
    return tuple(os.path.join(root, name.format(release=release)) for name in _SYSTEM)


def safe_name(module: Module) -> str | None:
    """The name if it can be part of a file name."""
    return module.name.decode("ascii") if _NAME.fullmatch(module.name) else None


def same_name(name: str) -> str:
    """- and _ are the same in the name of a module."""
    return name.replace("-", "_")


def index_files(directories: Iterable[str]) -> tuple[dict[str, list[str]], str | None]:
    """All module files below these directories by the names of their modules, and :attr:`FileIndex.cut`."""
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
            return found, top
    return found, None


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
