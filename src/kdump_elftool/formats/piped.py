"""Dumps that come through a pipe: read once, kept in a file without a name, opened like any other.

Of a flattened dump the records are found on the way, so that it is not gone through a second time.
"""

from __future__ import annotations

import fcntl
import logging
import os

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import flattened
from kdump_elftool.formats.flattened_records import Scanner
from kdump_elftool.progress import Advance, counting
from kdump_elftool.safe_text import printable
from kdump_elftool.spool import Spool

log = logging.getLogger(__name__)

_PIECE = 1 << 20
_F_SETPIPE_SZ = 1031  # Linux fcntl.h; Python's fcntl has had it since 3.10, but not everywhere


def keep_piped(fd: int, label: str, directory: str, *, show_progress: bool) -> InputFile:
    """All that comes from ``fd``, which is closed.  Raises OutputError, KdumpError."""
    try:
        log.info("%s is kept in a file without a name in %s", label, printable(directory))
        spool = Spool(directory, f"the dump from {label}", "save the dump to a file first")
        try:
            with counting(f"reading {label}", enabled=show_progress) as advance:
                scanner = _copy(fd, label, spool, advance)
            status = os.fstat(spool.fd)
            identity = (status.st_dev, status.st_ino)
            if scanner is None:
                return InputFile(label, spool.give_away(), spool.size, identity)
            records = scanner.finish()
            return flattened.ScannedFile(label, spool.give_away(), spool.size, identity, records)
        finally:
            spool.close()
    finally:
        os.close(fd)


def _copy(fd: int, label: str, spool: Spool, advance: Advance) -> Scanner | None:
    """Read to the end; returns the records if it is a flattened dump."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIECE)
    except OSError:
        pass  # no pipe but a socket, or more than this user may have: it is slower then
    buffer = memoryview(bytearray(_PIECE))
    scanner: Scanner | None = None
    while True:
        data = buffer[: _fill(fd, label, buffer, advance)]
        if not spool.size and flattened.probe(bytes(data[:64])):
            scanner = Scanner()
        if scanner is not None:
            scanner.feed(spool.size, data)
        spool.append(data)
        if len(data) < len(buffer):
            spool.finish()
            return scanner


def _fill(fd: int, label: str, buffer: memoryview, advance: Advance) -> int:
    """Fill the buffer, since whole pages are looked at; less only at the end."""
    done = 0
    while done < len(buffer):
        try:
            got = os.readv(fd, [buffer[done:]])
        except OSError as error:
            raise KdumpError(
                f"cannot read {label}: {error.strerror}", hint="save the dump to a file first"
            ) from None
        if not got:
            break
        done += got
        advance(got)
    return done
