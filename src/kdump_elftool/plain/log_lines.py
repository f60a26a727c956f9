"""Lines of the kernel's log as ``dmesg`` and ``dmesg -r`` of util-linux print them."""

from __future__ import annotations

from kdump_elftool.plain.printk_record import Line, Record
from kdump_elftool.safe_text import log_text

NSEC = 10**9


def stamp(ts_nsec: int) -> str:
    """``[    5.123456]``: seconds since boot as the kernel prints them."""
    return f"[{ts_nsec // NSEC:5}.{ts_nsec // 1000 % 10**6:06}]"


def plain_line(line: Line) -> str:
    """As ``dmesg`` without options prints it."""
    return joined(stamp_of(line.record), line.text)


def raw_line(line: Line) -> str:
    """As ``dmesg -r`` prints it: with facility and level as one number in front."""
    return _pri(line.record) + plain_line(line)


def stamp_of(record: Record) -> str:
    """Empty where the kernel did not say when."""
    return "" if record.ts_nsec is None else stamp(record.ts_nsec)


def joined(when: str, text: bytes) -> str:
    """A line behind its time stamp, which may be empty."""
    return f"{when} {log_text(text)}" if when else log_text(text)


def _pri(record: Record) -> str:
    if record.facility is None or record.level is None:
        return ""
    return f"<{record.facility << 3 | record.level}>"
