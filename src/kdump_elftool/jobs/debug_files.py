"""Finding a dump's vmlinux: in a directory, where distributions put debug kernels, by debuginfod.

The build id decides, else the release; a file that cannot be shown to be the dump's kernel is not used.
The release comes out of the dump, so only one that can be part of a file name becomes part of one.
References: the debug packages of Debian, Ubuntu, Fedora, SUSE and Arch; gdb's manual, Separate Debug Files.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from kdump_elftool.arch.base import Architecture
from kdump_elftool.errors import IdentityError, KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.identity import check_same_kernel, same_kernel_by
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.vmlinux import Vmlinux, read_vmlinux
from kdump_elftool.plain.module_index import safe_release
from kdump_elftool.progress import Progress, no_progress
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

_SYSTEM = (
    "usr/lib/debug/boot/vmlinux-{release}",
    "usr/lib/debug/boot/vmlinux-{release}.debug",
    "usr/lib/debug/lib/modules/{release}/vmlinux",
    "usr/lib/debug/lib/modules/{release}/vmlinux.debug",
    "usr/lib/debug/usr/lib/modules/{release}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{release}/vmlinux.debug",
    "usr/lib/debug/.build-id/{id_start}/{id_rest}.debug",
    "boot/vmlinux-{release}",
    "lib/modules/{release}/build/vmlinux",
    "lib/modules/{release}/vmlinux",
    "usr/lib/modules/{release}/build/vmlinux",
    "usr/lib/modules/{release}/vmlinux",
)
_DIRECTORY = (
    "vmlinux",
    "vmlinux.debug",
    "vmlinux-{release}",
    "vmlinux-{release}.debug",
    ".build-id/{id_start}/{id_rest}.debug",
    "{build_id}/debuginfo",
    "boot/vmlinux",
    *_SYSTEM,
)
_MOST_LISTED = 64
_SHOWN = 3


@dataclass(frozen=True)
class Search:
    """Where to look for a vmlinux that was not named.

    What is found stays open until ``stack`` is closed, and is added to ``files``.  ``remembered`` is a
    directory of links by build id (:func:`remembered_name`).
    """

    stack: ExitStack
    environ: Mapping[str, str]
    files: list[InputFile]
    progress: Progress = no_progress
    root: str = "/"
    remembered: str | None = None

    def locate(self, info: VmcoreInfo, arch: Architecture) -> Vmlinux | None:
        """The vmlinux of the kernel that ``info`` describes; None when it is not to be found."""
        places = [os.path.join(self.root, name) for name in _names(_SYSTEM, info)]
        if self.remembered is not None and info.build_id:
            places.insert(0, os.path.join(self.remembered, remembered_name(info.build_id)))
        found = self._best(places, info, arch)
        if found is None or not found.has_types:
            found = self._by_debuginfod(info, arch) or found
        if found is None:
            log.info("vmlinux: none of this kernel in the usual places")
        return found

    def _by_debuginfod(self, info: VmcoreInfo, arch: Architecture) -> Vmlinux | None:
        """What debuginfod's client has fetched already, else what the servers have."""
        build_id = info.build_id
        try:
            from kdump_elftool.jobs import debuginfod
        except ImportError:  # a crash kernel's initramfs goes without HTTP
            return None
        if build_id is None:
            return None
        found = self._best(debuginfod.cached_names(build_id, self.environ), info, arch)
        if found is not None:
            return found
        path = debuginfod.download(build_id, self.environ, self.progress)
        return self._best([path], info, arch) if path else None

    def from_debuginfod(self, info: VmcoreInfo, arch: Architecture) -> Vmlinux:
        """The vmlinux that debuginfod has.  Raises IdentityError when there is none to be had."""
        found = self._by_debuginfod(info, arch)
        if found is not None:
            return found
        if info.build_id is None:
            why, hint = "the dump does not say its kernel's build id", "name the vmlinux with --from-vmlinux"
        elif not self.environ.get("DEBUGINFOD_URLS"):
            why = "debuginfod has not fetched it before, and DEBUGINFOD_URLS names no server"
            hint = "set DEBUGINFOD_URLS to your distribution's server"
        else:
            why, hint = "the servers of DEBUGINFOD_URLS do not have it", "--verbose says what they answered"
        build_id = info.build_id.hex() if info.build_id else "unknown"
        raise IdentityError("BUILD-ID", f"no vmlinux of build id {build_id}: {why}", hint=hint)

    def in_directory(self, directory: str, info: VmcoreInfo, arch: Architecture) -> Vmlinux:
        """The vmlinux in a directory that the user named.  Raises IdentityError when it is not there."""
        listed = [name for name in _listing(directory) if name.startswith("vmlinux")]
        names = dict.fromkeys([*_names(_DIRECTORY, info), *listed[:_MOST_LISTED]])
        refused: list[str] = []
        found = self._best([os.path.join(directory, name) for name in names], info, arch, refused)
        if found is not None:
            return found
        build_id, release = info.build_id, info.text("OSRELEASE")
        kernel = f"build id {build_id.hex()}" if build_id else f"release {printable(release or 'unknown')}"
        raise IdentityError(
            "BUILD-ID",
            f"no vmlinux of this dump's kernel ({kernel}) in {printable(directory)}"
            + "".join(f"; {why}" for why in refused[:_SHOWN]),
            hint="name the file itself with -m, or the directory that holds it under one of its usual names",
        )

    def _best(
        self,
        paths: Iterable[str],
        info: VmcoreInfo,
        arch: Architecture,
        refused: list[str] | None = None,
    ) -> Vmlinux | None:
        """The first file that is this kernel's and has types, else the first without; ``refused`` the others.

        The user named the place if ``refused`` is given: then it is enough that nothing contradicts.
        """
        without: Vmlinux | None = None
        for path in paths:
            found = _open(path)
            if found is None:
                continue
            file, vmlinux = found
            why_not, why = check_same_kernel(info, vmlinux, arch), same_kernel_by(info, vmlinux)
            if why_not is not None or (why is None and refused is None):
                log.info("vmlinux: %s is not used: %s", file.path, why_not or "it does not say what it is")
                if refused is not None:
                    refused.append(f"{file.path}: {why_not}")
                file.close()
                continue
            self.stack.callback(file.close)
            self.files.append(file)
            log.info("vmlinux: %s, by its %s", file.path, why or "place")
            if vmlinux.has_types:
                return vmlinux
            without = without or vmlinux
        return without


