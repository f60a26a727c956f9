"""A crash in a few lines: which kernel, what it said, where, and what its tasks were doing.

Each line is found by itself: what is missing costs that line alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from kdump_elftool.errors import FaultError, KdumpError
from kdump_elftool.plain.crash_log import CrashLog, last_stamp, read_crash
from kdump_elftool.plain.printk import Log, read_log
from kdump_elftool.plain.taints import NEEDS as TAINT_NEEDS
from kdump_elftool.plain.taints import kernel_taints, taint_letters
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.safe_text import log_text, printable

_CRASHED = (("panic_cpu", 0), ("crashing_cpu", 1))  # each with the lowest value that tells a CPU
NEEDS = (
    *("SYMBOL(init_uts_ns)", "OFFSET(uts_namespace.name)"),
    *("OFFSET(new_utsname.release)", "OFFSET(new_utsname.machine)"),
    *(f"SYMBOL({name})" for name, _ in _CRASHED),
    *TAINT_NEEDS,
)
"""What this asks of a kernel, beside what reads its log."""
NSEC = 10**9
_UTS_LENGTH = 65  # __NEW_UTS_LEN + 1


def summary(
    target: Target, states: Callable[[], Iterable[str]], *, crashed: bool = False
) -> Iterator[tuple[str, str]]:
    """Labels and values; ``states`` has the state of each task, a letter as in ps.  Raises nothing.

    ``crashed``: something else proves that it did (``read_crash``).
    """
    yield "release", _or_why(lambda: _release(target))
    try:
        log = read_log(target)
    except KdumpError as error:
        yield "panic message", f"unknown: {error.message}"
    else:
        yield from _crash(target, log, crashed)
    yield "tasks", _or_why(lambda: _tasks(states()))
    yield "tainted", _or_why(lambda: _tainted(target))


def crash_cpu(target: Target) -> int | None:
    """The CPU that panicked or went for the crash kernel; None while none has.

    Both take ``panic_cpu`` (v4.5 on), which is -1 until then; where it is there it is believed alone.
    x86's ``crashing_cpu`` is -1 since 5bc329503e81 ("x86/mce: Handle broadcasted MCE gracefully with
    kexec", in v4.12).  In older kernels it begins as 0, which says nothing then.
    """
    for name, lowest in _CRASHED:
        vaddr = target.symbol(name)
        try:
            cpu = None if vaddr is None else unsigned(target, vaddr, 4)
        except FaultError:
            continue
        if cpu is not None:
            return cpu if lowest <= cpu < 1 << 16 else None
    return None


def _crash(target: Target, log: Log, crashed: bool) -> Iterator[tuple[str, str]]:
    cpu = crash_cpu(target)
    crash = read_crash(log, crashed=crashed or cpu is not None)
    yield "panic message", "none in the log" if crash.message is None else log_text(crash.message)
    if crash.oops is not None and crash.oops != crash.message:
        yield "last oops", log_text(crash.oops)
    where = _where(crash, cpu)
    if where:
        yield "by", where
    last = last_stamp(log)
    if last is not None:
        yield "uptime", f"{uptime(last)} at the last message"


def uptime(nsec: int) -> str:
    """Hours, minutes and seconds."""
    seconds = nsec // NSEC
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _where(crash: CrashLog, cpu: int | None) -> str:
    parts = []
    if crash.cpu is not None or cpu is not None:
        parts.append(f"CPU {crash.cpu if crash.cpu is not None else cpu}")
    if crash.pid is not None:
        parts.append(f"pid {crash.pid}")
    if crash.comm is not None:
        parts.append(f"comm {log_text(crash.comm)}")
    return ", ".join(parts)


def _release(target: Target) -> str:
    uts, name = target.symbol("init_uts_ns"), target.offset("uts_namespace.name")
    if uts is None or name is None:
        return "unknown: the address of init_uts_ns is not known"
    # OFFSET(new_utsname.release) is 130 in every kernel that has namespaces; the six texts are of one length
    texts = []
    for member, otherwise in (("release", 2 * _UTS_LENGTH), ("machine", 4 * _UTS_LENGTH)):
        at = target.offset(f"new_utsname.{member}")
        data = target.read(uts + name + (otherwise if at is None else at), _UTS_LENGTH)
        texts.append(printable(data.split(b"\0", 1)[0]))
    return f"{texts[0]} ({texts[1]})"


def _tasks(states: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    each = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    return f"{sum(counts.values())}: {each}"


def _tainted(target: Target) -> str:
    taints = kernel_taints(target)
    if taints is None:
        return "unknown: the address of tainted_mask is not known"
    return f"{taint_letters(taints)} ({taints:#x})" if taints else "no"


def _or_why(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except KdumpError as error:
        return f"unknown: {error.message}"
