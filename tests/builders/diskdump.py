"""Build kdump-compressed dumps, right ones and wrong ones, from a Python description.

Independent of the package under test: ``struct``, and the formats as makedumpfile's IMPLEMENTATION and
diskdump_mod.h describe them.  Pages are compressed by the codecs' own libraries.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cramjam
import lzallright

from tests.builders.elfcore import NoteSpec, own_address_words
from tests.builders.kernel import SyntheticKernel

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
FLAGS = {"raw": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
HEADER_WORDS = (
    "status block_size sub_hdr_size bitmap_blocks max_mapnr total_ram_blocks "
    "device_blocks written_blocks current_cpu nr_cpus"
).split()
SUB_FIELDS = (
    ("phys_base", "long", 0), ("dump_level", "int", 1), ("split", "int", 2), ("start_pfn", "long", 2),
    ("end_pfn", "long", 2), ("offset_vmcoreinfo", "quad", 3), ("size_vmcoreinfo", "long", 3),
    ("offset_note", "quad", 4), ("size_note", "long", 4), ("offset_eraseinfo", "quad", 5),
    ("size_eraseinfo", "long", 5), ("start_pfn_64", "quad", 6), ("end_pfn_64", "quad", 6),
    ("max_mapnr_64", "quad", 6),
)  # fmt: skip


def compress(codec: str, data: bytes) -> bytes:
    """``data`` by a page codec."""
    if codec == "zlib":
        return zlib.compress(data, 1)
    if codec == "lzo":
        return lzallright.LZOCompressor().compress(data)
    if codec == "snappy":
        return bytes(cramjam.snappy.compress_raw(data))
    if codec == "zstd":
        return bytes(cramjam.zstd.compress(data, 1))
    return data


@dataclass(frozen=True)
class PageSpec:
    """One dumped page.  ``stored`` is what stands in the file, whatever ``data`` is; ``shared`` pages
    all point to the first one with the same key; ``descriptor`` overrides fields."""

    pfn: int
    data: bytes = b""
    codec: str = "raw"
    stored: bytes | None = None
    shared: str | None = None
    descriptor: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KdumpSpec:
    """A whole dump.  ``ram`` are frames of the first bitmap only: what the producer excluded."""

    pages: Sequence[PageSpec] = ()
    ram: Sequence[tuple[int, int]] = ()
    notes: Sequence[NoteSpec] = ()
    vmcoreinfo: bytes = b""
    eraseinfo: bytes = b""
    signature: bytes = b"KDUMP   "
    version: int = 6
    big_endian: bool = False
    bits: int = 64
    align: int = 8
    status_at: int | None = None
    machine: str = "x86_64"
    block: int = 4096
    max_mapnr: int | None = None
    split: tuple[int, int] | None = None
    one_bitmap: bool = False
    count_one_bitmap: bool = False
    order: str = "sorted"  # sorted | reversed: where the pages lie in the file
    head: Mapping[str, int] = field(default_factory=dict)
    sub: Mapping[str, int] = field(default_factory=dict)
    truncate: int | None = None


@dataclass(frozen=True)
class Placed:
    """Where :func:`build_kdump_map` put things: for tests that damage one of them."""

    image: bytes
    bitmaps: int
    descriptors: int
    data: int
    offsets: tuple[int, ...]


def build_kdump(spec: KdumpSpec) -> bytes:
    """The file's bytes."""
    return build_kdump_map(spec).image


