"""linux_banner by its text: release, who built the kernel with what, and the number of the build.

An earlier stage of the link does not know that number ("# SMP" for "#1 SMP"), and since v6.1 its text is in
the kernel as well.  Reference: init/version.c, init/version-timestamp.c.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from kdump_elftool.memory.virtual import VirtualMemory

_BEGIN = b"Linux version "
_BANNER = re.compile(_BEGIN + rb"([!-~]{1,64}+) \([ -~]{1,900}+\n\0")
_BUILD = re.compile(rb"(?<=\) )#\d[ -~]{0,64}(?=\n)")
_LONGEST = 1024
_MOST_CANDIDATES = 1 << 14
"""Places that begin like one: the log has it, too, and what logs are kept in."""


def banners(memory: VirtualMemory, window: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """Texts like it, without NUL, and where they lie in ``window``; some come twice."""
    left = _MOST_CANDIDATES
    for start, data in memory.scan(*window, _LONGEST):
        for at in itertools.islice(occurrences(data, _BEGIN), left):
            left -= 1
            match = _BANNER.match(data, at)
            if match is not None:
                yield start + at, match[0][:-1]


def release_of(banner: bytes) -> bytes | None:
    """What ``uname -r`` says."""
    match = _BANNER.match(banner + b"\0")
    return None if match is None else match[1]


def build_of(banner: bytes) -> bytes | None:
    """What ``uname -v`` says: number of the build, options, date; None of a text from before it was known."""
    match = _BUILD.search(banner)
    return None if match is None else match[0]


def occurrences(data: bytes, wanted: bytes) -> Iterator[int]:
    """Where ``wanted`` begins in ``data``."""
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)
