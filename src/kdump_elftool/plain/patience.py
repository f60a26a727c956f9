"""Work that is silent for long says that it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = 3.0
"""Seconds without a word after which users ask themselves whether it hangs."""
_SAID = "({name} is still at work after {seconds:.0f} s; Ctrl-C ends it)\n"


class Patience:
    """Knows what is at work, and when it was heard of last; ``write`` is how it says something."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.write = write
        self.quiet = QUIET
        self._clock = clock
        self._name: str | None = None
        self._since = self._heard = 0.0

    @contextmanager
    def at_work(self, name: str) -> Iterator[None]:
        """Work by that name; what it calls in turn is part of it."""
        if self._name is not None:
            yield
            return
        self._name = name
        self._since = self._heard = self._clock()
        try:
            yield
        finally:
            self._name = None

    def heard(self) -> None:
        """There was output."""
        self._heard = self._clock()

    def tick(self) -> None:
        """Called again and again while something is done: may say so."""
        if self._name is None:
            return
        now = self._clock()
        if now - self._heard >= self.quiet:
            self.write(_SAID.format(name=self._name, seconds=now - self._since))
            self._heard = now
