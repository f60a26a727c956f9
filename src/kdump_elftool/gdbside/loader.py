"""Everything that ``source kdump_gdbinit`` adds to gdb."""

from __future__ import annotations

from kdump_elftool.gdbside import arm64_unwinder, frame_names
from kdump_elftool.gdbside.backtrace_command import Backtraces
from kdump_elftool.gdbside.blocked_command import BlockedTasks
from kdump_elftool.gdbside.command import Command
from kdump_elftool.gdbside.functions import ContainerOf, CurrentOf, PerCpuOf, TaskOf
from kdump_elftool.gdbside.info_command import Info
from kdump_elftool.gdbside.log_command import Dmesg
from kdump_elftool.gdbside.lsmod_command import Lsmod
from kdump_elftool.gdbside.memory_commands import KdPage, KdVtop
from kdump_elftool.gdbside.modules_command import KdMods
from kdump_elftool.gdbside.percpu_command import PerCpuCommand
from kdump_elftool.gdbside.process_commands import KdFiles, KdVmas
from kdump_elftool.gdbside.ps_command import Ps, PsOld
from kdump_elftool.gdbside.session_command import Start
from kdump_elftool.gdbside.task_command import TaskCommand
from kdump_elftool.gdbside.vminfo_commands import VMINFO_COMMANDS
from kdump_elftool.gdbside.walk_commands import KdList, KdRbtree, KdXarray

COMMANDS: tuple[type[Command], ...] = (
    Dmesg,
    Ps,
    PsOld,
    Lsmod,
    *VMINFO_COMMANDS,
    Backtraces,
    BlockedTasks,
    Info,
    PerCpuCommand,
    TaskCommand,
    KdMods,
    KdVtop,
    KdPage,
    KdList,
    KdRbtree,
    KdXarray,
    KdFiles,
    KdVmas,
    Start,
)
FUNCTIONS = (
    TaskOf,
    PerCpuOf,
    CurrentOf,
    ContainerOf,
)


def load() -> None:
    """Register it all; sourced again, the new takes the place of the old."""
    arm64_unwinder.register()
    frame_names.register()
    for command in COMMANDS:
        command()
    for function in FUNCTIONS:
        function()
