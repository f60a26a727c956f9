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

import itertools
import logging
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from kdump_elftool.errors import PageAbsentError
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME
from kdump_elftool.memory.physical import PhysicalMemory

log = logging.getLogger(__name__)

MARK = b"OSRELEASE="
LARGEST = 1 << 16
"""VMCOREINFO_BYTES with the largest pages that Linux has."""
MOST_TEXTS = 1000
"""Different texts looked at, of each form."""
LONGEST = 1024
"""Of what else is looked for."""
_MOST_PLACES = 1 << 17
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
class Wanted:
    """Bytes to look for, at least 16 and at most LONGEST; ``page_offset`` is where in a page they begin."""

    data: bytes
    page_offset: int | None = None


@dataclass(frozen=True)
class Texts:
    """Copies that differ, by ascending address; ``complete`` unless there were too many to look at.

    ``places`` are the physical addresses of whatever else was looked for, by what that was.
    """

    found: tuple[Text, ...]
    complete: bool = True
    places: Mapping[Wanted, tuple[int, ...]] = field(default_factory=dict)

    def moved(self, by: int) -> Texts:
        """The same with ``by`` added to all addresses."""
        found = tuple(replace(text, paddr=text.paddr + by) for text in self.found)
        places = {wanted: tuple(at + by for at in places) for wanted, places in self.places.items()}
        return Texts(found, self.complete, places)


@dataclass
class _Kept:
    """What was found so far; of each form no more than is bearable."""

    memory: PhysicalMemory
    order: str
    found: dict[tuple[int, bytes], Text] = field(default_factory=dict)
    hits: list[int] = field(default_factory=lambda: [0] * 4)
    kept: list[int] = field(default_factory=lambda: [0] * 4)
    complete: bool = True

    def add(self, paddr: int) -> None:
        """A place at which a text begins."""
        size = _note_size(self.memory, self.order, paddr)
        form = _form(paddr, size)
        self.hits[form] += 1
        if self.hits[form] > _MOST_HITS or self.kept[form] >= MOST_TEXTS:
            self.complete = False
            return
        data = _letters(self.memory, paddr, size)
        if data and (form, data) not in self.found:
            self.kept[form] += 1
            self.found[form, data] = Text(paddr, data, form)


def find_texts(
    memory: PhysicalMemory, order: str, advance: Advance, others: tuple[Wanted, ...] = ()
) -> Texts:
    """All of memory is read once, in large pieces; ``advance`` is told how many bytes were done.

    ``others`` are looked for as well.
    """
    kept = _Kept(memory, order)
    places: dict[Wanted, list[int]] = {wanted: [] for wanted in others}
    for piece in _pieces(memory, max([_HEAD_SIZE, *(len(wanted.data) for wanted in others)]), advance):
        for paddr in _hits(piece):
            kept.add(paddr)
        for wanted, found in places.items():
            found += itertools.islice(_places(piece, wanted), _MOST_PLACES - len(found))
    log.info("VMCOREINFO looked for in memory: %d places, %d texts", sum(kept.hits), len(kept.found))
    seen = {wanted: tuple(found) for wanted, found in places.items()}
    return Texts(tuple(kept.found.values()), kept.complete, seen)


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


@dataclass(frozen=True)
class _Piece:
    """``filled`` bytes of memory from ``base`` on; what begins at ``stop`` or behind is in the next piece."""

    buffer: bytearray
    base: int
    stop: int
    filled: int


def _pieces(memory: PhysicalMemory, overlap: int, advance: Advance) -> Iterator[_Piece]:
    """All of memory; what is at most ``overlap`` bytes long is whole in one of them."""
    buffer = bytearray(overlap + _PIECE)
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
            stop = filled if last else max(filled - overlap, 0)
            yield _Piece(buffer, at - kept, stop, filled)
            kept = 0 if last else min(overlap, filled)
            buffer[:kept] = buffer[filled - kept : filled]
            advance(size)


def _places(piece: _Piece, wanted: Wanted) -> Iterator[int]:
    """Physical addresses of what is wanted."""
    at = piece.buffer.find(wanted.data, 0, piece.filled)
    while 0 <= at < piece.stop:
        if wanted.page_offset is None or (piece.base + at - wanted.page_offset) % _PAGE == 0:
            yield piece.base + at
        at = piece.buffer.find(wanted.data, at + 1, piece.filled)


def _hits(piece: _Piece) -> Iterator[int]:
    """Physical addresses at which texts begin.

    What lies closer behind another beginning than a text is long is passed over, up to the next page:
    a dump full of beginnings costs little.
    """
    buffer, filled = piece.buffer, piece.filled
    at = buffer.find(MARK, 0, filled)
    while 0 <= at < piece.stop:
        if _HEAD.match(buffer, at, filled):
            yield piece.base + at
        next_page = at + _PAGE - (piece.base + at) % _PAGE
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
