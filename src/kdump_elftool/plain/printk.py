"""The kernel's log, whatever form the kernel keeps it in: records, and lines as dmesg shows them.

Which form it is follows from the symbols that exist, never from a version:
``prb`` is the ring buffer of v5.10 on (``printk_ring``), ``log_next_idx`` the records of
v3.5 to v5.9, ``log_end`` the characters of older kernels (``printk_log``).
"""

from __future__ import annotations

from kdump_elftool.errors import IdentityError
from kdump_elftool.plain.printk_log import NEEDS as LOG_NEEDS
from kdump_elftool.plain.printk_log import read_char_log, read_record_log
from kdump_elftool.plain.printk_record import LOG_CONT, LOG_NEWLINE, LOG_PREFIX, RECORDS, Line, Log, Record
from kdump_elftool.plain.printk_ring import NEEDS as RING_NEEDS
from kdump_elftool.plain.printk_ring import read_ring
from kdump_elftool.plain.target import Target

__all__ = ["Line", "Log", "Record", "caller", "lines", "read_log"]

NEEDS = (*RING_NEEDS, *LOG_NEEDS)
"""What these readers ask of a kernel."""
_CALLER_IS_CPU = 1 << 31


def read_log(target: Target) -> Log:
    """The whole log.  Raises IdentityError when no form of it is known, FaultError when it is not there.

    Single records that cannot be read are counted by reason in ``Log.skipped``.
    """
    for name, read in (("prb", read_ring), ("log_next_idx", read_record_log), ("log_end", read_char_log)):
        if target.symbol(name) is not None:
            return read(target)
    raise IdentityError(
        "SYMBOL(prb)",
        "where the kernel keeps its log is not known: neither prb nor log_next_idx nor log_end",
        hint="give the missing VMCOREINFO lines in a file with -e",
    )


def lines(log: Log) -> list[Line]:
    """The log's lines: records of several lines split, pieces of one line joined."""
    result: list[Line] = []
    open_line = False
    for record in log.records:
        parts = record.text.split(b"\n")
        if open_line and _continues(record):
            before = result.pop()
            parts[0] = before.text + parts[0]
            result.append(Line(before.record, parts.pop(0)))
        result += [Line(record, part) for part in parts]
        open_line = log.form == RECORDS and record.flags & (LOG_CONT | LOG_NEWLINE) == LOG_CONT
    return result


def caller(record: Record) -> str | None:
    """Who logged it: ``T`` and a thread id, or ``C`` and a CPU; None when the kernel did not say."""
    if record.caller_id is None:
        return None
    if record.caller_id & _CALLER_IS_CPU:
        return f"C{record.caller_id & ~_CALLER_IS_CPU}"
    return f"T{record.caller_id}"


def _continues(record: Record) -> bool:
    """As msg_print_text() decided from v3.5 on; only asked when the record before left its line open.

    Later kernels with this form of log stopped looking at the record before and printed such pieces
    as lines of their own; joining them gives the line that was meant.
    """
    return bool(record.flags & LOG_CONT) or not record.flags & LOG_PREFIX
