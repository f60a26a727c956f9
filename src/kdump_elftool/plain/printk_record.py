"""A record of the kernel's log, as all its forms are read (kernel/printk/printk.c)."""

from __future__ import annotations

from typing import NamedTuple

LOG_NEWLINE = 2
LOG_PREFIX = 4
LOG_CONT = 8

RING, RECORDS, CHARS = "ring buffer", "records", "characters"

MAX_RECORDS = 1 << 22
"""More than log_buf_len=128M can hold; what claims to have more is shown from its newest end."""
MAX_BUFFER = 1 << 31
"""LOG_BUF_LEN_MAX."""


class Record(NamedTuple):
    """One message.  What its form does not hold is None; ``flags`` are LOG_*."""

    text: bytes
    seq: int | None
    ts_nsec: int | None
    facility: int | None
    level: int | None
    caller_id: int | None
    flags: int


class Line(NamedTuple):
    """One line of a message."""

    record: Record
    text: bytes


class Log(NamedTuple):
    """All records that can be read, oldest first; ``skipped`` counts the others by reason."""

    form: str
    records: tuple[Record, ...]
    skipped: dict[str, int]

    @property
    def lost(self) -> str | None:
        """What is missing, in words; None when nothing is."""
        if not any(self.skipped.values()):
            return None
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(self.skipped.items()))
        return f"log records left out: {reasons}"


class Collector:
    """Gathers records and counts what is left out."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._records: list[Record] = []
        self._skipped: dict[str, int] = {}

    def add(self, record: Record) -> None:
        """One more record."""
        self._records.append(record)

    def skip(self, why: str, count: int = 1) -> None:
        """``count`` records cannot be shown."""
        if count > 0:
            self._skipped[why] = self._skipped.get(why, 0) + count

    def log(self) -> Log:
        """Everything gathered."""
        return Log(self._form, tuple(self._records), dict(self._skipped))


def flags_and_level(byte: int, order: str) -> tuple[int, int]:
    """``u8 flags:5, level:3``: compilers fill bit fields from the end that the byte order begins at."""
    return (byte & 0x1F, byte >> 5) if order == "<" else (byte >> 3, byte & 7)
