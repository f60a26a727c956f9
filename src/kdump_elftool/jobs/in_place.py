"""tovelf --in-place and --undo: no copy, only new headers and notes behind the memory that is there.

The cost grows with the page tables and not with the memory, none of which is read or written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import Ranges
from kdump_elftool.elf.constants import ELFMAG
from kdump_elftool.elf.layout import CoreLayout, Memory
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.own_notes import OWNER, TYPE_SUMMARY
from kdump_elftool.elf.rewrite import ChangedFile, append_and_switch, take_back
from kdump_elftool.elf.tail import (
    Placed,
    find_remains,
    find_undo,
    read_original,
    tail_layout,
    tail_of,
)
from kdump_elftool.errors import KdumpError, OutputError, UnsupportedError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import layer_around, open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from kdump_elftool.jobs.kernel import Kernel, KernelRequest
from kdump_elftool.jobs.velf import SCHEMA, Velf, plan_velf
from kdump_elftool.memory.extents import Extents, intersect

log = logging.getLogger(__name__)

_MOST_CHANGES = 100
"""Taken back in one run: a file may pretend to have any number."""


@dataclass(frozen=True)
class Undone:
    """What ``--undo`` did: the length the file has again, and how many bytes were cut off."""

    length: int
    removed: int


def open_for_change(target: ChangedFile, intype: str) -> Dump | None:
    """The dump in a file that is to be changed; None when it was converted in place before.

    What addrandoff alone has changed is a dump like any other.  What an interrupted run left behind the old
    end is removed first.
    """
    refuse_layers(target.file, "convert it into another file with -o")
    dump = open_dump(target.file, intype, OpenOptions())
    if dump.format != "elf":
        raise UnsupportedError(
            target.file.path,
            "only an ELF dump can be changed in place",
            hint="convert it into another file with -o",
        )
    if find_undo(target.file) is not None and any(map(_is_velf, dump.notes)):
        return None
    remains = find_remains(target.file)
    if remains is not None:
        log.info("an interrupted run left %d bytes: removed", target.file.size - remains.old_length)
        take_back(target, remains)
        dump = open_dump(target.file, intype, OpenOptions())
    return dump


def _is_velf(note: Note) -> bool:
    """Whether it is the note of a core of virtual memory, as it begins."""
    if (note.name, note.type) != (OWNER, TYPE_SUMMARY):
        return False
    # one that is not held in memory is too long for any other
    return not isinstance(note.desc, bytes) or note.desc.startswith(f'{{"schema":"{SCHEMA}"'.encode())


def refuse_layers(file: ByteSource, hint: str) -> None:
    """Raises UnsupportedError for a file whose dump lies within a compressed or flattened stream."""
    layer = layer_around(file)
    if layer is not None:
        raise UnsupportedError(
            file.path, f"the dump is inside a {layer} stream, where nothing can be changed", hint=hint
        )


def convert_in_place(
    target: ChangedFile,
    dump: Dump,
    request: KernelRequest,
    *,
    procthreads: bool = False,
    kernel: Kernel | None = None,
    about: Mapping[str, object] | None = None,
) -> Velf:
    """Make a velf of the dump itself; ``kernel`` and ``about`` as for plan_velf().

    Raises what plan_velf raises, with nothing changed.
    """
    original = read_original(target.file)

    def lay_out(dump: Dump, memory: Memory, notes: tuple[Note, ...]) -> CoreLayout:
        return tail_layout(original, dump.e_flags, place(memory, dump.memory.extents), notes)

    velf = plan_velf(
        dump,
        request,
        lay_out,
        level="all",
        procthreads=procthreads,
        kernel=kernel,
        about=about,
        answers=procthreads or about is not None,
    )
    append_and_switch(target, original, tail_of(original, velf.layout))
    return velf


def place(memory: Memory, extents: Extents) -> Placed:
    """Mapped memory cut at the borders of the file's extents, with the offset of each piece."""
    pieces = intersect(Ranges(extents.start, extents.end), memory.paddr, memory.size)
    index, _ = extents.locate(pieces.start)
    return Placed(
        vaddr=memory.vaddr[pieces.owner] + (pieces.start - memory.paddr[pieces.owner]),
        paddr=pieces.start,
        size=pieces.size,
        file_offset=extents.position[index] + (pieces.start - extents.start[index]),
        rank=np.asarray(memory.rank[pieces.owner]),
    )


def undo(target: ChangedFile, *, force: bool = False) -> Undone:
    """Take the last change back.  Raises KdumpError when there is nothing to undo."""
    file = target.file
    is_elf = file.read_at(0, len(ELFMAG)) == ELFMAG
    found = find_undo(file) if is_elf else None
    if found is not None and file.size > found.new_length and not force:
        raise OutputError(
            f"{file.path}: {file.size - found.new_length} bytes were put behind it since it was changed",
            hint="--force cuts them off too",
        )
    if found is None and is_elf:
        found = find_remains(file)
    if found is None:
        raise KdumpError(
            f"{file.path} was not changed in place: there is nothing to undo",
            hint="a core made with -o is a file of its own; the dump it was made from is as it was",
        )
    before = file.size
    take_back(target, found)
    return Undone(found.old_length, before - found.old_length)


def undo_all(target: ChangedFile, *, force: bool = False) -> Undone:
    """Restore the file as it was before all changes, byte for byte.  Raises as :func:`undo`.

    An interruption leaves one of the files that there were in between.
    """
    before = target.file.size
    done = undo(target, force=force)
    for _ in range(_MOST_CHANGES):
        if find_undo(target.file) is None:
            return Undone(done.length, before - done.length)
        done = undo(target, force=force)
    raise OutputError(
        f"{target.file.path} was changed more than {_MOST_CHANGES} times, and is not yet what it was",
        hint="run the command again",
    )
