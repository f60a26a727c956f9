"""Structures of kdump-compressed dumps, bound by plausibility to word size and byte order.

The file says neither: its writer stored C structures as its compiler laid them out.  Sources:
makedumpfile diskdump_mod.h and IMPLEMENTATION (struct disk_dump_header, kdump_sub_header,
page_desc); QEMU include/sysemu/dump.h, whose packed structures have the same offsets; crash
diskdump.c (kdump_sub_header_ARM_target) for 32-bit compilers that align 64-bit members to 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import ByteSource

KDUMP, DISKDUMP = b"KDUMP   ", b"DISKDUMP"
LAST_VERSION = 6

ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
INCOMPLETE, EXCLUDED_VMEMMAP = 0x8, 0x10
"""Bits of the header's status; the four before mark single pages as well."""

_UTSNAME_AT, _UTSNAME_LEN = 12, 65
UTSNAME_FIELDS = 6
"""struct new_utsname: sysname, nodename, release, version, machine, domainname."""
_VERSION_AT = 8
_STATUS_AT = {424: 64, 412: 32, 420: 32}
"""Where ``status`` stands behind struct timeval, and the word size that this speaks for.

420: a 32-bit ABI with 64-bit time that aligns it to 4.  One that aligns to 8 has 424 as well.
"""
_HEAD_SIZE = 424 + 40
HEAD_FIELDS = (
    "status block_size sub_hdr_size bitmap_blocks max_mapnr total_ram_blocks "
    "device_blocks written_blocks current_cpu nr_cpus"
).split()
_BLOCK_SIZES = tuple(1 << shift for shift in range(12, 21))

_SUB_FIELDS = (
    ("phys_base", "long", 0),
    ("dump_level", "int", 1),
    ("split", "int", 2),
    ("start_pfn", "long", 2),
    ("end_pfn", "long", 2),
    ("offset_vmcoreinfo", "quad", 3),
    ("size_vmcoreinfo", "long", 3),
    ("offset_note", "quad", 4),
    ("size_note", "long", 4),
    ("offset_eraseinfo", "quad", 5),
    ("size_eraseinfo", "long", 5),
    ("start_pfn_64", "quad", 6),
    ("end_pfn_64", "quad", 6),
    ("max_mapnr_64", "quad", 6),
)
"""Name, C type, and the header version from which on the field exists."""
_ABIS = ((64, 8), (32, 4), (32, 8))
"""Word size, and the alignment of 64-bit members."""

DESCRIPTOR = (("offset", "u8"), ("size", "u4"), ("flags", "u4"), ("page_flags", "u8"))
DESCRIPTOR_SIZE = 24


@dataclass(frozen=True)
class Header:
    """``struct disk_dump_header``; ``common`` is what all parts of a set have alike: all but the status."""

    kdump: bool
    order: str
    bits: int
    version: int
    machine: str
    status: int
    block_size: int
    sub_hdr_size: int
    bitmap_blocks: int
    max_mapnr: int
    common: bytes

    @property
    def bitmap_offset(self) -> int:
        """Where the first bitmap begins."""
        return (1 + self.sub_hdr_size) * self.block_size

    @property
    def descriptor(self) -> np.dtype[np.void]:
        """``struct page_desc`` in the file's byte order."""
        return np.dtype([(name, self.order + kind) for name, kind in DESCRIPTOR])


@dataclass(frozen=True)
class SubHeader:
    """``struct kdump_sub_header``; fields that the version does not have yet are 0.

    ``start_pfn``, ``end_pfn`` and ``max_mapnr`` are the 64-bit ones where they exist.
    """

    bits: int
    phys_base: int = 0
    dump_level: int = 0
    split: bool = False
    start_pfn: int = 0
    end_pfn: int = 0
    offset_vmcoreinfo: int = 0
    size_vmcoreinfo: int = 0
    offset_note: int = 0
    size_note: int = 0
    size_eraseinfo: int = 0
    max_mapnr: int = 0


def read_header(file: ByteSource) -> Header:
    """The main header.  Raises CorruptDumpError when no byte order makes sense of it."""
    raw = file.read_at(0, _HEAD_SIZE)
    if len(raw) < _HEAD_SIZE:
        raise CorruptDumpError(
            file.path,
            "the file ends within the dump's header",
            file_offset=len(raw),
            hint="the file was cut off: copy it again",
        )
    found = [_header(raw, order, at) for order in "<>" for at in _STATUS_AT]
    best = max(found, key=_plausibility)
    if not _plausibility(best):
        raise CorruptDumpError(
            file.path, "the header makes no sense in either byte order", file_offset=_VERSION_AT
        )
    return best


