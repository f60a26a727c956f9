"""The memory of a crashed kernel by a device: /dev/oldmem, /dev/mem, read at physical addresses (-I oldmem).

A vmcore's headers, as /proc/vmcore has them, say which memory there is, and hold the notes; its own data is
not looked at.  What the device does not give (EIO, EPERM, EFAULT, its end) is absent, page by page
(``memory.unreadable``).
Source: drivers/char/mem.c of Linux (``read_mem``: EPERM for what is not allowed, EFAULT), and ``read_oldmem``
in fs/proc/vmcore.c.
"""

from __future__ import annotations

from dataclasses import replace

from kdump_elftool.errors import UsageError
from kdump_elftool.files import ByteSource, InputFile
from kdump_elftool.formats.base import Dump, Format, OpenOptions
from kdump_elftool.formats.elfcore import open_elfcore
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory

NAME = "oldmem"


def open_oldmem(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open headers and a device, in this order.  Raises as open_elfcore does, UsageError."""
    if len(files) != 2 or not isinstance(files[1], InputFile):
        raise UsageError("-I oldmem takes a device (-i), and the headers of a vmcore (-v)")
    dump = open_elfcore(files[:1], replace(options, zero_excluded=False))
    declared = dump.memory.declared
    extents = Extents(declared.start, declared.end - declared.start, declared.start)
    memory = PhysicalMemory(files[1], extents, declared)
    return replace(dump, format=NAME, memory=memory, lost=(), format_source="the command line")


FORMAT = Format(NAME, lambda _head: False, open_oldmem, sets=True, members_layered=False)
