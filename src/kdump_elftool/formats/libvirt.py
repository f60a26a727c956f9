"""Saved guests of libvirt (virsh save, dump without --memory-only): a QEMU stream behind a header.

The header is 92 bytes: magic, version, length of the domain's description and padding behind it,
whether the guest ran, by which program the stream is compressed, and words that don't matter here, in
the byte order of the host.  What the stream itself begins with tells the program, too; that of the format
``sparse`` (libvirt 11) has the capability mapped-ram.  Source: libvirt's src/qemu/qemu_saveimage.h,
qemu_saveimage.c (``virQEMUSaveDataWrite``) and qemu_saveimage_format.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import Ranges
from kdump_elftool.errors import CorruptDumpError, UnsupportedError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.base import Layer, OpenOptions

MAGIC, PARTIAL = b"LibvirtQemudSave", b"LibvirtQemudPart"
HEADER_SIZE = 92
VERSION = 2


@dataclass(frozen=True)
class Behind:
    """What lies behind the first ``skip`` bytes of a file, as a ByteSource."""

    file: ByteSource
    skip: int
    warnings: tuple[str, ...]

    @property
    def path(self) -> str:
        """The file's."""
        return self.file.path

    @property
    def size(self) -> int:
        """Bytes behind the header."""
        return self.file.size - self.skip

    @property
    def missing(self) -> Ranges:
        """Lost bytes of the file, as offsets here."""
        gone, skip = self.file.missing, np.uint64(self.skip)
        start, end = np.maximum(gone.start, skip) - skip, np.maximum(gone.end, skip) - skip
        return Ranges(start[end > start], end[end > start])

    def read_at(self, offset: int, size: int, /) -> bytes:
        """As the file's."""
        return self.file.read_at(self.skip + offset, size)

    def read_into(self, offset: int, view: memoryview, /) -> None:
        """As the file's."""
        self.file.read_into(self.skip + offset, view)


def probe(head: bytes) -> bool:
    """Whether a file begins like a saved guest, whole or not."""
    return head.startswith((MAGIC, PARTIAL))


def open_libvirt(file: ByteSource, options: OpenOptions) -> ByteSource:
    """The stream behind the header.  Raises UnsupportedError, CorruptDumpError."""
    del options
    head = file.read_at(0, HEADER_SIZE)
    if len(head) < HEADER_SIZE:
        raise CorruptDumpError(file.path, "this libvirt saved guest ends within its header")
    order = next((order for order in "<>" if struct.unpack_from(f"{order}I", head, 16)[0] == VERSION), None)
    if order is None:
        raise UnsupportedError(
            file.path,
            "a libvirt saved guest of another version",
            hint=f"supported: {VERSION}",
            file_offset=16,
        )
    length = struct.unpack_from(f"{order}I", head, 20)[0]
    skip = HEADER_SIZE + length
    if skip >= file.size:
        raise CorruptDumpError(
            file.path, f"a description of {length} bytes, behind which nothing is", file_offset=20
        )
    unfinished = ("libvirt did not finish saving this guest",) if head.startswith(PARTIAL) else ()
    return Behind(file, skip, (*file.warnings, *unfinished))


LAYER = Layer("libvirt", probe, open_libvirt)
