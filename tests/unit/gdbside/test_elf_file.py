"""Sections and symbols, by the package's own synthetic vmlinux and by hand."""

from __future__ import annotations

import io
import struct
import zlib

import pytest

from kdump_elftool.gdbside.elf_file import ElfFile


def build(sections: dict[bytes, bytes], flags: int = 0) -> bytearray:
    names = b"\0" + b"\0".join(sections) + b"\0.shstrtab\0"
    sections = {**sections, b".shstrtab": names}
    head = struct.Struct("<16sHHIQQQIHHHHHH")
    data, table = bytearray(head.size), bytearray(64)
    for name, content in sections.items():
        own = flags if name == b".debug_frame" else 0
        at = names.index(b"\0" + name + b"\0") + 1
        table += struct.pack("<IIQQQQIIQQ", at, 1, own, 0, len(data), len(content), 0, 0, 8, 0)
        data += content
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head.pack_into(
        data, 0, ident, 2, 183, 1, 0, 0, len(data), 0, 64, 0, 0, 64, len(sections) + 1, len(sections)
    )
    return data + table


def symbol(name: int, value: int) -> bytes:
    return struct.pack("<IBBHQQ", name, 0, 0, 1, value, 0)


SYMBOLS = {
    b".symtab": symbol(0, 0) + symbol(1, 0x10) + symbol(8, 0x20) + symbol(9, 0x30),
    b".strtab": b"\0_etext\0__stext\0",
}


def test_sections_and_symbols():
    elf = ElfFile(io.BytesIO(build({**SYMBOLS, b".debug_frame": b"frames"})))
    assert elf.content(b".debug_frame") == b"frames"
    assert elf.content(b".nothing") is None
    assert elf.symbol(b"_etext") == 0x10
    assert elf.symbol(b"__stext") == 0x20
    assert elf.symbol(b"_stext") == 0x30  # its name is the end of the other
    assert elf.symbol(b"nobody") is None
    assert ElfFile(io.BytesIO(build({}))).symbol(b"_stext") is None


@pytest.mark.parametrize(("method", "expected"), [(1, b"frames" * 100), (2, None)])
def test_compressed_sections(method, expected):
    data = struct.pack("<IIQQ", method, 0, 600, 1) + zlib.compress(b"frames" * 100)
    assert (
        ElfFile(io.BytesIO(build({b".debug_frame": data}, flags=0x800))).content(b".debug_frame") == expected
    )


PACKED = zlib.compress(b"frames" * 100)


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        struct.pack("<IIQQ", 1, 0, 600, 1) + b"no zlib stream",
        struct.pack("<IIQQ", 1, 0, 600, 1) + PACKED[:-8],
        struct.pack("<IIQQ", 1, 0, 601, 1) + PACKED,
    ],
    ids=["no header", "no stream", "cut off", "less than it says"],
)
def test_a_compressed_section_that_is_damaged(data):
    with pytest.raises(ValueError, match="debug_frame"):
        ElfFile(io.BytesIO(build({b".debug_frame": data}, flags=0x800))).content(b".debug_frame")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", build({})[:-1], b"\x7fELF\x01" + build({})[5:], b"\x7fELF\x02\x02" + build({})[6:]],
    ids=["empty", "short", "cut off", "32 bits", "big endian"],
)
def test_what_is_no_such_file(data):
    with pytest.raises(ValueError):
        ElfFile(io.BytesIO(data))


@pytest.mark.parametrize("field", [40, 58, 60, 62], ids=["e_shoff", "e_shentsize", "e_shnum", "e_shstrndx"])
def test_headers_that_lie(field):
    data = build(SYMBOLS)
    data[field : field + 2] = b"\xff\xff"
    with pytest.raises(ValueError):
        ElfFile(io.BytesIO(data))


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_sections_that_are_longer_than_the_file(size):
    data = build({b".debug_frame": b"frames"})
    struct.pack_into("<Q", data, len(data) - 2 * 64 + 32, size)
    with pytest.raises(ValueError, match=r"bytes at|ends before"):
        ElfFile(io.BytesIO(data)).content(b".debug_frame")
