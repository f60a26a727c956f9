"""VMCOREINFO in physical memory, for dumps that come without the note.

A running kernel keeps the text twice: ``vmcoreinfo_data`` (pages of its own), and in front of a
crash or right at boot ``vmcoreinfo_note``, which is the same behind an ELF note header.  Both begin
with OSRELEASE, an optional BUILD-ID and PAGESIZE.  Memory may hold any number of other copies: page
cache, buffers of tools, kernels of earlier boots.  This module finds all of them; which one is
to be believed is decided in ``kernel.kernels``.

Reference: kernel/vmcore_info.c (kernel/crash_core.c until v6.8, kernel/kexec.c until v4.4):
crash_save_vmcoreinfo_init(), append_elf_note(); VMCOREINFO_BYTES is PAGE_SIZE in
include/linux/vmcore_info.h.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdump_elftool.errors import PageAbsentError
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME
from kdump_elftool.memory.physical import PhysicalMemory

log = logging.getLogger(__name__)

MARK = b"OSRELEASE="
LARGEST = 1 << 16
"""VMCOREINFO_BYTES with the largest pages that Linux has."""
MOST_TEXTS = 1000
"""Different texts looked at, of each form."""
_MOST_HITS = 4000
_PIECE = 8 << 20
_PAGE = 4096
_CLOSEST = 256  # no text is shorter
_HEAD = re.compile(
    rb"OSRELEASE=[!-~]{1,64}\n(?:BUILD-ID=[0-9a-f]{0,128}\n)?PAGESIZE=([1-9][0-9]{3,5})\n", re.ASCII
)
_HEAD_SIZE = 256
_NOT_TEXT = re.compile(rb"[^\n -~]")
NOTE_HEAD = 24
"""Three words, the name and its padding: what stands before the text in a note."""

NOTE, LOOSE_NOTE, PAGE, LOOSE = range(4)
"""Forms of a copy, best first: behind a note header that begins a page, behind another note header,
at the beginning of a page, anywhere."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Text:
    """One copy: where its first letter lies, what it says, and in which form it is kept."""

    paddr: int
    data: bytes
    form: int


@dataclass(frozen=True)
class Texts:
    """Copies that differ, by ascending address; ``complete`` unless there were too many to look at."""

    found: tuple[Text, ...]
    complete: bool = True


def find_texts(memory: PhysicalMemory, order: str, advance: Advance) -> Texts:
    """All of memory is read once, in large pieces; ``advance`` is told how many bytes were done."""
    found: dict[tuple[int, bytes], Text] = {}
    hits, kept = [0] * 4, [0] * 4
    complete = True
    for paddr in _marks(memory, advance):
        size = _note_size(memory, order, paddr)
        form = _form(paddr, size)
        hits[form] += 1
        if hits[form] > _MOST_HITS or kept[form] >= MOST_TEXTS:
            complete = False
            continue
        data = _letters(memory, paddr, size)
        if data and (form, data) not in found:
            kept[form] += 1
            found[form, data] = Text(paddr, data, form)
    log.info("VMCOREINFO looked for in memory: %d places, %d texts", sum(hits), len(found))
    return Texts(tuple(found.values()), complete)


def text_at(memory: PhysicalMemory, order: str, paddr: int) -> Text | None:
    """The copy that begins at ``paddr``, with or without a note header; None when there is none."""
    for begin in (paddr + NOTE_HEAD, paddr):
        try:
            head = memory.read(begin, len(MARK))
        except PageAbsentError:
            continue
        size = _note_size(memory, order, begin)
        if head == MARK and bool(size) == (begin != paddr):
            data = _letters(memory, begin, size)
            return Text(begin, data, _form(begin, size)) if data else None
    return None


def _marks(memory: PhysicalMemory, advance: Advance) -> Iterator[int]:
    """Physical addresses of lines that begin a VMCOREINFO."""
    buffer = bytearray(_HEAD_SIZE + _PIECE)
    view = memoryview(buffer)
    present = memory.present()
    for start, end in zip(present.start.tolist(), present.end.tolist(), strict=True):
        kept = 0  # bytes of the piece before, in front of this one
        for at in range(start, end, _PIECE):
            size = min(_PIECE, end - at)
            memory.read_present(at, view[kept : kept + size])  # what is unreadable becomes zeros
            filled = kept + size
            last = at + size == end
            # a beginning too near to the end of the piece is found in the next one
            stop = filled if last else filled - _HEAD_SIZE
            yield from (at - kept + hit for hit in _hits(buffer, at - kept, stop, filled))
            kept = 0 if last else _HEAD_SIZE
            buffer[:kept] = buffer[filled - kept : filled]
            advance(size)


def _hits(buffer: bytearray, base: int, stop: int, filled: int) -> Iterator[int]:
    """Where in the buffer texts begin, before ``stop``.

    What lies closer behind another beginning than a text is long is passed over, up to the next page:
    a dump full of beginnings costs little.
    """
    at = buffer.find(MARK, 0, filled)
    while 0 <= at < stop:
        if _HEAD.match(buffer, at, filled):
            yield at
        next_page = at + _PAGE - (base + at) % _PAGE
        at = buffer.find(MARK, min(at + _CLOSEST, next_page), filled)


def _form(paddr: int, note_size: int) -> int:
    if note_size:
        return NOTE if paddr % _PAGE == NOTE_HEAD else LOOSE_NOTE
    return PAGE if paddr % _PAGE == 0 else LOOSE


def _note_size(memory: PhysicalMemory, order: str, paddr: int) -> int:
    """Bytes of the text by the note header in front of it, 0 when there is none."""
    try:
        head = memory.read(paddr - NOTE_HEAD, NOTE_HEAD) if paddr >= NOTE_HEAD else b""
    except PageAbsentError:
        return 0
    if not head.endswith(NOTE_NAME + b"\0\0"):
        return 0
    name_size, size, kind = struct.unpack_from(order + "III", head)
    is_note = name_size == len(NOTE_NAME) + 1 and kind == 0 and size <= LARGEST
    return int(size) if is_note else 0


def _letters(memory: PhysicalMemory, paddr: int, note_size: int) -> bytes:
    """What a copy says; of a note exactly what its header counts.  b"" when that is no text."""
    if note_size:
        try:
            data = memory.read(paddr, note_size)
        except PageAbsentError:
            return b""
        return b"" if _NOT_TEXT.search(data.rstrip(b"\0")) else data
    data, most = b"", _PAGE
    while len(data) < most:
        size = _PAGE - (paddr + len(data)) % _PAGE
        try:
            data += memory.read(paddr + len(data), size)
        except PageAbsentError:
            break
        end = _NOT_TEXT.search(data, len(data) - size)
        if end:
            return data[: end.start()]
        # no text is longer than a page of its kernel
        head = _HEAD.match(data)
        most = min(int(head[1]), LARGEST) if head else most
    return data[:most]
