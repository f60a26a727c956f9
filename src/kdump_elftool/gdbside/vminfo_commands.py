"""``vminfo_qemu_base``, ``vminfo_qemu_all`` and ``thread_vminfo_*`` in gdb: the lines of a file for ``-e``.

The original tool needed them for what VMCOREINFO does not tell.  They come from the core's own note or from
the types of a vmlinux; ``kdump-elftool vminfo`` prints the same without gdb.
"""

from __future__ import annotations

import re

import gdb

from kdump_elftool.gdbside.command import Command, say, usage, warn
from kdump_elftool.gdbside.core_file import core_path
from kdump_elftool.gdbside.release import release_of
from kdump_elftool.gdbside.target import GdbTarget, symbols_alone, target
from kdump_elftool.plain.vminfo import BASE, MACHINES, PAGES, THREADS, THREADS_OF, header_lines, known_lines

_PAGE = re.compile(rb"^PAGESIZE=(\d{4,7})$", re.MULTILINE)
_SMALL_PAGES = re.compile(r"i386|armv\d")
"""Machines by gdb's names (i386:x86-64, armv7) whose kernels have pages of 4 KB."""


class _VmInfo(Command):
    KEYS: tuple[str, ...] = ()
    HEADER = False

    def run(self, words: list[str]) -> None:
        """One line a key."""
        if words:
            raise usage(self)
        kernel = _kernel()
        if self.HEADER:
            for line in header_lines(release_of(kernel), _page_size(kernel)):
                say(line)
        for line in known_lines(self.KEYS, lambda kind, name: _ask(kernel, kind, name)):
            say(line)


class VmInfoBase(_VmInfo):
    """Print what topelf and tovelf need to know of a kernel without VMCOREINFO: lines for -e.

    vminfo_qemu_base

    As kdump-elftool vminfo --keys base prints it."""

    NAME = "vminfo_qemu_base"
    KEYS = BASE
    HEADER = True


class VmInfoAll(_VmInfo):
    """Print all that topelf and tovelf ask of a kernel without VMCOREINFO: lines for -e.

    vminfo_qemu_all

    As vminfo_qemu_base, and what tells the kinds of pages; a kernel's answers only."""

    NAME = "vminfo_qemu_all"
    KEYS = (*BASE, *PAGES)
    HEADER = True


class _ThreadVmInfo(_VmInfo):
    MACHINE = ""

    def run(self, words: list[str]) -> None:
        """Say so where the core is of another machine."""
        core = _kernel().core
        if core is not None and core.machine != MACHINES[self.MACHINE]:
            warn(f"this core is not of {self.MACHINE}")
        super().run(words)


def _threads(machine: str) -> type[_ThreadVmInfo]:
    name = f"thread_vminfo_{machine}"
    text = f"""Print what tovelf -p needs to know of {machine} kernels: lines for -e.

    {name}

    As kdump-elftool vminfo --keys thread prints it."""
    members = {
        "__doc__": text,
        "NAME": name,
        "MACHINE": machine,
        "KEYS": (*THREADS, *THREADS_OF[machine]),
    }
    return type(name, (_ThreadVmInfo,), members)


VMINFO_COMMANDS: tuple[type[Command], ...] = (VmInfoBase, VmInfoAll, *map(_threads, THREADS_OF))


def _kernel() -> GdbTarget:
    if core_path() is not None:
        return target()
    warn("no core is open: addresses are the vmlinux's; -e moves them where KASLR moved the kernel")
    return symbols_alone()


def _ask(kernel: GdbTarget, kind: str, name: str) -> int | None:
    ask = {
        "SYMBOL": kernel.symbol,
        "OFFSET": kernel.offset,
        "SIZE": kernel.size,
        "LENGTH": kernel.length,
        "NUMBER": kernel.number,
    }
    return ask[kind](name)


def _page_size(kernel: GdbTarget) -> int | None:
    """None where nothing tells it: the wrong one would do harm."""
    found = None if kernel.core is None else _PAGE.search(kernel.core.vmcoreinfo)
    if found is not None:
        return int(found[1])
    named = re.findall(r'"([^"]+)"', gdb.execute("show architecture", to_string=True))
    return 4096 if named and _SMALL_PAGES.match(named[-1]) else None
