"""ELF notes: parse a PT_NOTE range, encode a list of notes.

Core file notes align name and descriptor to 4 bytes in both classes (what the kernel, QEMU and
gdb do, whatever the 64-bit gABI says).  Descriptors above :data:`HELD_IN_MEMORY` bytes (device
dumps, NT_VMCOREDD, can be hundreds of MB) stay in the file as a :class:`FileSlice`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import align_up
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import ByteSource, FileSlice, readable_end

HELD_IN_MEMORY = 1 << 20
MAX_NOTES = 1 << 18
MOST_HELD = 256 << 20
"""Bytes of descriptors in memory: the registers of 8,192 CPUs are a few megabytes."""
_MAX_NAME = 256
_NHDR_SIZE = 12


@dataclass(frozen=True)
class Note:
    """One note: owner name without its NUL, numeric type, descriptor."""

    name: bytes
    type: int
    desc: bytes | FileSlice

    @property
    def size(self) -> int:
        """Bytes of the descriptor."""
        return self.desc.size if isinstance(self.desc, FileSlice) else len(self.desc)


@dataclass(frozen=True)
class NoteRange:
    """What a PT_NOTE range held; ``bad_offset`` is where reading had to stop, or None."""

    notes: tuple[Note, ...]
    bad_offset: int | None


def read_notes(
    file: ByteSource, kind: ElfKind, offset: int, size: int, align: int = 4, most: int = MAX_NOTES
) -> NoteRange:
    """At most ``most`` notes in ``file[offset:offset+size]``; stops at the first impossible header."""
    notes: list[Note] = []
    end = min(offset + size, readable_end(file, offset))
    position, held = offset, 0
    while position + _NHDR_SIZE <= end and len(notes) < most and held <= MOST_HELD:
        header = np.frombuffer(file.read_at(position, _NHDR_SIZE), dtype=kind.nhdr)[0]
        namesz, descsz, n_type = (int(header[field]) for field in ("n_namesz", "n_descsz", "n_type"))
        if namesz == 0 and descsz == 0:
            break  # the padding behind /proc/vmcore's merged notes
        desc_at = position + align_up(_NHDR_SIZE + namesz, align)
        if namesz > _MAX_NAME or desc_at + descsz > end:
            return NoteRange(tuple(notes), position)
        name = file.read_at(position + _NHDR_SIZE, namesz).split(b"\0", 1)[0]
        desc = file.read_at(desc_at, descsz) if descsz <= HELD_IN_MEMORY else FileSlice(file, desc_at, descsz)
        held += len(desc) if isinstance(desc, bytes) else 0
        notes.append(Note(name, n_type, desc))
        position = desc_at + align_up(descsz, align)
    truncated = end < offset + size or len(notes) == most or held > MOST_HELD
    return NoteRange(tuple(notes), position if truncated else None)


def encode_notes(notes: tuple[Note, ...], kind: ElfKind) -> list[bytes | FileSlice]:
    """The notes as consecutive chunks of a PT_NOTE, large descriptors still as file slices."""
    chunks: list[bytes | FileSlice] = []
    pending = bytearray()
    for note in notes:
        name = note.name + b"\0"
        header = np.array([(len(name), note.size, note.type)], dtype=kind.nhdr)
        pending += header.tobytes() + _padded(name)
        if isinstance(note.desc, FileSlice):
            chunks += [bytes(pending), note.desc]
            pending = bytearray(_padding(note.size))
        else:
            pending += _padded(note.desc)
    chunks.append(bytes(pending))
    return chunks


def chunk_size(chunk: bytes | FileSlice) -> int:
    """Bytes of one chunk."""
    return chunk.size if isinstance(chunk, FileSlice) else len(chunk)


def _padding(size: int) -> int:
    return align_up(size, 4) - size


def _padded(data: bytes) -> bytes:
    return data + bytes(_padding(len(data)))
