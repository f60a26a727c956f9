"""``dmesg`` in gdb: the kernel's log, as the command of that name shows it."""

from __future__ import annotations

from kdump_elftool.gdbside.command import Command, say, usage
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
        for line in lines(read_log(target())):
            say(show(line))
