"""A user's cache: what took long to find out, under a key, for the next run.

Entries are files in ``$XDG_CACHE_HOME/kdump-elftool`` (XDG Base Directory Specification), each with
its own checksum: what is damaged, or was put there by somebody else, is not there.  Losing an entry
costs time only, so nothing here raises: where no cache can be had, nothing is remembered.

All file names are opened relative to the directory's descriptor, which is checked once: so nobody can
swap the directory, and a link inside it is not followed.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)

LIMIT = 2 << 30
_NAME = "kdump-elftool"
_LOCK = ".lock"
_MAGIC = b"kdcache1"
_DIGEST = 16
_HEAD = len(_MAGIC) + _DIGEST
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_TEMPORARY = re.compile(r"\.[A-Za-z0-9._-]{1,230}\.tmp")
_STALE = 3600.0
_PATIENCE = 2.0


@dataclass(frozen=True)
class Cache:
    """An open cache; ``fd`` is its directory, ``limit`` the bytes that all entries may take together."""

    fd: int
    path: str
    limit: int = LIMIT

    @classmethod
    def open(cls, environ: Mapping[str, str] | None = None, limit: int = LIMIT) -> Cache | None:
        """The user's cache, made when missing; None when there can be none."""
        base = cache_home(os.environ if environ is None else environ)
        if base is None:
            log.info("cache: none without HOME")
            return None
        path = os.path.join(base, _NAME)
        try:
            os.makedirs(base, mode=0o700, exist_ok=True)
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            log.info("cache: none in %s: %s", base, error.strerror)
            return None
        why = _distrust(fd)
        if why is not None:
            os.close(fd)
            log.info("cache: %s is not used: %s", path, why)
            return None
        return cls(fd, path, limit)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.fd)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def get(self, key: str) -> bytes | None:
        """What was put under ``key``; None when it is not there any more or damaged."""
        try:
            fd = os.open(_checked(key), os.O_RDONLY | _SAFELY, dir_fd=self.fd)
        except OSError:
            return None
        try:
            data = _read(fd, self.limit)
            if data is not None:
                os.utime(fd)  # the oldest goes first: by its last use
        except OSError:
            return None
        finally:
            os.close(fd)
        if data is None:
            log.info("cache: %s is damaged", key)
        return data

    def put(self, key: str, data: bytes) -> bool:
        """Remember ``data`` under ``key``, in place of what was there; returns whether that was possible."""
        return self._put(key, (_MAGIC, _digest(data), data))

    def file(self, key: str, data: bytes) -> str | None:
        """A file that holds ``data`` and nothing else, for another program; its path if that is possible.

        It goes like other entries when it has not been used for long, so it is asked for anew each time.
        """
        path = os.path.join(self.path, _checked(key))
        try:
            fd = os.open(key, os.O_RDONLY | _SAFELY, dir_fd=self.fd)
        except OSError:
            return path if self._put(key, (data,)) else None
        try:
            if _is_own(os.fstat(fd)) and _raw(fd, len(data)) == data:
                os.utime(fd)
                return path
        except OSError:
            pass
        finally:
            os.close(fd)
        return path if self._put(key, (data,)) else None

    def _put(self, key: str, pieces: tuple[bytes, ...]) -> bool:
        name, size = _checked(key), sum(len(piece) for piece in pieces)
        if size > self.limit:
            return False
        temporary = f".{name}.{os.getpid()}.{time.monotonic_ns():x}.tmp"
        try:
            with self._lock():
                self._make_room(size, name)
                try:
                    self._write(temporary, pieces)
                    os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                except BaseException:
                    self._remove(temporary)
                    raise
        except OSError as error:
            log.info("cache: %s is not kept: %s", key, error.strerror)
            return False
        return True

    def link(self, name: str, target: str) -> str | None:
        """The path of a symbolic link to ``target``, made when missing; None when that is not possible."""
        path = os.path.join(self.path, _checked(name))
        temporary = f".{name}.{os.getpid()}.{time.monotonic_ns():x}.tmp"
        try:
            if os.readlink(name, dir_fd=self.fd) == target:
                return path
        except OSError:
            pass  # there is none, or something else
        try:
            os.symlink(target, temporary, dir_fd=self.fd)
            try:
                os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except BaseException:
                self._remove(temporary)
                raise
        except OSError as error:
            log.info("cache: no link %s: %s", name, error.strerror)
            return None
        return path

    def directory(self, name: str, limit: int = 1 << 30) -> str | None:
        """The path of a directory for another program's files, made when missing; None when there is none.

        Those used longest ago go once all of them take more than ``limit`` bytes.
        """
        path = os.path.join(self.path, _checked(name))
        try:
            try:
                os.mkdir(name, 0o700, dir_fd=self.fd)
            except FileExistsError:
                pass
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            log.info("cache: no directory %s: %s", name, error.strerror)
            return None
        try:
            why = _distrust(fd)
            if why is not None:
                log.info("cache: %s is not used: %s", path, why)
                return None
            _keep_below(fd, limit)
        finally:
            os.close(fd)
        return path

    def _write(self, name: str, pieces: tuple[bytes, ...]) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=self.fd)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time; whoever waits too long for the others does without.  Raises OSError."""
        fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | _SAFELY, 0o600, dir_fd=self.fd)
        try:
            until = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.01)
            yield
        finally:
            os.close(fd)

    def _make_room(self, size: int, name: str) -> None:
        """Remove the entries used longest ago until ``size`` more bytes fit, and what dead writers left."""
        entries: list[tuple[float, int, str]] = []
        with os.scandir(self.fd) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                if _TEMPORARY.fullmatch(entry.name):
                    if time.time() - status.st_mtime > _STALE:
                        self._remove(entry.name)
                elif entry.name not in (_LOCK, name) and stat.S_ISREG(status.st_mode):
                    entries.append((status.st_mtime, status.st_size, entry.name))
        total = size + sum(entry[1] for entry in entries)
        for _, freed, oldest in sorted(entries):
            if total <= self.limit:
                return
            self._remove(oldest)
            total -= freed

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError:
            pass  # another process was faster, or it is a directory, which is not ours


_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def cache_home(environ: Mapping[str, str]) -> str | None:
    """$XDG_CACHE_HOME, else ~/.cache; relative paths count as not set (as the specification says)."""
    for name, below in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        path = environ.get(name, "")
        if os.path.isabs(path) and "\0" not in path:
            return os.path.join(path, below) if below else path
    return None


def _distrust(fd: int) -> str | None:
    """Why what lies in this directory may not be ours; None when it can only be."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_mode & 0o022:
        return "others may write to it"
    if status.st_mode & 0o777 != 0o700:
        try:
            os.fchmod(fd, 0o700)
        except OSError as error:
            return error.strerror or "its mode cannot be set"
    return None


