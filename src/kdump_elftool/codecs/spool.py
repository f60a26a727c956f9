"""A temporary file for what can be had only once: unlinked at once, private, never filling the disk."""

from __future__ import annotations

import errno
import os
import weakref

from kdump_elftool.errors import KdumpError, OutputError
from kdump_elftool.safe_text import printable

RESERVE = 64 << 20
"""Bytes that stay free on the file system."""
_CHECK_EVERY = 16 << 20
_HOLE = 1 << 14
_ZEROS = bytes(_HOLE)


def spool_directory(beside: str | None) -> str:
    """Where large temporary files go: $TMPDIR, else beside the output, else /var/tmp (on a disk)."""
    candidates = [os.environ.get("TMPDIR"), beside, "/var/tmp"]
    return next((path for path in candidates if path and os.path.isdir(path)), "/tmp")


class Spool:
    """Bytes kept on disk, written front to back and read anywhere; zeros become holes."""

    def __init__(self, directory: str) -> None:
        import tempfile  # which takes half of the standard library along

        self.directory = directory
        try:
            fd, path = tempfile.mkstemp(prefix=".kdump-elftool.", dir=directory)
            os.unlink(path)
        except OSError as error:
            raise self._failed(error) from None
        self._fd = fd
        self._checked = 0
        self.size = 0
        weakref.finalize(self, os.close, fd)

    def need(self, size: int) -> None:
        """Raises OutputError when ``size`` bytes would leave the file system too full."""
        free = self._free()
        if size + RESERVE > free:
            raise OutputError(
                f"{size} bytes are needed in {printable(self.directory)} for a while, {free} are free",
                hint="name another directory with TMPDIR=DIRECTORY, or decompress the file yourself",
            )

    def append(self, data: bytes) -> None:
        """Add ``data``.  Raises OutputError rather than using the last of the disk."""
        if self.size + len(data) > self._checked:
            self.need(_CHECK_EVERY)
            self._checked = self.size + max(_CHECK_EVERY, len(data))
        try:
            for begin in range(0, len(data), _HOLE):
                piece = data[begin : begin + _HOLE]
                if piece != _ZEROS[: len(piece)]:
                    self._write(piece, self.size + begin)
            self.size += len(data)
        except OSError as error:
            raise self._failed(error) from None

    def finish(self) -> None:
        """Everything is written: zeros at the end get their length."""
        os.ftruncate(self._fd, self.size)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``, which lies within what was written."""
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self._failed(error) from None
            if not got:
                raise AssertionError("read beyond the end of the spool")
            done += got

    def _write(self, piece: bytes, offset: int) -> None:
        done = 0
        while done < len(piece):
            done += os.pwrite(self._fd, piece[done:], offset + done)

    def _free(self) -> int:
        try:
            status = os.fstatvfs(self._fd)
        except OSError as error:
            raise self._failed(error) from None
        return status.f_bavail * status.f_frsize

    def _failed(self, error: OSError) -> KdumpError:
        hint = "name another directory with TMPDIR=DIRECTORY"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or " + hint
        return OutputError(
            f"cannot write a temporary file in {printable(self.directory)}: {error.strerror}", hint=hint
        )
