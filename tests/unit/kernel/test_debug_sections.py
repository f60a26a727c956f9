"""Sections as they are, compressed in either way, damaged."""

from __future__ import annotations

import random
import re
import struct
import zlib
from contextlib import ExitStack

import pytest
from backports import zstd

from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.debug_sections import LARGEST, section_contents
from kdump_elftool.kernel.vmlinux import section_headers
from tests.builders import dwarf as d

CONTENTS = bytes(random.Random(1).choices(range(16), k=3 << 20))
PACK = {1: zlib.compress, 2: zstd.compress}


def read(
    tmp_path, section: bytes, flags: int, *, order: str = "<", bits: int = 64, cut: str = ""
) -> list[bytes]:
    path = tmp_path / "vmlinux"
    image = d.elf_file({".debug_line": section}, {}, order=order, bits=bits, flags={".debug_line": flags})
    path.write_bytes(image)
    with InputFile.open(str(path)) as file, ExitStack() as stack:
        elf = ElfFile.read(file)
        found = section_contents(elf, ".debug_line", section_headers(elf).get(b".debug_line"), stack)
        assert re.fullmatch(cut, found.cut or "")
        return [
            found.whole(1 << 30),
            found.read_at(12345, 678),
            found.read_at(found.size - 1, 10),
            found.whole(9),
        ]


EXPECTED = [CONTENTS, CONTENTS[12345 : 12345 + 678], CONTENTS[-1:], b""]


def head(method: int, size: int, order: str = "<", bits: int = 64) -> bytes:
    if bits == 64:
        return struct.pack(f"{order}IIQQ", method, 0, size, 1)
    return struct.pack(f"{order}III", method, size, 1)


def test_as_it_is(tmp_path):
    assert read(tmp_path, CONTENTS, 0) == EXPECTED


@pytest.mark.parametrize("method", [1, 2], ids=["zlib", "zstd"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [32, 64])
def test_compressed(tmp_path, method, order, bits):
    section = head(method, len(CONTENTS), order, bits) + PACK[method](CONTENTS)
    assert read(tmp_path, section, 0x800, order=order, bits=bits) == EXPECTED


@pytest.mark.parametrize("method", [1, 2], ids=["zlib", "zstd"])
def test_no_more_than_it_says(tmp_path, method):
    section = head(method, 20_000) + PACK[method](CONTENTS + bytes(64 << 20))
    assert read(tmp_path, section, 0x800)[0] == CONTENTS[:20_000]


@pytest.mark.parametrize("method", [1, 2], ids=["zlib", "zstd"])
def test_cut_off(tmp_path, method):
    section = head(method, len(CONTENTS)) + PACK[method](CONTENTS)[:-1000]
    cut = rf"\.debug_line is compressed and ends early: \d+ of {len(CONTENTS)} bytes are there"
    found = read(tmp_path, section, 0x800, cut=cut)[0]
    assert len(found) < len(CONTENTS)
    assert CONTENTS.startswith(found)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        (head(1, 100) + b"no zlib stream", "cannot be unpacked"),
        (head(2, 100) + b"no zstd frame", "cannot be unpacked"),
        (head(3, 100) + zlib.compress(b""), "method 3"),
        (head(1, LARGEST + 1) + zlib.compress(b""), "more than any"),
        (b"\1", "shorter than its header"),
    ],
)
def test_damaged(tmp_path, section, what):
    with pytest.raises(CorruptDumpError, match=rf"\.debug_line.* {what}"):
        read(tmp_path, section, 0x800)
