"""Where input from a pipe is kept while it is worked on: a file without a name, with holes for zeros.

It lies beside the output, where there must be room anyway; a command without an output file uses
$TMPDIR or /var/tmp.  Whatever ends the program ends the file.
"""

from __future__ import annotations

import errno
import os
import stat

import numpy as np

from kdump_elftool.addr import Bools
from kdump_elftool.errors import OutputError
from kdump_elftool.files import STDIO, anonymous_file
from kdump_elftool.safe_text import printable

_PAGE = 4096
_WORDS = _PAGE // 8
_DISK = "/var/tmp"


def spool_directory(output: str | None) -> str:
    """Where to keep the input of a command that writes to ``output``."""
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
    """Bytes that are appended; ``fd`` reads them by offset, and closing it is the owner's business."""

    def __init__(self, directory: str, what: str) -> None:
        self._directory, self._what = directory, what
        self.size = 0
        try:
            self.fd = anonymous_file(directory)
        except OSError as error:
            raise self._failed(error) from None

    def append(self, data: memoryview) -> None:
        """Add ``data``; pages of zeros become holes.  Raises OutputError."""
        whole = len(data) - len(data) % _PAGE
        try:
            for begin, end in _runs_in_use(data[:whole]):
                self._write(data[begin:end], self.size + begin)
            self._write(data[whole:], self.size + whole)
        except OSError as error:
            raise self._failed(error) from None
        self.size += len(data)

    def finish(self) -> None:
        """Everything is there: zeros at the end get their length.  Raises OutputError."""
        try:
            os.ftruncate(self.fd, self.size)
        except OSError as error:
            raise self._failed(error) from None

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self.fd, data, offset)
            offset += done
            data = data[done:]

    def _failed(self, error: OSError) -> OutputError:
        hint = "save the dump to a file first, or name another directory with TMPDIR=DIRECTORY"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "save the dump to a file where there is room for it, and name that"
        return OutputError(
            f"cannot keep the dump from {self._what} in {printable(self._directory) or '.'}, where "
            f"{self.size} bytes of it are: {error.strerror}",
            hint=hint,
        )


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
