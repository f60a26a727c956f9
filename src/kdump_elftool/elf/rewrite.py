"""Small changes to an existing ELF file, in place."""

from __future__ import annotations

import os
import struct

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import read_header
from kdump_elftool.errors import FormatError, KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.safe_text import printable

_E_TYPE_OFFSET = 16


def set_type(path: str, wanted: int, accepted: tuple[int, ...]) -> bool:
    """Set ``e_type`` to ``wanted`` if it is one of ``accepted``; False when it is so already.

    Two bytes are written and the modification time is put back: gdb compares it with the core's.
    """
    with InputFile.open(path) as file:
        header = read_header(file)
    if header.e_type == wanted:
        return False
    if header.e_type not in accepted:
        kind = c.ET_NAMES.get(header.e_type, f"ELF file of type {header.e_type}")
        raise FormatError(
            printable(path),
            f"this is an ELF {kind}, not a vmlinux",
            hint="makedyn changes the kernel's vmlinux",
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise KdumpError(f"cannot change {printable(path)}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        os.pwrite(fd, struct.pack(header.kind.order + "H", wanted), _E_TYPE_OFFSET)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(fd)
    except OSError as error:
        raise KdumpError(f"cannot change {printable(path)}: {error.strerror}") from None
    finally:
        os.close(fd)
    return True