def _keep_below(fd: int, limit: int) -> None:
    """Remove the files of a directory that were read longest ago, until the rest has ``limit`` bytes."""
    try:
        with os.scandir(fd) as found:
            status = {entry.name: entry.stat(follow_symlinks=False) for entry in found}
        total = sum(each.st_size for each in status.values())
        for name, each in sorted(status.items(), key=lambda item: max(item[1].st_atime, item[1].st_mtime)):
            if total <= limit:
                return
            os.unlink(name, dir_fd=fd)
            total -= each.st_size
    except OSError:
        pass  # another process was faster, or a directory is among them


def _read(fd: int, limit: int) -> bytes | None:
    """The data of an entry; None when it is none, damaged or somebody else's."""
    status = os.fstat(fd)
    if not _is_own(status) or not _HEAD <= status.st_size <= limit:
        return None
    whole = _raw(fd, status.st_size)
    if whole is None:
        return None
    data = whole[_HEAD:]
    return data if whole[:_HEAD] == _MAGIC + _digest(data) else None


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _raw(fd: int, size: int) -> bytes | None:
    """The whole file, if it is of this size."""
    if os.fstat(fd).st_size != size:
        return None
    whole = bytearray(size)
    view = memoryview(whole)
    while view:
        got = os.readv(fd, [view])
        if not got:
            return None
        view = view[got:]
    return bytes(whole)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise AssertionError(f"no key: {key!r}")
    return key