def read_sub_header(file: ByteSource, header: Header) -> SubHeader:
    """The sub-header, in the layout that agrees best with the main one and the file."""
    if not header.kdump:
        return SubHeader(header.bits, max_mapnr=header.max_mapnr)
    raw = file.read_at(header.block_size, 256).ljust(256, b"\0")
    found = [(bits, _sub_fields(raw, header, bits, align)) for bits, align in _ABIS]
    bits, fields = max(found, key=lambda pair: _sub_plausibility(pair[1], pair[0], header, file.size))
    wide = header.version >= 6
    return SubHeader(
        bits=bits,
        phys_base=fields["phys_base"],
        dump_level=fields["dump_level"],
        split=bool(fields["split"]),
        start_pfn=fields["start_pfn_64" if wide else "start_pfn"],
        end_pfn=fields["end_pfn_64" if wide else "end_pfn"],
        offset_vmcoreinfo=fields["offset_vmcoreinfo"],
        size_vmcoreinfo=fields["size_vmcoreinfo"],
        offset_note=fields["offset_note"],
        size_note=fields["size_note"],
        size_eraseinfo=fields["size_eraseinfo"],
        max_mapnr=fields["max_mapnr_64"] if wide else header.max_mapnr,
    )


def encode_header(
    order: str, bits: int, utsname: Sequence[bytes], seconds: int, words: Mapping[str, int]
) -> bytes:
    """``struct disk_dump_header`` of a version 6 dump; words that are not given are 0.

    ``bits`` is the word size: the timeval in front of ``status`` has two words, aligned to one.
    """
    status_at = next(at for at, word in _STATUS_AT.items() if word == bits)
    names = b"".join(name[: _UTSNAME_LEN - 1].ljust(_UTSNAME_LEN, b"\0") for name in utsname)
    head = KDUMP + np.array([LAST_VERSION], dtype=order + "u4").tobytes() + names
    word = bits // 8
    time = np.array([seconds & ((1 << (bits - 1)) - 1), 0], dtype=f"{order}u{word}")
    numbers = np.array([words.get(name, 0) for name in HEAD_FIELDS], dtype=order + "u4")
    return head.ljust(status_at - 2 * word, b"\0") + time.tobytes() + numbers.tobytes()


def encode_sub_header(order: str, bits: int, align: int, fields: Mapping[str, int]) -> bytes:
    """``struct kdump_sub_header`` of version 6 for an ABI; fields that are not given are 0."""
    raw = b""
    for name, kind, _ in _SUB_FIELDS:
        size = 4 if kind == "int" or (kind == "long" and bits == 32) else 8
        raw += bytes(-len(raw) % min(size, align))
        value = fields.get(name, 0) & ((1 << 8 * size) - 1)
        raw += np.array([value], dtype=f"{order}u{size}").tobytes()
    return raw + bytes(-len(raw) % (bits // 8))


def _header(raw: bytes, order: str, status_at: int) -> Header:
    byteorder = {"<": "little", ">": "big"}[order]
    words = np.frombuffer(raw, dtype=order + "u4", count=len(HEAD_FIELDS), offset=status_at).tolist()
    fields = dict(zip(HEAD_FIELDS, words, strict=True))
    machine_at = _UTSNAME_AT + 4 * _UTSNAME_LEN
    machine = raw[machine_at : machine_at + _UTSNAME_LEN].split(b"\0", 1)[0]
    return Header(
        kdump=raw.startswith(KDUMP),
        order=order,
        bits=_STATUS_AT[status_at],
        version=int.from_bytes(raw[_VERSION_AT : _VERSION_AT + 4], byteorder),  # type: ignore[arg-type]
        machine=machine.decode("latin-1"),
        common=raw[:status_at] + raw[status_at + 4 : status_at + 4 * len(HEAD_FIELDS)],
        **{name: fields[name] for name in ("status", "block_size", "sub_hdr_size", "bitmap_blocks")},
        max_mapnr=fields["max_mapnr"],
    )


def _plausibility(header: Header) -> int:
    """0: impossible.  Else how much speaks for this reading of the header."""
    if header.block_size not in _BLOCK_SIZES or not 0 <= header.version < 1 << 16:
        return 0
    capacity = 8 * header.bitmap_blocks * header.block_size
    return 1 + sum(
        (
            2 * (header.version <= LAST_VERSION),
            0 < header.sub_hdr_size < 1 << 16,
            0 < header.bitmap_blocks < 1 << 24,
            0 < header.max_mapnr <= capacity,
            header.status < 1 << 8,
        )
    )


def _sub_fields(raw: bytes, header: Header, bits: int, align: int) -> dict[str, int]:
    values = {}
    at = 0
    for name, kind, since in _SUB_FIELDS:
        size = 4 if kind == "int" or (kind == "long" and bits == 32) else 8
        at += -at % min(size, align)
        value = int(np.frombuffer(raw, dtype=f"{header.order}u{size}", count=1, offset=at)[0])
        values[name] = value if header.version >= since else 0
        at += size
    return values


def _sub_plausibility(fields: dict[str, int], bits: int, header: Header, size: int) -> int:
    def fits(name: str) -> bool:
        offset, length = fields[f"offset_{name}"], fields[f"size_{name}"]
        return offset + length <= size and bool(offset) == bool(length)

    return sum(
        (
            2 * (bits == header.bits),
            fields["split"] <= 1,
            fields["dump_level"] < 1 << 8,
            fields["start_pfn"] <= fields["end_pfn"],
            *(fits(name) for name in ("vmcoreinfo", "note", "eraseinfo")),
            # the narrow field holds what fits of the wide one
            4 * (header.version >= 6 and min(fields["max_mapnr_64"], 0xFFFFFFFF) == header.max_mapnr),
        )
    )
