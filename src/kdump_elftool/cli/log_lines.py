"""How lines of the kernel's log are printed and chosen, in the manner of util-linux's dmesg(1)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime

from kdump_elftool.jobs.dmesg import BootTime
from kdump_elftool.plain.log_lines import joined, raw_line, stamp, stamp_of
from kdump_elftool.plain.printk import Line, Record, caller
from kdump_elftool.safe_text import log_text

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "res0", "res1", "res2", "res3",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def levels(text: str) -> frozenset[int]:
    """argparse type: names by comma; ``err+`` is err and everything graver, ``+err`` the opposite."""
    chosen: set[int] = set()
    for name in text.split(","):
        value = _index(LEVELS, name.strip("+"), "level")
        chosen.add(value)
        if name.endswith("+"):
            chosen |= set(range(value))
        elif name.startswith("+"):
            chosen |= set(range(value, len(LEVELS)))
    return frozenset(chosen)


def facilities(text: str) -> frozenset[int]:
    """argparse type: names by comma."""
    return frozenset(_index(FACILITIES, name, "facility") for name in text.split(","))


def _index(names: tuple[str, ...], name: str, what: str) -> int:
    if name not in names:
        raise argparse.ArgumentTypeError(f"{name!r} is no {what}; known: {', '.join(names)}")
    return names.index(name)


def date_stamp(boot: BootTime, ts_nsec: int) -> str:
    """``[Sun Nov 22 22:16:20 2026]``, UTC; the plain time stamp when that is no date."""
    seconds = boot.at(ts_nsec)
    if seconds is None:
        return stamp(ts_nsec)
    when = datetime.fromtimestamp(seconds, UTC)
    day, month = _DAYS[when.weekday()], _MONTHS[when.month - 1]
    return f"[{day} {month} {when.day:2} {when:%H:%M:%S} {when.year:4}]"


def formatter(*, raw: bool, decode: bool, time: bool, boot: BootTime | None) -> Callable[[Line], str]:
    """The function that prints one line.  With ``boot`` times are dates."""
    if raw:
        return raw_line

    def show(line: Line) -> str:
        record = line.record
        when = stamp_of(record) if time else ""
        if time and boot is not None and record.ts_nsec is not None:
            when = date_stamp(boot, record.ts_nsec)
        return (_decoded(record) if decode else "") + joined(when, line.text)

    return show


def as_json(record: Record, boot: BootTime | None) -> dict[str, object]:
    """One record for ``--json``; ``time`` is there when the time of day is known."""
    text = "\n".join(log_text(part) for part in record.text.split(b"\n"))
    seconds = None if boot is None or record.ts_nsec is None else boot.at(record.ts_nsec)
    result: dict[str, object] = {
        "seq": record.seq,
        "ts_nsec": record.ts_nsec,
        "facility": _name(FACILITIES, record.facility),
        "level": _name(LEVELS, record.level),
        "caller": caller(record),
        "flags": record.flags,
        "text": text,
    }
    if seconds is not None:
        result["time"] = iso(seconds)
    return result


def iso(seconds: int) -> str:
    """ISO 8601, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _decoded(record: Record) -> str:
    if record.facility is None or record.level is None:
        return " " * 16
    return f"{_name(FACILITIES, record.facility)!s:6}:{_name(LEVELS, record.level)!s:6}: "


def _name(names: tuple[str, ...], value: int | None) -> str | int | None:
    return names[value] if value is not None and value < len(names) else value
