"""dmesg: the kernel's log out of a dump, and what o'clock it was.

Time stamps in the log count from boot.  Two things tie them to the clock on the wall: the time of
the crash, which the kernel adds to VMCOREINFO (CRASHTIME, crash_save_vmcoreinfo()) on its way into the
crash kernel, and the message with which drivers/rtc/class.c sets the clock at boot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.plain.crash_log import last_stamp
from kdump_elftool.plain.printk import Log, read_log

NSEC = 10**9
_LATEST = 253_402_300_799  # the end of year 9999
_CLOCK_SET = re.compile(rb"setting system clock to .{,40} \((\d{1,12})\)")


@dataclass(frozen=True)
class BootTime:
    """When time stamp 0 was, in nanoseconds since 1970 (UTC); ``source`` is what told it."""

    nsec: int
    source: str

    def at(self, ts_nsec: int) -> int | None:
        """Seconds since 1970 of a time stamp; None when that is no date."""
        seconds = (self.nsec + ts_nsec) // NSEC
        return seconds if 0 <= seconds <= _LATEST else None


@dataclass(frozen=True)
class DumpLog:
    """The log; ``boot`` is None when nothing in the dump tells the time of day; ``facts`` led to it."""

    log: Log
    boot: BootTime | None
    facts: tuple[Fact, ...] = ()

    @property
    def lost(self) -> int:
        """Number of records that could not be shown."""
        return sum(self.log.skipped.values())

    def warning(self) -> str | None:
        """What is missing from the log, or None."""
        return self.log.lost


def dump_log(dump: Dump, kernel: Kernel) -> DumpLog:
    """Read the log.  Raises IdentityError."""
    target = DumpTarget.of(dump, kernel)
    try:
        log = read_log(target)
    except FaultError as error:
        raise IdentityError(
            "log",
            f"the kernel's log cannot be read: {error.message}",
            hint="that memory is not in the dump, or what leads to it is damaged",
        ) from error
    except IdentityError as error:
        hint = error.hint or "VMCOREINFO or the log is damaged: give the right lines in a file with -e"
        raise IdentityError(
            error.key, f"the kernel's log cannot be read: {error.message}", hint=hint
        ) from error
    return DumpLog(log, boot_time(kernel.info, log), target.known.used)


def crash_time(info: VmcoreInfo) -> int | None:
    """CRASHTIME, seconds since 1970, when it is there and a date."""
    text = info.text("CRASHTIME") or ""
    if not re.fullmatch(r"[0-9]{1,12}", text):
        return None
    return int(text) if int(text) <= _LATEST else None


def boot_time(info: VmcoreInfo, log: Log) -> BootTime | None:
    """From the time of the crash and the last message, else from the boot message about the clock."""
    crashed, last = crash_time(info), last_stamp(log)
    if crashed is not None and last is not None:
        return BootTime(crashed * NSEC - last, "CRASHTIME and the last message")
    for record in log.records:
        if record.ts_nsec is None or record.facility not in (0, None):
            continue  # facility 0 is the kernel itself: anyone may write the rest
        match = _CLOCK_SET.search(record.text)
        if match and int(match[1]) <= _LATEST:
            return BootTime(int(match[1]) * NSEC - record.ts_nsec, "the message that sets the clock at boot")
    return None
