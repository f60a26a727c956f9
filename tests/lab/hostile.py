"""A core whose names and log would do harm if a debugger took them for anything but text.

What is planted is written over names that the kernel has: every one of PLANTED once at least.
"""

from __future__ import annotations

import mmap
from itertools import cycle
from pathlib import Path

from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.plain.modules import read_modules
from kdump_elftool.plain.tasks import COMM_SIZE, all_tasks

VICTIM = "pwned"
"""No such file is there afterwards."""
PLANTED = (
    b"\x1b]0;pwn\x07\r",
    b"\nshell >pwned",
    b"\n!>pwned\n",
    b"';shell >pwned",
    b'"\n>pwned #',
    b"$(>pwned)`x`",
    b"\x9b31m\xc2\x9b2J",
    b"\\n%s%n{0}\x7f",
    b"\x08\x08\x00junk",
)
"""Of at most 15 bytes, as many as a task's name has."""
_MODULE_NAME = 55


def plant(velf: Path, lines: list[bytes]) -> None:
    """Into tasks, modules and these lines of the log, wherever memory has them."""
    with InputFile.open(str(velf)) as file:
        segments = ElfFile.read(file).segments.of_type(1)
        dump = open_dump(file)
        target = DumpTarget.of(dump, open_kernel(dump, KernelRequest()))
        comm, name = target.offset("task_struct.comm"), target.offset("module.name")
        assert comm is not None and name is not None
        places = [(task.vaddr + comm, COMM_SIZE) for task in all_tasks(target).tasks if task.tid != 1]
        places += [(module.vaddr + name, _MODULE_NAME) for module in read_modules(target).modules]
    columns = (segments.p_vaddr, segments.p_offset, segments.p_filesz)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    with velf.open("r+b") as out, mmap.mmap(out.fileno(), 0) as core:
        for (vaddr, size), text in zip(places, cycle(PLANTED)):
            for start, offset, length in rows:
                if start <= vaddr and vaddr + size <= start + length:
                    at = offset + vaddr - start
                    core[at : at + size] = text.ljust(size, b"\0")
        for line, text in zip(lines, cycle(PLANTED)):
            at = core.find(line)
            assert at >= 0, line
            while at >= 0:
                core[at : at + len(line)] = text.replace(b"\0", b"\1").ljust(len(line), b".")
                at = core.find(line, at + 1)
