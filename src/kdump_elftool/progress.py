"""Progress of long work: one line on a terminal, nothing elsewhere.

``rich`` draws it when it is installed; the crash kernel has only the standard library, so a
plain carriage-return line serves there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Advance = Callable[[int], None]
"""Called with the number of bytes (or other units) done since the last call."""


Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Opens the display of one piece of work: its label, and how many bytes it has."""


def silent(_amount: int) -> None:
    """An :data:`Advance` that shows nothing."""


def no_progress(_label: str, _total: int) -> AbstractContextManager[Advance]:
    """A :data:`Progress` that shows nothing."""
    return nullcontext(silent)


@contextmanager
def progress(label: str, total: int, *, enabled: bool) -> Iterator[Advance]:
    """Show ``label`` and the share of ``total`` bytes done, on stderr, if that is a terminal."""
    if not (enabled and sys.stderr.isatty() and total > 0):
        yield silent
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield from _plain(label, total)
        return
    yield from _rich(Progress, label, total)


@contextmanager
def counting(label: str, *, enabled: bool) -> Iterator[Advance]:
    """Show ``label`` and how many bytes are done of nobody knows how many, likewise."""
    if not (enabled and sys.stderr.isatty()):
        yield silent
        return
    yield from _line(lambda done: f"{label} {done // 1_000_000} MB")


def _rich(kind: type, label: str, total: int) -> Iterator[Advance]:
    from rich.console import Console

    with kind(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


def _plain(label: str, total: int) -> Iterator[Advance]:
    yield from _line(lambda done: f"{label} {100 * done // total:3d} %")


def _line(text: Callable[[int], str]) -> Iterator[Advance]:
    done = 0
    shown = 0.0

    def advance(amount: int) -> None:
        nonlocal done, shown
        done += amount
        now = time.monotonic()
        if now - shown > 0.2:
            shown = now
            sys.stderr.write("\r" + text(done))
            sys.stderr.flush()

    try:
        yield advance
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
