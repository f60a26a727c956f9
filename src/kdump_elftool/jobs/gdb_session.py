"""gdb: what a debugging session of a dump rests on, and whether an earlier conversion can be used again.

A core that was made for a session says in its own note which files it was made of, and how (docs/notes.md):
only when all of that is as it was, is it taken for the dump.  The files are known by inode, size and
time of change, so nothing of a large dump has to be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdump_elftool.arch.base import Architecture
from kdump_elftool.cache import Cache
from kdump_elftool.elf.constants import ELFMAG
from kdump_elftool.elf.own_notes import OWNER, TYPE_SUMMARY, producer
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import ByteSource, InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.debug_files import remembered_name
from kdump_elftool.jobs.kernel import KernelRequest, architecture, check_vmlinux, named_vmlinux
from kdump_elftool.kernel.extra import laid_over
from kdump_elftool.kernel.identity import dump_vmcoreinfo
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.vmlinux import Vmlinux

log = logging.getLogger(__name__)

SCHEMA = "kdump-elftool/velf/1"
_LONGEST_NOTE = 16 << 20
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class MadeOf:
    """The files that a core was made of, as (inode, size, time of change in ns), and the options' digest."""

    files: tuple[tuple[int, int, int], ...]
    options: str

    @classmethod
    def of(cls, files: Sequence[InputFile], options: Mapping[str, object]) -> MadeOf:
        """``options`` are what decides about the result besides the files."""
        text = json.dumps([producer(), sorted(options.items())], default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return cls(tuple(map(_stamp, files)), digest[:32])

    def as_json(self, vmlinux: Vmlinux | None) -> dict[str, object]:
        """For the note."""
        return {
            "files": [list(stamp) for stamp in self.files],
            "options": self.options,
            "vmlinux": vmlinux_key(vmlinux),
        }


@dataclass(frozen=True)
class Session:
    """A core that is ready, and the symbols that go with it.

    ``vmlinux`` is None without symbols; ``kaslr_offset`` is what gdb has to add to them, if that is known.
    ``before`` and ``behind`` are commands for gdb that load more symbols, before the vmlinux and after it:
    each is one line, its file names plain.  ``is_made``: mkvmlinux wrote the vmlinux.
    """

    velf: str
    arch: Architecture
    vmlinux: str | None
    kaslr_offset: int | None
    partial: bool
    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    is_made: bool = False


@dataclass(frozen=True)
class Noted:
    """What the summary note of a core says, each value checked when it is asked for."""

    document: Mapping[str, Any]

    @property
    def kaslr_offset(self) -> int | None:
        """How far the kernel was moved, by the facts that were written down."""
        facts = self.document.get("facts")
        for fact in facts if isinstance(facts, list) else []:
            if isinstance(fact, dict) and fact.get("name") == "kaslr_offset":
                return _hexadecimal(fact.get("value"))
        return None

    @property
    def partial(self) -> bool:
        """Whether something was lost."""
        coverage = self.document.get("coverage")
        return bool(coverage.get("lost_ranges")) if isinstance(coverage, dict) else False

    @property
    def made_of(self) -> dict[str, Any] | None:
        """As :meth:`MadeOf.as_json` wrote it; None for a core that was not made for a session."""
        found = self.document.get("made_of")
        return found if isinstance(found, dict) else None


def vmlinux_key(vmlinux: Vmlinux | None) -> str | None:
    """What tells one vmlinux from another."""
    if vmlinux is None:
        return None
    if vmlinux.build_id:
        return vmlinux.build_id.hex()
    return f"{vmlinux.release} {vmlinux.file.size}"


def noted(file: ByteSource) -> tuple[Dump, Noted] | None:
    """An ELF file as a dump, with its summary note; None when no velf of ours is in it."""
    if file.read_at(0, len(ELFMAG)) != ELFMAG:
        return None
    try:
        dump = open_dump(file)
    except KdumpError as error:
        log.info("%s is no core to go on with: %s", file.path, error.message)
        return None
    documents = [
        note.desc
        for note in dump.notes
        if (note.name, note.type) == (OWNER, TYPE_SUMMARY) and isinstance(note.desc, bytes)
    ]
    document = _decoded(documents[-1]) if documents else None  # one made in place may have an older one
    return None if document is None else (dump, Noted(document))


def stale(known: Noted, made_of: MadeOf) -> str | None:
    """Why a core is not what would be made now; None when it is, but for the vmlinux."""
    was, now = known.made_of or {}, made_of.as_json(None)
    if was.get("files") != now["files"]:
        return "the dump is another one now"
    return "it was made in another way" if was.get("options") != now["options"] else None


def made_without(known: Noted, vmlinux: Vmlinux | None) -> str | None:
    """Why another vmlinux than there was makes a core worth making again; None when it does not.

    One that is not found any more was good enough for the core as it is.
    """
    was = (known.made_of or {}).get("vmlinux")
    if vmlinux is None or was == vmlinux_key(vmlinux):
        return None
    return "it was made with another vmlinux" if was else "it was made without a vmlinux"


def vmlinux_of(dump: Dump, request: KernelRequest) -> tuple[Vmlinux | None, list[str]]:
    """The vmlinux of a core that is there already, and warnings.  Raises IdentityError."""
    arch = architecture(dump)
    info = _info(dump, request)
    named = named_vmlinux(request, info, arch)
    if named is not None:
        return named, check_vmlinux(info, named, arch, request.force)
    return (request.locate(info, arch) if request.locate is not None else None), []


def remember(cache: Cache | None, vmlinux: Vmlinux | None) -> None:
    """So that a vmlinux that was named once is found by its build id the next time."""
    if cache is not None and vmlinux is not None and vmlinux.build_id:
        cache.link(remembered_name(vmlinux.build_id), real_path(vmlinux.file))


def opened_session(
    velf: InputFile, dump: Dump, request: KernelRequest, vmlinux: Vmlinux | None, known: Noted
) -> Session:
    """With a core that is there already."""
    path = None if vmlinux is None else real_path(vmlinux.file)
    arch, offset = architecture(dump), known.kaslr_offset
    linked = None if vmlinux is None else vmlinux.symbols.get("_stext")
    moved = _info(dump, request).symbol("_stext")
    if offset is None and linked is not None and moved is not None:
        # made without a vmlinux, of a kernel that has no KERNELOFFSET
        offset = (moved - linked) & (_MASK >> (64 - arch.bits))
    is_made = vmlinux is not None and vmlinux.is_made
    return Session(real_path(velf), arch, path, offset, known.partial, is_made=is_made)


def _info(dump: Dump, request: KernelRequest) -> VmcoreInfo:
    return laid_over(dump_vmcoreinfo(dump) or VmcoreInfo({}), request.extra)


def real_path(file: ByteSource) -> str:
    """The name of an open file as it is, where its ``path`` is for people to read."""
    if isinstance(file, InputFile):
        try:
            return os.readlink(f"/proc/self/fd/{file.fd}")
        except OSError:
            pass
    return os.path.abspath(file.path)


def _stamp(file: InputFile) -> tuple[int, int, int]:
    status = os.fstat(file.fd)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _decoded(desc: bytes) -> Mapping[str, Any] | None:
    if len(desc) > _LONGEST_NOTE:
        return None
    try:
        found = json.loads(desc)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _hexadecimal(value: object) -> int | None:
    try:
        found = int(value, 16) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and 0 <= found <= _MASK else None
