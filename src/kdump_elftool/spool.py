"""A file without a name for what can be had only once: a pipe's data, the contents of a compressed file.

It lies beside the output, where there must be room anyway; a command without an output file uses
$TMPDIR or /var/tmp.  It never fills the disk, and whatever ends the program ends the file.
"""

from __future__ import annotations

import os
import stat
import weakref

import numpy as np

from kdump_elftool.addr import Bools
from kdump_elftool.errors import OutputError
from kdump_elftool.files import STDIO, anonymous_file
from kdump_elftool.safe_text import printable

RESERVE = 64 << 20
"""Bytes that stay free on the file system, if that is no more than a tenth of it."""
_PAGE = 4096
_WORDS = _PAGE // 8
_DISK = "/var/tmp"


def spool_directory(output: str | None) -> str:
    """Where a command that writes to ``output`` keeps such things."""
    if output is not None and output != STDIO:
        try:
            regular = stat.S_ISREG(os.stat(output).st_mode)
        except FileNotFoundError:
            regular = True
        except OSError:
            regular = False  # opening the output will say what is wrong with it
        if regular:
            return os.path.dirname(os.path.realpath(output))
    named = os.environ.get("TMPDIR", "")
    return next((path for path in (named, _DISK) if path and os.path.isdir(path)), "/tmp")


class Spool:
    """Bytes that are appended and read anywhere; zeros become holes.

    ``what`` is kept there, and ``otherwise`` what the user can do instead, for the errors.
    """

    def __init__(self, directory: str, what: str, otherwise: str) -> None:
        self._directory, self._what, self._otherwise = directory, what, otherwise
        self.size = 0
        try:
            self.fd = anonymous_file(directory)
            self._reserve = min(RESERVE, _room(self.fd)[1] // 10)
        except OSError as error:
            raise self._failed(error.strerror) from None
        self._close = weakref.finalize(self, os.close, self.fd)

    def close(self) -> None:
        """Give the file up; otherwise that happens with the object."""
        self._close()

    def give_away(self) -> int:
        """The descriptor, which now belongs to the caller."""
        self._close.detach()
        return self.fd

    def need(self, size: int) -> None:
        """Raises OutputError when ``size`` bytes more would leave the file system too full."""
        try:
            free, _ = _room(self.fd)
        except OSError as error:
            raise self._failed(error.strerror) from None
        if size + self._reserve > free:
            raise self._failed(f"{size} more are needed, {free} are free, {self._reserve} stay so")

    def append(self, data: bytes | memoryview) -> None:
        """Add ``data``; pages of zeros become holes.  Raises OutputError."""
        self.need(len(data))
        data = memoryview(data)
        whole = len(data) - len(data) % _PAGE
        try:
            for begin, end in _runs_in_use(data[:whole]):
                self._write(data[begin:end], self.size + begin)
            self._write(data[whole:], self.size + whole)
        except OSError as error:
            raise self._failed(error.strerror) from None
        self.size += len(data)

    def finish(self) -> None:
        """Everything is there: zeros at the end get their length.  Raises OutputError."""
        try:
            os.ftruncate(self.fd, self.size)
        except OSError as error:
            raise self._failed(error.strerror) from None

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``, which lies within what was appended.  Raises OutputError."""
        while view:
            try:
                got = os.preadv(self.fd, [view], offset)
            except OSError as error:
                raise self._failed(error.strerror) from None
            if not got:
                raise AssertionError("read beyond the end of the spool")
            offset += got
            view = view[got:]

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self.fd, data, offset)
            offset += done
            data = data[done:]

    def _failed(self, why: str | None) -> OutputError:
        return OutputError(
            f"cannot keep {self._what} in {printable(self._directory) or '.'}, where {self.size} bytes of it "
            f"are: {why}",
            hint=f"that is beside the output, else in $TMPDIR: name one with more room, or {self._otherwise}",
        )


def _room(fd: int) -> tuple[int, int]:
    """Bytes that are free on the file system, and all that it has."""
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def _runs_in_use(data: memoryview) -> list[tuple[int, int]]:
    """Where in whole pages those lie that are not all zeros; two looks at each rule out most of them."""
    pages = np.frombuffer(data, dtype=np.uint64).reshape(-1, _WORDS)
    used: Bools = (pages[:, 0] | pages[:, -1]) != 0
    if used.all():
        return [(0, len(data))] if len(data) else []
    rows = np.flatnonzero(~used)
    used[rows] = pages[rows].any(axis=1)
    edges = np.flatnonzero(np.diff(used, prepend=False, append=False)) * _PAGE
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
