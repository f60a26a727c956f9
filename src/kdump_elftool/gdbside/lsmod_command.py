"""``lsmod`` in gdb: the modules that the kernel has loaded."""

from __future__ import annotations

from kdump_elftool.gdbside.command import Command, say, usage, warn
from kdump_elftool.gdbside.target import target
from kdump_elftool.plain.lsmod import all_columns, seed_lines
from kdump_elftool.plain.modules import ModuleList, read_modules


class Lsmod(Command):
    """List the kernel's modules with their base addresses, as in /proc/modules.

    lsmod [-l]

    With -l also size, references, state, and which modules use one; in parentheses what it taints.
    The base address is where the module's text begins. 'kd-mods' loads the modules' symbols."""

    NAME = "lsmod"

    def run(self, words: list[str]) -> None:
        """One line a module."""
        if words not in ([], ["-l"]):
            raise usage(self)
        found = read_modules(target())
        tell_damage(found)
        for line in (all_columns if words else seed_lines)(found.modules, target().word):
            say(line)


def tell_damage(found: ModuleList) -> None:
    """What is wrong with the list."""
    if found.broken:
        warn("the list of modules is damaged: some may be missing")
    for vaddr in found.unreadable[:5]:
        warn(f"the module at {vaddr:#x} cannot be read")
    if len(found.unreadable) > 5:
        warn(f"{len(found.unreadable)} modules in all cannot be read")
