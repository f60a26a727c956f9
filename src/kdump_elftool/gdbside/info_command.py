"""``kd-info``: a crash in a few lines."""

from __future__ import annotations

from collections.abc import Iterable

from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.find_task import listed_tasks
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.crash_summary import summary

_WIDTH = 14


class Info(Command):
    """Show which kernel this is, what it died of and where, and what its tasks were doing.

    kd-info

    Message, CPU, pid and comm are what the log says of the last panic, or of the last oops where
    the kernel went down without one. Tasks are counted by their states as in ps."""

    NAME = "kd-info"

    def run(self, words: list[str]) -> None:
        """Label and value, a line each."""
        if words:
            raise usage(self)
        kernel = target()
        crash = kernel.summary.get("crash")
        crashed = isinstance(crash, dict) and crash.get("message") is not None
        for label, value in summary(kernel, lambda: _states(kernel), crashed=crashed):
            say(f"{label + ':':<{_WIDTH}} {value}")


def _states(kernel: GdbTarget) -> Iterable[str]:
    """From the core's own table where it has one, else from the kernel's lists."""
    rows = kernel.tasks()
    if rows:
        return [str(row.get("state"))[:1] for row in rows]
    return [task.state for task in listed_tasks(kernel).tasks]