def where_lines_are(build_id: bytes | None) -> str:
    """One line on how to get what no dump holds."""
    lack = "line numbers are not in a dump: gdb shows symbol+offset"
    if build_id is None:
        return (
            f"{lack}; they are in the vmlinux of the kernel's debug package (-m, or mkvmlinux --from-vmlinux)"
        )
    return (
        f"{lack}; the vmlinux that has them is in the kernel's debug package, or comes from a server by "
        f"DEBUGINFOD_URLS=URL debuginfod-find debuginfo {build_id.hex()}"
    )


def remembered_name(build_id: bytes) -> str:
    """How a link to the vmlinux of that build is called."""
    return f"vmlinux-{build_id.hex()[:128]}"


def _names(patterns: Iterable[str], info: VmcoreInfo) -> Iterator[str]:
    """The patterns for which everything is known."""
    known = {}
    release, build_id = safe_release(info.text("OSRELEASE")), info.build_id
    if release is not None:
        known["release"] = release
    if build_id is not None and len(build_id) > 1:
        digits = build_id.hex()
        known |= {"build_id": digits, "id_start": digits[:2], "id_rest": digits[2:]}
    for pattern in patterns:
        try:
            yield pattern.format_map(known)
        except KeyError:
            continue


def _listing(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise KdumpError(f"cannot read {printable(directory)}: {error.strerror}") from None


def _open(path: str) -> tuple[InputFile, Vmlinux] | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        file = InputFile.open(path)
    except (OSError, ValueError, KdumpError):
        return None
    try:
        return file, read_vmlinux(file)
    except KdumpError as error:
        log.info("vmlinux: %s", error.message)
        file.close()
        return None
