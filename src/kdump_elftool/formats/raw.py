"""Raw memory: flat files of a guest's memory, each of which begins at an address that the user says.

QEMU's pmemsave and memory-backend-file write such files, and the memory files of Firecracker's and
Cloud Hypervisor's snapshots are laid out like this.  There is no header: nothing in the content tells
the format, the address or the architecture, so that only ``-I raw`` makes a file one.  Nothing around
a file is taken off either: memory may begin with the page of any compressed file.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np

from kdump_elftool.addr import MASK64, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.errors import CorruptDumpError, FormatError, UsageError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.base import Dump, Format, Lost, OpenOptions, there
from kdump_elftool.formats.lime import PADDR_LIMIT, image_dump
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory

NAME = "raw"


@dataclass(frozen=True)
class Joined:
    """Files one behind the other as a ByteSource; ``starts`` is where each begins, one offset a file."""

    files: tuple[ByteSource, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, files: tuple[ByteSource, ...]) -> Joined:
        """``files`` in this order; none is empty."""
        starts = [0]
        for file in files:
            starts.append(starts[-1] + file.size)
        return cls(files, tuple(starts[:-1]))

    @property
    def path(self) -> str:
        """The first file's, and how many others there are."""
        more = len(self.files) - 1
        return self.files[0].path + (f" and {more} more" if more else "")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.starts[-1] + self.files[-1].size

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the files are said by who opens them."""
        return ()

    @property
    def missing(self) -> Ranges:
        """Lost bytes of all files, as offsets here."""
        gaps = [file.missing for file in self.files]
        moved = [np.uint64(start) for start in self.starts]
        return merge_ranges(
            np.concatenate([gap.start + by for gap, by in zip(gaps, moved, strict=True)]),
            np.concatenate([gap.end + by for gap, by in zip(gaps, moved, strict=True)]),
        )

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of the file that holds ``offset``, and of those behind it."""
        data = bytearray()
        while len(data) < size and offset + len(data) < self.size:
            file, start = self._holder(offset + len(data))
            got = file.read_at(offset + len(data) - start, size - len(data))
            data += got
            if offset + len(data) < start + file.size:
                break
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``.  Raises CorruptDumpError where the bytes cannot be had."""
        done = 0
        while done < len(view):
            file, start = self._holder(offset + done)
            room = min(len(view) - done, start + file.size - offset - done)
            if room <= 0:
                raise CorruptDumpError(file.path, "the file ends here", file_offset=file.size)
            file.read_into(offset + done - start, view[done : done + room])
            done += room

    def _holder(self, offset: int) -> tuple[ByteSource, int]:
        index = bisect_right(self.starts, offset) - 1
        return self.files[index], self.starts[index]


def open_raw(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open flat files, each at its address in ``options.addresses`` (one file without: at 0).

    Raises FormatError (an empty file), UsageError (no address, pieces that overlap, impossible ones).
    """
    addresses = options.addresses or (0,)
    if len(addresses) != len(files):
        raise UsageError(
            f"{len(files)} files of raw memory are given, and not where each of them lies",
            hint="name each as FILE@ADDRESS",
        )
    for file in files:
        if not file.size:
            raise FormatError(file.path, "the file is empty", hint="was the memory written at all?")
    _check_places(files, addresses)
    joined = Joined.of(files)
    start, at = u64(list(addresses)), u64(list(joined.starts))
    size = u64([file.size for file in files])
    paddr, position, length = there(joined, start, at, size)
    declared = merge_ranges(start, start + size)
    memory = PhysicalMemory(joined, normalise(paddr, length, position), declared)
    missing = subtract_ranges(declared, memory.present())
    lost = Lost("paddr", f"missing from {joined.path}", missing)
    dump = image_dump(NAME, joined, options, memory, (lost,), ())
    return replace(dump, format_source="the command line")


def moved(dump: Dump, by: int) -> Dump:
    """The same memory ``by`` bytes higher (or lower).  Raises UsageError where no machine has memory."""
    declared = dump.memory.declared
    lowest, end = int(declared.start[0]) + by, int(declared.end[-1]) + by
    if lowest < 0 or end > PADDR_LIMIT:
        raise UsageError(
            f"{dump.file.path} would reach from {lowest:#x} to {end:#x}: no machine has memory there"
        )
    shift = np.uint64(by & MASK64)
    lost = tuple(
        replace(part, ranges=Ranges(part.ranges.start + shift, part.ranges.end + shift)) for part in dump.lost
    )
    return replace(dump, memory=dump.memory.moved(by), lost=lost)


def _check_places(files: tuple[ByteSource, ...], addresses: tuple[int, ...]) -> None:
    """Raises UsageError unless the pieces lie beside each other in memory that can be."""
    places = sorted(
        ((address, file) for address, file in zip(addresses, files, strict=True)), key=lambda place: place[0]
    )
    reach, before = 0, files[0]
    for address, file in places:
        end = address + file.size
        if end > PADDR_LIMIT:
            raise UsageError(
                f"{file.path} would reach from {address:#x} to {end:#x}: no machine has memory there",
                hint="the address is that of its first byte; hexadecimal ones begin with 0x",
            )
        if address < reach:
            raise UsageError(
                f"{before.path} reaches up to {reach:#x}, and {file.path} begins at {address:#x}",
                hint="pieces of memory may not overlap",
            )
        reach, before = end, file


FORMAT = Format(NAME, lambda _head: False, open_raw, sets=True, layered=False)
