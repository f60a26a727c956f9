"""Everything that ``source kdump_gdbinit`` adds to gdb."""

from __future__ import annotations

from kdump_elftool.gdbside import arm64_unwinder
from kdump_elftool.gdbside.backtrace_command import Backtraces
from kdump_elftool.gdbside.log_command import Dmesg
from kdump_elftool.gdbside.ps_command import Ps, PsOld

COMMANDS = (
    Dmesg,
    Ps,
    PsOld,
    Backtraces,
)


def load() -> None:
    """Register it all; sourced again, the new takes the place of the old."""
    arm64_unwinder.register()
    for command in COMMANDS:
        command()
