"""Small changes to an existing ELF file, in place: its type, or a tail behind it and a new header.

The order of writes makes an interruption harmless.  Adding a tail: write it, sync, replace the ELF
header in one write, sync.  Taking it away: write the old header, sync, cut the file, sync.  So at
every moment the header in force names complete data only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from types import TracebackType
from typing import NoReturn, Self

from kdump_elftool.elf import constants as c
from kdump_elftool.elf.own_notes import Undo
from kdump_elftool.elf.reader import read_header
from kdump_elftool.elf.tail import Original, Tail
from kdump_elftool.elf.writer import write_notes
from kdump_elftool.errors import FormatError, KdumpError, OutputError, UsageError
from kdump_elftool.files import STDIO, InputFile
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


class ChangedFile:
    """A regular file open for reading and writing, locked against other runs of this program."""

    def __init__(self, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.file = InputFile(printable(path), os.dup(fd), status.st_size, (status.st_dev, status.st_ino))

    @classmethod
    def open(cls, path: str) -> Self:
        """Open and lock ``path``.  Raises UsageError, KdumpError."""
        if path == STDIO:
            raise UsageError("a stream cannot be changed in place", hint="name the file with -i FILE")
        label = printable(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            _refuse(label, error)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"{label} is not a regular file and cannot be changed in place",
                    hint="copy the dump to a file first, or convert it with -o",
                )
            if not status.st_mode & 0o222:  # root could write all the same
                raise KdumpError(
                    f"cannot change {label}: it is marked read-only",
                    hint="chmod u+w it if it may be changed, or convert it with -o",
                )
            _lock(fd, label)
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        os.close(self.fd)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, offset)
            offset += done
            view = view[done:]

    def cut(self, length: int) -> None:
        """Drop everything behind ``length``, for good."""
        os.ftruncate(self.fd, length)
        os.fsync(self.fd)
        self.file.size = length


def append_and_switch(target: ChangedFile, original: Original, tail: Tail) -> None:
    """Put the tail behind the file and switch to it.  Raises OutputError, the file being as before."""
    headers = tail.headers
    try:
        write_notes(tail, target)
        target.write_at(headers.offset, headers.tables)
        os.fsync(target.fd)
        _switch_header(target.fd, headers.ehdr)
        os.fsync(target.fd)
    except BaseException as error:
        _roll_back(target, original)
        if isinstance(error, OSError):
            raise _failed(target, error) from None
        raise
    target.file.size = tail.file_size


def take_back(target: ChangedFile, undo: Undo) -> None:
    """Make the file what it was before :func:`append_and_switch`; may be repeated.  Raises OutputError."""
    try:
        _switch_header(target.fd, undo.ehdr)
        os.fsync(target.fd)
        target.cut(undo.old_length)
    except OSError as error:
        raise _failed(target, error) from None


def _switch_header(fd: int, ehdr: bytes) -> None:
    """One write within the first page of the file: nobody ever reads a part of it."""
    if os.pwrite(fd, ehdr, 0) != len(ehdr):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _roll_back(target: ChangedFile, original: Original) -> None:
    """After a failure the old file is better than one whose new header may not have reached the disk."""
    try:
        if target.file.read_at(0, len(original.ehdr)) != original.ehdr:
            _switch_header(target.fd, original.ehdr)
            os.fsync(target.fd)
        target.cut(original.length)
    except (OSError, KdumpError):
        pass  # the first error is the one to report; the undo note is there for a second attempt


def _lock(fd: int, label: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KdumpError(
            f"{label} is being changed by another process", hint="wait until that one has finished"
        ) from None
    except OSError as error:
        raise KdumpError(
            f"cannot lock {label}: {error.strerror}", hint="copy it to a local file system"
        ) from None


def _refuse(label: str, error: OSError) -> NoReturn:
    hint = "check the name"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "it has to be writable to be changed in place; without that, convert it with -o"
    elif error.errno in (errno.EISDIR, errno.ENXIO):
        hint = "only a regular file can be changed in place"
    raise KdumpError(f"cannot change {label}: {error.strerror}", hint=hint) from None


def _failed(target: ChangedFile, error: OSError) -> OutputError:
    hint = "run the command again with --undo to be sure that the file is as it was"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "the file is as it was; free some space, or convert it into another file system with -o"
    return OutputError(f"cannot change {target.file.path}: {error.strerror}", hint=hint)