def build_kdump_map(spec: KdumpSpec) -> Placed:
    """The file's bytes and the offsets of its parts."""
    order, block = (">" if spec.big_endian else "<"), spec.block
    pages = sorted(spec.pages, key=lambda page: page.pfn)
    frames = {page.pfn for page in pages}
    ram = frames | {pfn for start, end in spec.ram for pfn in range(start, end)}
    top = max(ram, default=0) + 1 if spec.max_mapnr is None else spec.max_mapnr
    mine = [page for page in pages if not spec.split or spec.split[0] <= page.pfn < spec.split[1]]

    blobs = b"".join(note.encode(order) for note in spec.notes)
    sub_size = len(_sub_header(spec, order, {}))
    note_at = block + sub_size
    info_at = note_at + len(blobs)
    sub_blocks = -(-(sub_size + len(blobs) + len(spec.vmcoreinfo)) // block)
    map_blocks = max(-(-max(ram, default=0) // 8 // block), -(-top // 8 // block), 1)
    maps = [_bitmap(ram, map_blocks * block), _bitmap(frames, map_blocks * block)]
    if spec.one_bitmap:
        maps = maps[:1]
    counted = map_blocks if spec.one_bitmap or spec.count_one_bitmap else 2 * map_blocks
    bitmaps_at = (1 + sub_blocks) * block
    descriptors_at = bitmaps_at + len(maps) * map_blocks * block
    data_at = descriptors_at + 24 * len(mine)
    if spec.count_one_bitmap:
        data_at = -(-data_at // block) * block
    entries, data = _pages(spec, mine, data_at)

    values = {
        "phys_base": 0, "dump_level": 0, "split": int(spec.split is not None),
        "start_pfn": spec.split[0] if spec.split else 0, "end_pfn": spec.split[1] if spec.split else 0,
        "offset_note": note_at if blobs else 0, "size_note": len(blobs),
        "offset_vmcoreinfo": info_at if spec.vmcoreinfo else 0, "size_vmcoreinfo": len(spec.vmcoreinfo),
        "offset_eraseinfo": data_at + len(data) if spec.eraseinfo else 0,
        "size_eraseinfo": len(spec.eraseinfo), "max_mapnr_64": top,
    }  # fmt: skip
    values |= {"start_pfn_64": values["start_pfn"], "end_pfn_64": values["end_pfn"]}
    head = _header(spec, order, sub_blocks, counted, top)
    image = bytearray(data_at)
    for at, blob in (
        (0, head),
        (block, _sub_header(spec, order, values | dict(spec.sub))),
        (note_at, blobs),
        (info_at, spec.vmcoreinfo),
        (bitmaps_at, b"".join(maps)),
        (descriptors_at, b"".join(struct.pack(order + "QIIQ", *entry) for entry in entries)),
    ):
        image[at : at + len(blob)] = blob
    image += data + spec.eraseinfo
    cut = len(image) if spec.truncate is None else spec.truncate
    offsets = tuple(entry[0] for entry in entries)
    return Placed(bytes(image[:cut]), bitmaps_at, descriptors_at, data_at, offsets)


def _pages(
    spec: KdumpSpec, pages: Sequence[PageSpec], at: int
) -> tuple[list[tuple[int, int, int, int]], bytes]:
    shared: dict[str, tuple[int, int]] = {}
    entries: dict[int, tuple[int, int, int, int]] = {}
    data = bytearray()
    for page in reversed(pages) if spec.order == "reversed" else pages:
        stored = page.stored if page.stored is not None else compress(page.codec, page.data)
        flags = FLAGS[page.codec]
        if page.stored is None and len(stored) >= spec.block:
            stored, flags = page.data, 0
        place = shared.get(page.shared) if page.shared else None
        if place is None:
            place = at + len(data), len(stored)
            data += stored
            if page.shared:
                shared[page.shared] = place
        entry = {"offset": place[0], "size": place[1], "flags": flags, "page_flags": 0}
        entry |= page.descriptor
        entries[page.pfn] = (
            entry["offset"] & _MASK64,
            entry["size"] & _MASK32,
            entry["flags"] & _MASK32,
            entry["page_flags"],
        )
    return [entries[page.pfn] for page in pages], bytes(data)


def _header(spec: KdumpSpec, order: str, sub_blocks: int, bitmap_blocks: int, top: int) -> bytes:
    names = ["Linux", "lab", "6.1.0", "#1 SMP", spec.machine, "(none)"]
    head = spec.signature + struct.pack(order + "I", spec.version)
    head += b"".join(name.encode("latin-1").ljust(65, b"\0") for name in names)
    status_at = spec.status_at or (424 if spec.bits == 64 else 412)
    words = {
        "status": 0, "block_size": spec.block, "sub_hdr_size": sub_blocks, "bitmap_blocks": bitmap_blocks,
        "max_mapnr": min(top, 0xFFFFFFFF), "nr_cpus": 2,
    } | dict(spec.head)  # fmt: skip
    packed = (words.get(name, 0) & 0xFFFFFFFF for name in HEADER_WORDS)
    return head.ljust(status_at, b"\0") + struct.pack(order + "10I", *packed)


def _sub_header(spec: KdumpSpec, order: str, values: Mapping[str, int]) -> bytes:
    raw = bytearray()
    for name, kind, since in SUB_FIELDS:
        if spec.version < since or spec.signature != b"KDUMP   ":
            break
        size = 4 if kind == "int" or (kind == "long" and spec.bits == 32) else 8
        raw += bytes(-len(raw) % min(size, spec.align))
        raw += struct.pack(order + ("I" if size == 4 else "Q"), values.get(name, 0) & ((1 << 8 * size) - 1))
    return bytes(raw + bytes(-len(raw) % 8))


def _bitmap(frames: set[int], size: int) -> bytes:
    raw = bytearray(size)
    for pfn in frames:
        raw[pfn >> 3] |= 1 << (pfn & 7)
    return bytes(raw)


def own_pages(
    start: int, end: int, codec: str = "zlib", block: int = 4096, order: str = "<"
) -> list[PageSpec]:
    """Pages in which every word holds its own address."""
    return [PageSpec(pfn, own_address_words(pfn * block, block, order), codec) for pfn in range(start, end)]


def zero_pages(start: int, end: int, block: int = 4096) -> list[PageSpec]:
    """Zero pages as makedumpfile has them: one in the file for all."""
    return [PageSpec(pfn, bytes(block), shared="zero") for pfn in range(start, end)]


def kernel_kdump(kernel: SyntheticKernel, codec: str = "zlib", **changes: object) -> KdumpSpec:
    """A kernel's RAM: zero pages shared, what the kernel's spec leaves out excluded."""
    pages, ram = [], []
    for start, data in kernel.ram.ranges:
        ram.append((start >> 12, (start + len(data)) >> 12))
        for at in range(0, len(data), 4096):
            if kernel.in_dump(start + at):
                page, pfn = bytes(data[at : at + 4096]), (start + at) >> 12
                spec = PageSpec(pfn, page, codec) if any(page) else PageSpec(pfn, page, shared="zero")
                pages.append(spec)
    return KdumpSpec(pages=pages, ram=ram, notes=kernel.notes(), **changes)  # type: ignore[arg-type]
