"""The memory of a crashed kernel by a device: /dev/oldmem, /dev/mem, read at physical addresses (-I oldmem).

A vmcore's headers, as /proc/vmcore has them, say which memory there is, and hold the notes; its own data is
not looked at.  What the device does not give (EIO, EPERM, EFAULT, its end) is absent, page by page.
Source: drivers/char/mem.c of Linux (``read_mem``: EPERM for what is not allowed, EFAULT), and ``read_oldmem``
in fs/proc/vmcore.c.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from kdump_elftool.addr import U64, Bools
from kdump_elftool.errors import UsageError
from kdump_elftool.files import ByteSource, InputFile
from kdump_elftool.formats.base import Dump, Format, OpenOptions
from kdump_elftool.formats.elfcore import open_elfcore
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.paged import Bytes2D, PagedReader, Trouble
from kdump_elftool.memory.physical import PhysicalMemory

NAME = "oldmem"
PAGE = 4096
_MOST_REASONS = 1 << 16


class DeviceReader(PagedReader):
    """Pages of a device: page ``n`` is at physical address ``n * PAGE``."""

    page_size = PAGE

    def __init__(self, device: InputFile) -> None:
        self._device = device
        self._why: dict[int, str] = {}

    def read_pages(self, pages: U64, out: Bytes2D) -> Bools:
        """As :class:`PagedReader`: in reads as long as pages follow each other."""
        good = np.zeros(len(pages), dtype=np.bool_)
        breaks = np.flatnonzero(np.diff(pages) != np.uint64(1)) + 1
        for rows in np.split(np.arange(len(pages)), breaks):
            if len(rows):
                first, last = int(rows[0]), int(rows[-1]) + 1
                self._read_run(int(pages[first]), out[first:last], good[first:last])
        return good

    def _read_run(self, page: int, out: Bytes2D, good: Bools) -> None:
        """Pages one behind the other; what cannot be read is gone over one by one."""
        at = 0
        while at < len(out):
            count, why = self._read(page + at, out[at:])
            good[at : at + count] = True
            at += count
            if why is not None:
                out[at] = 0
                if len(self._why) < _MOST_REASONS:
                    self._why[page + at] = why
                at += 1

    def _read(self, page: int, out: Bytes2D) -> tuple[int, str | None]:
        """How many whole pages came, and why the next one did not."""
        view = out.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._device.fd, [view[done:]], page * PAGE + done)
            except OSError as error:
                return done // PAGE, f"{self._device.path}: {error.strerror}"
            if got == 0:
                return done // PAGE, f"{self._device.path} ends before"
            done += got
        return len(out), None

    def trouble(self, page: int) -> Trouble:
        """As :class:`PagedReader`."""
        return Trouble(self._why.get(page, f"{self._device.path} does not give it"), None)


def open_oldmem(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open headers and a device, in this order.  Raises as open_elfcore does, UsageError."""
    if len(files) != 2 or not isinstance(files[1], InputFile):
        raise UsageError("-I oldmem takes a device (-i), and the headers of a vmcore (-v)")
    dump = open_elfcore(files[:1], replace(options, zero_excluded=False))
    declared = dump.memory.declared
    extents = Extents(declared.start, declared.end - declared.start, declared.start)
    memory = PhysicalMemory(DeviceReader(files[1]), extents, declared)
    return replace(dump, format=NAME, memory=memory, lost=(), format_source="the command line")


FORMAT = Format(NAME, lambda _head: False, open_oldmem, sets=True, members_layered=False)
