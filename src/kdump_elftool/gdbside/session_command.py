"""``kd-start``: what ``kdump-elftool gdb`` does first in gdb, once core and symbols are open.

The threads get the names of their tasks, the one that crashed is selected, and five lines say what this
is.  What is known comes from the notes of the core (docs/notes.md), or else from the kernel's log, and from
the kernel's own variable where neither tells the CPU.
"""

from __future__ import annotations

from typing import Any

import gdb

from kdump_elftool.errors import KdumpError
from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.frames import guesses, without_advice
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.crash_log import read_crash
from kdump_elftool.plain.crash_summary import crash_cpu
from kdump_elftool.plain.printk import read_log
from kdump_elftool.safe_text import log_text

_WIDTH = 14
_LONGEST = 200
_FIRST = ("kd-info", "kd-bt", "kd-task", "dmesg", "ps", "lsmod")


class Start(Command):
    """Name the threads after their tasks, go to the one that crashed, and say in five lines what this is.

    kd-start

    What 'kdump-elftool gdb' does first."""

    NAME = "kd-start"

    def run(self, words: list[str]) -> None:
        """Threads first: the summary says where one is."""
        if words:
            raise usage(self)
        kernel = target()
        rows = kernel.tasks_by_lwp()
        threads = gdb.selected_inferior().threads()
        for thread in threads:
            row = rows.get(thread.ptid[1])
            if row is not None:
                thread.name = _text(row.get("comm"))
        crash = kernel.summary.get("crash")
        crash = crash if isinstance(crash, dict) else _logged(kernel)
        cpu = _number(crash.get("cpu"))
        cpu = cpu if cpu is not None and cpu >= 0 else crash_cpu(kernel)
        crashed = _crashed(cpu, _number(crash.get("pid")), rows, threads)
        if crashed is not None:
            crashed.switch()
        if guesses(kernel):
            without_advice()
        for label, value in _summary(kernel, crash, rows, len(threads)):
            say(f"{label + ':':<{_WIDTH}} {value}")


def _logged(kernel: GdbTarget) -> dict[str, Any]:
    """What the log in memory tells, as the note of a core that was made for a session has it."""
    try:
        crash = read_crash(read_log(kernel), crashed=crash_cpu(kernel) is not None)
    except KdumpError:
        return {"message": "unknown: the log cannot be read"}
    message = None if crash.message is None else log_text(crash.message)
    return {"cpu": crash.cpu, "pid": crash.pid, "message": message}


def _crashed(cpu: int | None, pid: int | None, rows: dict[int, Any], threads: Any) -> Any:
    """The thread that this is told of; None when nothing is, or there is no such thread."""
    by_lwp = {thread.ptid[1]: thread for thread in threads}
    if rows:
        idle = None if cpu is None else -(cpu + 1)
        wanted = [pid] if pid else [idle] if pid == 0 else [*_running(cpu, rows), idle]
        return next((by_lwp[lwp] for lwp in wanted if lwp in by_lwp), None)
    # a core without tasks has a thread for each CPU, numbered by pid or by CPU, in the order of the CPUs
    if pid is not None and pid > len(by_lwp) and pid in by_lwp:
        return by_lwp[pid]
    in_order = sorted(threads, key=lambda thread: thread.num)
    return in_order[cpu] if cpu is not None and cpu < len(in_order) else None


def _running(cpu: int | None, rows: dict[int, Any]) -> list[int]:
    """What the CPU ran."""
    return [lwp for lwp, row in rows.items() if row.get("on_cpu") is True and _number(row.get("cpu")) == cpu]


def _summary(kernel: GdbTarget, crash: dict[str, Any], rows: dict[int, Any], threads: int) -> Any:
    yield "release", _text(kernel.fact("release")) or "unknown"
    yield "panic message", _text(crash.get("message")) or "none in the log"
    selected = gdb.selected_thread()
    row = None if selected is None else rows.get(selected.ptid[1])
    task = f"thread {selected.num}" if selected is not None else "none"
    if row is not None:
        on_cpu = f", on CPU {_number(row.get('cpu'))}" if row.get("on_cpu") is True else ""
        task = f"{_text(row.get('comm'))}, pid {_number(row.get('tid'))}{on_cpu} ({task})"
    yield "task", task
    if rows:
        running = sum(row.get("on_cpu") is True for row in rows.values())
        yield "tasks", f"{len(rows)}, {running} of them on a CPU; 'info threads', 'thread find NAME'"
    else:
        yield "cpus", f"{threads}; the tasks that none was running are no threads of this core"
    yield "commands", _commands()


def _commands() -> str:
    """Those to begin with, and where the others are."""
    from kdump_elftool.gdbside.loader import COMMANDS  # which has this module's, too

    names = {command.NAME for command in COMMANDS}
    return f"{', '.join(name for name in _FIRST if name in names)}; all: 'help user-defined'"


def _number(value: Any) -> int | None:
    return value if type(value) is int and -(1 << 31) <= value < 1 << 31 else None


def _text(value: Any) -> str:
    """What stands in the core is escaped already, if nobody changed it."""
    return "".join(char if " " <= char <= "~" else "?" for char in str(value or ""))[:_LONGEST]
