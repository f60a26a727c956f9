"""What files are open: a command must leave none behind."""

from __future__ import annotations

import os
from contextlib import suppress


def open_descriptors() -> dict[str, str]:
    """What each descriptor of this process leads to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them is gone already
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def leaked(before: dict[str, str]) -> dict[str, str]:
    """What is open that was not; what an earlier test left to the collector may be gone meanwhile."""
    return {fd: target for fd, target in open_descriptors().items() if before.get(fd) != target}
