"""Which code the call-frame information of a vmlinux describes.

Reference: DWARF 5, 6.4.1: .debug_frame, 32-bit form, addresses of 8 bytes.
"""

from __future__ import annotations

import logging
import struct
import zlib

import numpy as np

from kdump_elftool.addr import MASK64, Ranges, merge_ranges, u64
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.files import ByteSource
from kdump_elftool.kernel.vmlinux import section_headers

log = logging.getLogger(__name__)

_LARGEST = 1 << 27
"""Bytes of a section; a kernel's has 3 MB."""
_CIE_ID = 0xFFFFFFFF


def described_code(file: ByteSource, offset: int) -> Ranges:
    """The addresses that descriptions cover, ``offset`` further on than the file has them; empty without any.

    Raises FormatError, CorruptDumpError for what is no ELF file.
    """
    elf = ElfFile.read(file)
    data = _section(elf)
    order = elf.header.kind.order
    head, place = struct.Struct(f"{order}II"), struct.Struct(f"{order}QQ")
    start, size = [], []
    at = 0
    while at + 8 <= len(data):
        length, cie = head.unpack_from(data, at)
        if length < 4 or at + 4 + length > len(data):
            break
        if cie != _CIE_ID and length >= 20:
            first, count = place.unpack_from(data, at + 8)
            start.append(first)
            size.append(count)
        at += 4 + length
    first, count = u64(start) + np.uint64(offset & MASK64), u64(size)
    return merge_ranges(first, first + count)


def _section(elf: ElfFile) -> bytes:
    header = section_headers(elf).get(b".debug_frame")
    if header is None or elf.header.kind.bits != 64 or int(header["sh_size"]) > _LARGEST:
        return b""
    data = elf.file.read_at(int(header["sh_offset"]), int(header["sh_size"]))
    if not int(header["sh_flags"]) & c.SHF_COMPRESSED:
        return data
    head = struct.Struct(f"{elf.header.kind.order}IIQQ")
    method, _, size, _ = head.unpack_from(data.ljust(head.size, b"\0"))
    # for zlib 0 would be no limit
    if method != c.ELFCOMPRESS_ZLIB or not 0 < size <= _LARGEST:
        log.info("%s: %d bytes of .debug_frame by method %d are not read", elf.file.path, size, method)
        return b""
    try:
        return zlib.decompressobj().decompress(data[head.size :], size)
    except zlib.error as error:
        log.info("%s: .debug_frame: %s", elf.file.path, error)
        return b""
