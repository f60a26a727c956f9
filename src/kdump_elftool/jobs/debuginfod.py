"""Debug information by build id from debuginfod servers, kept where their own client keeps it.

Only when ``DEBUGINFOD_URLS`` is set: asking tells a server which kernel crashed here.  A file is believed
only if it has the build id that was asked for, and it appears in the cache whole or not at all.
Reference: debuginfod-find(1), debuginfod_find_debuginfo(3) of elfutils: URLs, cache directory, limits.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from kdump_elftool.cache import cache_home
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.progress import Advance, Progress
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

_MOST_SERVERS = 8
_LARGEST = 4 << 30
_PIECE = 1 << 16
_TIMEOUT = 90
"""Seconds in which at least :data:`_LEAST` bytes must come, as debuginfod-find(1) has it."""
_LEAST = 100 << 10


@dataclass(frozen=True)
class _Limits:
    """DEBUGINFOD_TIMEOUT, DEBUGINFOD_MAXTIME (seconds), DEBUGINFOD_MAXSIZE (bytes)."""

    timeout: float
    seconds: float
    size: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> _Limits:
        def number(name: str, default: int) -> int:
            text = environ.get(name, "")
            return int(text) if re.fullmatch(r"[0-9]{1,12}", text) and int(text) else default

        timeout, seconds = number("DEBUGINFOD_TIMEOUT", _TIMEOUT), number("DEBUGINFOD_MAXTIME", 3600)
        return cls(timeout, seconds, min(number("DEBUGINFOD_MAXSIZE", _LARGEST), _LARGEST))


def cached_names(build_id: bytes, environ: Mapping[str, str]) -> list[str]:
    """Where the client keeps what it has fetched."""
    return [os.path.join(place, build_id.hex(), "debuginfo") for place in _caches(environ)]


def download(build_id: bytes, environ: Mapping[str, str], progress: Progress) -> str | None:
    """Ask the servers of ``DEBUGINFOD_URLS``; the file's name, None when there is none to be had."""
    words = environ.get("DEBUGINFOD_URLS", "").split()
    servers = [url for url in words if url.startswith(("http://", "https://"))][:_MOST_SERVERS]
    caches = _caches(environ)
    if not servers or not caches:
        return None
    target = os.path.join(caches[0], build_id.hex(), "debuginfo")
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    except OSError as error:
        log.info("debuginfod: %s: %s", printable(target), error.strerror)
        return None
    for server in servers:
        try:
            url = f"{server.rstrip('/')}/buildid/{build_id.hex()}/debuginfo"
            _fetch(url, build_id, target, _Limits.of(environ), progress)
        except (OSError, http.client.HTTPException, ValueError, KdumpError) as error:
            log.info("debuginfod: %s: %s", printable(server), printable(str(error)))
            continue
        log.info("debuginfod: %s has it", printable(server))
        return target
    return None


def _caches(environ: Mapping[str, str]) -> list[str]:
    """The client's cache directories: $DEBUGINFOD_CACHE_PATH alone, else the XDG one and the old one."""
    named = environ.get("DEBUGINFOD_CACHE_PATH", "")
    if named:
        return [named] if os.path.isabs(named) and "\0" not in named else []
    home, base = environ.get("HOME", ""), cache_home(environ)
    found = [os.path.join(base, "debuginfod_client")] if base else []
    return found + ([os.path.join(home, ".debuginfod_client_cache")] if os.path.isabs(home) else [])


def _fetch(url: str, build_id: bytes, target: str, limits: _Limits, progress: Progress) -> None:
    """Raises OSError, HTTPException, ValueError, KdumpError: whatever a server can do wrong."""
    with contextlib.closing(_answer(url, limits)) as answer, _temporary(target) as (path, out):
        length = answer.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(r"[0-9]{1,15}", length) else 0
        if size > limits.size:
            raise ValueError(f"{size} bytes are more than the limit of {limits.size}")
        with progress("downloading debug information", size) as advance:
            got = _copy(answer, out, limits, advance)
        if size and got != size:
            raise ValueError(f"{got} of {size} bytes came")
        out.flush()
        with InputFile.open(path) as file:
            found = read_vmlinux(file).build_id
        if found != build_id:
            raise ValueError(f"sent build id {found.hex() if found else 'none'}, not {build_id.hex()}")
        os.rename(path, target)


def _answer(url: str, limits: _Limits) -> Any:
    """HTTP alone: no other scheme can be reached by a redirection."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "kdump-elftool"})
    answer = opener.open(request, timeout=limits.timeout)
    if answer is None:
        raise ValueError("a redirection to something else than HTTP")
    return answer


def _copy(answer: Any, out: IO[bytes], limits: _Limits, advance: Advance) -> int:
    got = before = 0
    begin = since = time.monotonic()
    while piece := answer.read1(_PIECE):
        got += len(piece)
        now = time.monotonic()
        if got > limits.size:
            raise ValueError(f"more than the limit of {limits.size} bytes")
        if now - begin > limits.seconds:
            raise ValueError(f"not complete after {limits.seconds} seconds")
        if got - before >= _LEAST:
            before, since = got, now
        elif now - since > limits.timeout:
            raise ValueError(f"less than {_LEAST} bytes in {limits.timeout} seconds")
        out.write(piece)
        advance(len(piece))
    return got


@contextlib.contextmanager
def _temporary(target: str) -> Iterator[tuple[str, IO[bytes]]]:
    """A file beside ``target`` that is gone in the end unless it was renamed."""
    fd, path = tempfile.mkstemp(prefix="debuginfo.", dir=os.path.dirname(target))
    try:
        with os.fdopen(fd, "wb") as out:
            yield path, out
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
