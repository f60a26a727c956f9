"""``dmesg`` in gdb: the kernel's log, as the command of that name shows it."""

from __future__ import annotations

from kdump_elftool.gdbside.command import Command, say, usage, warn
from kdump_elftool.gdbside.target import target
from kdump_elftool.plain.log_lines import plain_line, raw_line
from kdump_elftool.plain.printk import lines, read_log


class Dmesg(Command):
    """Show the kernel's log.

    dmesg [-r]

    With -r each line begins with <facility and level>, as dmesg -r has it."""

    NAME = "dmesg"

    def run(self, words: list[str]) -> None:
        """One line a line."""
        if words not in ([], ["-r"]):
            raise usage(self)
        show = raw_line if words else plain_line
        log = read_log(target())
        for line in lines(log):
            say(show(line))
        if log.lost is not None:
            warn(log.lost)
