"""Files in and out: positional reads, and outputs that appear whole or not at all.

An output is written as ``.NAME.PID.TIME.tmp`` beside its target with mode 0600 (a dump holds
secrets), synced, and renamed when complete.  Pipes, devices and stdout are streamed instead:
gaps between writes become zeros there and holes in a file.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from kdump_elftool.addr import NO_RANGES, Ranges, merge_ranges
from kdump_elftool.errors import CorruptDumpError, KdumpError, OutputError, ReadFailedError, UsageError
from kdump_elftool.safe_text import printable

STDIO = "-"
_NAME_MAX = 255
_NAME_TRIES = 100
_COMPLAINTS_TOLD = 3
_FAILED_PAGE = 4096
_LARGEST_FAILED = 4 << 20
_PATIENCE = 1000
_ZEROS = bytes(1 << 16)
_WRITEBACK_STEP = 32 << 20
_SYNC_FILE_RANGE_WRITE = 2
_temporaries: set[str] = set()
"""Names of temporary files that exist or are just being made: a signal can arrive in between."""


@cache
def _writeback_starter() -> Callable[[int, int, int, int], object]:
    """sync_file_range(2), which ``os`` lacks; where libc lacks it too, nothing is started early."""
    try:
        import ctypes

        call = ctypes.CDLL(None).sync_file_range
    except (ImportError, OSError, AttributeError):
        return lambda _fd, _offset, _size, _flags: None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


class ByteSource(Protocol):
    """Bytes by offset: a file, or what a layer around it (compression, flattening) holds.

    ``path`` is fit to be printed.
    """

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the layers: why their contents end early, for example."""

    @property
    def missing(self) -> Ranges:
        """Offsets below ``size`` whose bytes are lost, although others behind them are there."""

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Up to ``size`` bytes; shorter only at the end, or where something is missing."""

    def read_into(self, offset: int, view: memoryview, /) -> None:
        """Fill ``view``.  Raises CorruptDumpError where the bytes cannot be had."""


class Complaints:
    """The first of many complaints of one kind, and how many there are: a file may give rise to millions."""

    def __init__(self, more: str) -> None:
        self._more = more
        self._first: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        """One more."""
        self._count += 1
        if len(self._first) < _COMPLAINTS_TOLD:
            self._first.append(text)

    def __len__(self) -> int:
        return self._count

    def told(self) -> list[str]:
        """The first as they are, and a line that counts the others, which ends with ``more``."""
        left = self._count - len(self._first)
        return [*self._first, f"{left} more {self._more}"] if left else self._first


def readable_end(file: ByteSource, offset: int) -> int:
    """Where the bytes end that can be read from ``offset`` on: something is missing, or the file ends."""
    index = int(np.searchsorted(file.missing.end, np.uint64(offset), side="right"))
    if index == len(file.missing):
        return file.size
    return max(int(file.missing.start[index]), offset)


def behind_gap(file: ByteSource, offset: int) -> int:
    """Where bytes can be read again from ``offset`` on: there, or behind what is missing."""
    index = int(np.searchsorted(file.missing.end, np.uint64(offset), side="right"))
    if index < len(file.missing) and int(file.missing.start[index]) <= offset:
        return int(file.missing.end[index])
    return offset


class InputFile:
    """A seekable file that is only ever read, by offset; never modified."""

    warnings: tuple[str, ...] = ()
    missing = NO_RANGES
    is_device = False
    """Whether it is memory by its address, the end of which is not known."""

    def __init__(self, path: str, fd: int, size: int, identity: tuple[int, int]) -> None:
        self.path = path
        self.fd = fd
        self.size = size
        self.identity = identity

    @classmethod
    def open(cls, path: str, piped: Callable[[int, str], InputFile] | None = None) -> InputFile:
        """Open ``path`` (``-`` is stdin).  Raises KdumpError with a hint.

        ``piped`` takes over a descriptor that can only be read front to back, and gets what to call it.
        """
        try:
            fd = os.dup(0) if path == STDIO else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise KdumpError(
                f"cannot open {printable(path)}: {error.strerror}", hint=_open_hint(error)
            ) from None
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise KdumpError(f"{printable(path)} is a directory", hint="name the dump file in it")
            size = os.lseek(fd, 0, os.SEEK_END)
        except OSError:
            if piped is not None and not os.isatty(fd):
                return piped(fd, "stdin" if path == STDIO else printable(path))
            os.close(fd)
            raise KdumpError(
                f"{printable(path)} is a pipe or terminal: it is read at many places",
                hint="save it to a file first",
            ) from None
        except KdumpError:
            os.close(fd)
            raise
        return cls(printable(path), fd, size, (status.st_dev, status.st_ino))

    @classmethod
    def open_device(cls, path: str) -> InputFile:
        """Open memory that is read at its addresses: how long it is, a device does not tell."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise KdumpError(
                f"cannot open {printable(path)}: {error.strerror}", hint=_open_hint(error)
            ) from None
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            os.close(fd)
            raise KdumpError(f"{printable(path)} is no device", hint="name /dev/mem or its like")
        device = cls(printable(path), fd, 1 << 62, (status.st_dev, status.st_ino))
        device.is_device = True
        return device

    def close(self) -> None:
        """Close the descriptor; harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; shorter only at the end.  Raises ReadFailedError."""
        size = min(size, max(self.size - offset, 0))
        if not size:
            return b""
        try:
            data = os.pread(self.fd, size, offset)
        except OSError:
            data = b""  # it is tried again below, and explained
        if len(data) == size:
            return data
        buffer = bytearray(size)
        got = self._fill(offset, memoryview(buffer))
        return bytes(buffer[:got])

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``.

        Raises CorruptDumpError when the file ends before, ReadFailedError where the system cannot read it.
        """
        got = self._fill(offset, view)
        if got < len(view) and self.is_device:
            hint = "the headers of the dump name memory that is not there"
            raise ReadFailedError(self.path, "the device ends before", file_offset=offset + got, hint=hint)
        if got < len(view):
            raise CorruptDumpError(
                self.path,
                "the file ends here although it was longer when it was opened",
                file_offset=offset + got,
                hint="something else is writing to this file; copy it first",
            )

    def _fill(self, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                why = error.strerror or str(error)
                hint = _read_hint(self.path, error)
                raise ReadFailedError(self.path, why, file_offset=offset + done, hint=hint) from None
            if got == 0:
                break
            done += got
        return done


def given_up_at_once(failures: int, patience: int) -> int:
    """Bytes: a page, twice as much after ``patience`` failures, and so on: a dead disk has an end."""
    return min(_FAILED_PAGE << min(failures // patience, 32), _LARGEST_FAILED)


class UpToFailure:
    """A file in which what the system cannot read is ``missing`` from the first attempt on."""

    def __init__(self, file: ByteSource) -> None:
        self.path, self.size, self.missing, self.warnings = file.path, file.size, file.missing, file.warnings
        self._file = file
        self._failures = 0
        self.failure: ReadFailedError | None = None
        """Why something is missing."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; shorter only at the end, or where something is missing."""
        if self.failure is not None:
            size = min(size, max(readable_end(self, offset) - offset, 0))
        try:
            return self._file.read_at(offset, size)
        except ReadFailedError as error:
            self.failure = error
        return self._before_failure(offset, size)

    def read_into(self, offset: int, view: memoryview) -> None:
        """As the file's."""
        self._file.read_into(offset, view)

    def _before_failure(self, offset: int, size: int) -> bytes:
        """What is before the first byte that cannot be read: halves, halves of halves."""
        parts, at, step = [], offset, size
        while step > 1:
            step = -(-step // 2)
            try:
                parts.append(self._file.read_at(at, min(step, offset + size - at)))
            except ReadFailedError:
                continue
            at += len(parts[-1])
        unit = given_up_at_once(self._failures, _PATIENCE)
        self._failures += 1
        start = np.append(self.missing.start, np.uint64(at))
        end = np.append(self.missing.end, np.uint64(min((at // unit + 1) * unit, self.size)))
        self.missing = merge_ranges(start, end)
        return b"".join(parts)


@dataclass(frozen=True)
class FileSlice:
    """A piece of a file that is copied later instead of being held in memory."""

    file: ByteSource
    offset: int
    size: int


def _open_hint(error: OSError) -> str | None:
    if error.errno == errno.ENOENT:
        return "check the name; without an input /proc/vmcore is read, which only a crash kernel has"
    if error.errno == errno.EPERM:
        return (
            "the kernel itself forbids it, to root too: it is locked down (see "
            "/sys/kernel/security/lockdown), or the process lacks CAP_SYS_RAWIO"
        )
    if error.errno == errno.EACCES:
        return "dumps usually belong to root"
    return "check the file and its directory"


def _read_hint(path: str, error: OSError) -> str:
    """What to do where it is the system that cannot read, not the file that is damaged."""
    if path.startswith("/proc/"):
        return "the kernel cannot read this memory: it is broken or protected, and no other copy will have it"
    if error.errno in (errno.EIO, errno.EBADMSG, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO):
        return "the disk or the connection to it fails (see dmesg here): save the file with ddrescue first"
    return "what the file lies on cannot read it (see dmesg here): copy it to another place"


class Output:
    """Where a result goes.  Use as a context manager and call :meth:`commit` when it is whole."""

    def __init__(self, fd: int, label: str, *, target: str | None, temporary: str | None) -> None:
        self.fd = fd
        self.label = label
        self._target = target
        self._temporary = temporary
        self._position = 0
        self._under_way = 0
        self.is_file = temporary is not None
        """True for a regular file that keeps holes; False for a stream."""

    def is_stdout(self) -> bool:
        """True for a stream that goes where the process's own output would go.  To be asked before commit."""
        if self.is_file:
            return False
        here, there = os.fstat(self.fd), os.fstat(1)
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``; streams need offsets in ascending order."""
        if self.is_file:
            self._pwrite(offset, memoryview(data))
            return
        if offset < self._position:
            raise AssertionError("stream outputs are written front to back")
        self._zeros(offset - self._position)
        self._stream(memoryview(data))
        self._position = offset + len(data)

    def finish(self, size: int) -> None:
        """Make the output exactly ``size`` bytes long (a hole or zeros up to there)."""
        if self.is_file:
            try:
                os.ftruncate(self.fd, size)
            except OSError as error:
                raise self._failed(error) from None
        else:
            self._zeros(size - self._position)
            self._position = size

    def commit(self) -> None:
        """Sync the file and give it its name."""
        if self._temporary is None or self._target is None:
            return
        try:
            os.fdatasync(self.fd)
            self._refuse_other_file(self._temporary)
            os.close(self.fd)
            self.fd = -1
            os.replace(self._temporary, self._target)
            _temporaries.discard(self._temporary)
            self._temporary = None
            _sync_directory(os.path.dirname(self._target) or ".")
        except OSError as error:
            raise self._failed(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fd > 1:
            os.close(self.fd)
            self.fd = -1
        if self._temporary is not None:
            _unlink_quietly(self._temporary)
            self._temporary = None

    def _refuse_other_file(self, temporary: str) -> None:
        """What is about to get the output's name must be what was written."""
        here, there = os.fstat(self.fd), os.lstat(temporary)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            _temporaries.discard(temporary)
            self._temporary = None  # another's now: it stays
            raise OutputError(
                f"cannot write {self.label}: another file took the place of its temporary file",
                hint="see what else writes into that directory",
            )

    def _pwrite(self, offset: int, view: memoryview) -> None:
        while view:
            try:
                done = os.pwrite(self.fd, view, offset)
            except OSError as error:
                raise self._failed(error) from None
            offset += done
            view = view[done:]
        if offset - self._under_way >= _WRITEBACK_STEP:
            # The disk gets to work at once: otherwise gigabytes of dirty pages pile up first, and then
            # the kernel makes the writer wait (docs/performance.md).  commit() reports write errors.
            _writeback_starter()(self.fd, self._under_way, offset - self._under_way, _SYNC_FILE_RANGE_WRITE)
            self._under_way = offset

    def _stream(self, view: memoryview) -> None:
        while view:
            try:
                done = os.write(self.fd, view)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise self._failed(error) from None
            view = view[done:]

    def _zeros(self, count: int) -> None:
        while count > 0:
            piece = min(count, len(_ZEROS))
            self._stream(memoryview(_ZEROS)[:piece])
            count -= piece

    def _failed(self, error: OSError) -> OutputError:
        hint = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or name an output on another file system with -o"
        elif error.errno == errno.EFBIG:
            hint = "the file system or a limit (ulimit -f) does not allow a file this large"
        return OutputError(f"cannot write {self.label}: {error.strerror}", hint=hint)


def open_output(path: str | None, inputs: Iterable[InputFile] = ()) -> Output:
    """Open the output ``path`` (None or ``-``: stdout), refusing terminals and the inputs."""
    if path is None or path == STDIO:
        refuse_terminal(path)
        sys.stdout.flush()
        _refuse_inputs(os.fstat(1), "stdout", inputs)
        return Output(1, "stdout", target=None, temporary=None)
    target = os.path.realpath(path)
    label = printable(path)
    try:
        # not of the resolved name: /dev/stdout resolves to a name that does not exist for a pipe
        status = os.stat(path)
    except FileNotFoundError:
        return _temporary_output(target, label)
    except OSError as error:
        raise OutputError(f"cannot write {label}: {error.strerror}") from None
    _refuse_inputs(status, label, inputs)
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"the output {label} is a directory", hint="name a file in it")
    if stat.S_ISREG(status.st_mode):
        return _temporary_output(target, label)
    return _stream_output(path, label)


def _refuse_inputs(status: os.stat_result, label: str, inputs: Iterable[InputFile]) -> None:
    if (status.st_dev, status.st_ino) in {source.identity for source in inputs}:
        raise UsageError(
            f"the output {label} is the input itself", hint="inputs are never overwritten: name another file"
        )


def refuse_terminal(path: str | None) -> None:
    """Raises UsageError if a core for ``path`` would go to a terminal: before the long work begins."""
    if (path is None or path == STDIO) and sys.stdout.isatty():
        raise UsageError("refusing to write a dump to a terminal", hint="name a file with -o FILE")


def _stream_output(path: str, label: str) -> Output:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise OutputError(f"cannot write {label}: {error.strerror}") from None
    if os.isatty(fd):
        os.close(fd)
        raise UsageError("refusing to write a dump to a terminal", hint="name a file with -o FILE")
    return Output(fd, label, target=None, temporary=None)


def _temporary_output(target: str, label: str) -> Output:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    for tries_left in reversed(range(_NAME_TRIES)):
        temporary = _temporary_name(target)
        _temporaries.add(temporary)
        try:
            fd = os.open(temporary, flags, 0o600)
        except OSError as error:
            _temporaries.discard(temporary)
            if error.errno == errno.EEXIST and tries_left:
                continue
            hint = {
                errno.EACCES: "name an output in a directory that you may write to",
                errno.ENOENT: "its directory does not exist: make it first",
            }.get(error.errno or 0, "name another output with -o")
            raise OutputError(f"cannot write {label}: {error.strerror}", hint=hint) from None
        return Output(fd, label, target=target, temporary=temporary)
    raise AssertionError("the last try returns or raises")


def _temporary_name(target: str) -> str:
    """A name that no other process has: in a container or on another machine one may have our process id.

    Of the clock, as random numbers may not be there yet in a crash kernel that has just started.
    """
    directory, name = os.path.split(target)
    suffix = f".{os.getpid()}.{time.monotonic_ns():x}.tmp"
    stem = os.fsencode(name)[: _NAME_MAX - 1 - len(suffix)]
    return os.path.join(directory, "." + os.fsdecode(stem) + suffix)


def anonymous_file(directory: str) -> int:
    """A new file in ``directory`` that has no name, for reading and writing.  Raises OSError."""
    try:
        return os.open(directory or ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # not every file system can do that (NFS, older overlayfs)
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    name = os.path.join(directory, f".kdump-elftool.{os.getpid()}.{time.monotonic_ns():x}.tmp")
    _temporaries.add(name)
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    finally:
        _unlink_quietly(name)


def _sync_directory(directory: str) -> None:
    """The new name on disk, where that can be had: a directory that is only written to is not opened."""
    fd = -1
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS):
            raise
    finally:
        if fd >= 0:
            os.close(fd)


def remove_temporaries() -> None:
    """Remove what an interruption left behind at a moment when nobody owned it yet."""
    for path in list(_temporaries):
        _unlink_quietly(path)


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
    _temporaries.discard(path)
