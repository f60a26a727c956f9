"""gdb: what a conversion for a session adds to tovelf's: the vmlinux in any case, and why the kernel died."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from kdump_elftool.errors import KdumpError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.dmesg import crash_time, dump_log
from kdump_elftool.jobs.gdb_session import MadeOf, Session, real_path
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.velf import Velf
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.plain.crash_log import read_crash
from kdump_elftool.safe_text import log_text

log = logging.getLogger(__name__)


def with_vmlinux(kernel: Kernel) -> Kernel:
    """With a vmlinux that is looked for where none was named: gdb wants one in any case."""
    locate = kernel.request.locate
    if kernel.vmlinux is not None or locate is None:
        return kernel
    return replace(kernel, vmlinux=locate(kernel.info, kernel.arch))


def about(dump: Dump, kernel: Kernel, made_of: MadeOf | None) -> dict[str, object]:
    """What a session wants to find in the core: what it was made of, and why the kernel died."""
    found: dict[str, object] = {"crash": _crash(dump, kernel)}
    if made_of is not None:
        found["made_of"] = made_of.as_json(kernel.vmlinux)
    return found


def planned_session(path: str, velf: Velf, vmlinux: Vmlinux | None) -> Session:
    """With a core that was written just now."""
    offset = None if velf.kaslr_offset is None else int(velf.kaslr_offset.value)
    symbols = None if vmlinux is None else real_path(vmlinux.file)
    is_made = vmlinux is not None and vmlinux.is_made
    arch, partial = velf.identity.arch, velf.coverage.is_partial
    return Session(os.path.abspath(path), arch, symbols, offset, partial, is_made=is_made)


def _crash(dump: Dump, kernel: Kernel) -> dict[str, object]:
    """What the log says about the crash, escaped; empty when there is no log or no crash."""
    try:
        found = dump_log(dump, kernel)
    except KdumpError as error:
        log.info("crash: %s", error.message)
        return {}
    crash = read_crash(found.log, crashed=crash_time(kernel.info) is not None)
    told: dict[str, object] = {"cpu": crash.cpu, "pid": crash.pid}
    told["message"] = None if crash.message is None else log_text(crash.message)
    told["comm"] = None if crash.comm is None else log_text(crash.comm)
    return told if any(value is not None for value in told.values()) else {}
