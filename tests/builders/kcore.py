"""/proc/kcore as a kernel would show it of a dump's memory: generated, headers as in fs/proc/kcore.c.

It seems to have 128 TB, so it is no file but something that reads like one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdump_elftool.addr import NO_RANGES
from tests.builders.elfcore import EM_X86_64, NoteSpec

MASK = (1 << 47) - 1
DATA_OFFSET = 0x3000
VMALLOC, VMEMMAP = (0xFFFFC90000000000, 1 << 45), (0xFFFFEA0000000000, 1 << 40)
NOWHERE = (1 << 64) - 1
FORMS = ("v4.4", "v4.11", "v4.19")
"""Without physical addresses; with; with VMCOREINFO."""

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Area:
    """One PT_LOAD; ``source`` is where its bytes are for ``read``, None of those that are not there."""

    vaddr: int
    size: int
    paddr: int
    source: int | None = None

    @property
    def offset(self) -> int:
        return (self.vaddr & MASK) + DATA_OFFSET


@dataclass
class Kcore:
    """Reads like a file; ``read`` has the memory."""

    head: bytes
    areas: Sequence[Area]
    read: Read
    path: str = "/proc/kcore"
    size: int = MASK + 1 + DATA_OFFSET
    warnings: tuple[str, ...] = ()
    missing = NO_RANGES
    asked: list[int] = field(default_factory=list)

    def read_at(self, offset: int, size: int, /) -> bytes:
        view = bytearray(size)
        self.read_into(offset, memoryview(view))
        return bytes(view)

    def read_into(self, offset: int, view: memoryview, /) -> None:
        """What is not there reads as zeros, as in the kernel's."""
        end = offset + len(view)
        view[:] = bytes(len(view))
        view[: max(len(self.head) - offset, 0)] = self.head[offset:end]
        for area in self.areas:
            low, high = max(offset, area.offset), min(end, area.offset + area.size)
            if low < high and area.source is not None:
                view[low - offset : high - offset] = self.read(area.source + low - area.offset, high - low)


def kcore(
    ram: Sequence[tuple[int, int, int]],
    text: tuple[int, int, int],
    page_offset: int,
    read: Read,
    vmcoreinfo: bytes,
    form: str = "v4.19",
) -> Kcore:
    """``ram``: physical start, size, where that is for ``read``; ``text``: address, size, physical start."""
    where = {start: source for start, _, source in ram}
    inside = next(start for start, size, _ in ram if start <= text[2] < start + size)
    areas = [
        Area(text[0], text[1], text[2], where[inside] + text[2] - inside),
        Area(*VMALLOC, NOWHERE),
        *(Area(page_offset + start, size, start, source) for start, size, source in ram),
        Area(*VMEMMAP, NOWHERE),
    ]
    notes = [
        NoteSpec("CORE", 1, bytes(336)),
        NoteSpec("CORE", 3, b"\0R" + bytes(38) + b"vmlinux".ljust(96, b"\0")),
        NoteSpec("CORE", 4, b"\x5a" * 512),
    ]
    if form == "v4.19":
        notes.append(NoteSpec("VMCOREINFO", 0, vmcoreinfo))
    said = b"".join(note.encode("<") for note in notes)
    table = 64 + 56 * (1 + len(areas))
    rows = [struct.pack("<IIQQQQQQ", 4, 0, table, 0, 0, len(said), 0, 0)]
    rows += [
        struct.pack(
            "<IIQQQQQQ",
            1, 7, area.offset, area.vaddr, 0 if form == "v4.4" else area.paddr, area.size, area.size, 4096,
        )
        for area in areas
    ]  # fmt: skip
    ident = b"\x7fELF\2\1\1" + bytes(9)
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH", 4, EM_X86_64, 1, 0, 64, 0, 0, 64, 56, 1 + len(areas), 0, 0, 0
    )
    return Kcore(head + b"".join(rows) + said, areas, read)
