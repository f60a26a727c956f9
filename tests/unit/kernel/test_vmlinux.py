"""vmlinux: symbols against pyelftools, build id, release, files that are none."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.errors import FormatError
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.vmlinux import SymbolTable, Vmlinux, read_vmlinux
from tests.builders.elfcore import CoreSpec, SegmentSpec, build_core
from tests.builders.kernel import BUILD_ID, build_vmlinux, make_kernel


def read(tmp_path, image: bytes) -> Vmlinux:
    path = tmp_path / "vmlinux"
    path.write_bytes(image)
    with InputFile.open(str(path)) as file:
        return read_vmlinux(file)


def test_symbols_and_build_id(tmp_path):
    image = build_vmlinux()
    found = read(tmp_path, image)
    table = {
        symbol.name: symbol["st_value"]
        for symbol in ELFFile(io.BytesIO(image)).get_section_by_name(".symtab").iter_symbols()
    }
    assert {"_stext", "_text", "_end"} <= found.symbols.keys()
    assert all(table[name] == value for name, value in found.symbols.items())
    assert (found.build_id, found.e_entry, found.e_machine) == (BUILD_ID, 0x1000000, 62)


def test_names_that_share_a_tail(tmp_path):
    """Linkers store _stext once when __stext is there too; another string that only begins so is none."""
    image = bytearray(build_vmlinux())
    at = image.index(b"\0_stext\0") + 1
    image[at : at + 7] = b"_stexu\0"
    assert "_stext" not in read(tmp_path, bytes(image)).symbols
    tail = image.index(b"\0linux_banner\0") + 1
    image[tail : tail + 12] = b"linux__stext"
    symtab = ELFFile(io.BytesIO(bytes(image))).get_section_by_name(".symtab")["sh_offset"]
    strtab = ELFFile(io.BytesIO(bytes(image))).get_section_by_name(".strtab")["sh_offset"]
    struct.pack_into("<I", image, symtab + 2 * 24, tail + 6 - strtab)
    assert read(tmp_path, bytes(image)).symbols["_stext"] == 0xFFFFFFFF81000000


class Counted(np.ndarray):
    """A table that counts how often all names in it are looked at."""

    looks = 0

    def __getitem__(self, key):
        Counted.looks += isinstance(key, str) and key == "st_name"
        return np.asarray(super().__getitem__(key))


def test_a_name_that_is_the_tail_of_many(tmp_path):
    """A forgery: who compares all entries with each place where the name is never ends."""
    rows = np.zeros(4, dtype=[("st_name", "<u4"), ("st_value", "<u8")])
    rows["st_name"], rows["st_value"] = (2, 6 * 5000, 6 * 4000 + 1, 0xFFFFFFFF), (1, 2, 3, 4)
    Counted.looks = 0
    table = SymbolTable(((rows.view(Counted), b"\0_end_" * 5000 + b"\0"), (rows[:0], b"")))
    assert table.find("_end_") == 3
    assert table.find("end_") == 1
    assert [table.find(name) for name in ("_end", "__end_", "_end_\0", "x" * 40000)] == [None] * 4
    assert Counted.looks <= 2 * 6


def test_without_build_id(tmp_path):
    assert read(tmp_path, build_vmlinux(build_id=None)).build_id is None


def test_makedyn_vmlinux_is_read_too(tmp_path):
    assert read(tmp_path, build_vmlinux(e_type=3)).symbols["_stext"] == 0xFFFFFFFF81000000


def test_stripped(tmp_path):
    image = bytearray(build_vmlinux())
    shoff = struct.unpack_from("<Q", image, 40)[0]
    struct.pack_into("<I", image, shoff + 4 * 64 + 4, 0)
    found = read(tmp_path, bytes(image))
    assert found.symbols == {}
    assert found.build_id == BUILD_ID


@pytest.mark.parametrize(
    "image",
    [b"", b"text", make_kernel().dump()[:100000], build_core(CoreSpec([SegmentSpec(0, b"x")], e_type=1))],
)
def test_what_is_no_vmlinux(tmp_path, image):
    with pytest.raises(FormatError):
        read(tmp_path, image)


@pytest.mark.parametrize("cut", [64, 200, 4096, 8192, 8300, 8500, 8700])
def test_truncated(tmp_path, cut):
    found = read(tmp_path, build_vmlinux()[:cut])
    assert found.symbols.get("_stext") in (None, 0xFFFFFFFF81000000)


@pytest.mark.parametrize("field,value", [(24, 2**63), (32, 2**63), (32, 2**64 - 1), (24, 2**64 - 1)])
@pytest.mark.parametrize("section", [3, 4, 5])
def test_absurd_sections(tmp_path, section, field, value):
    image = bytearray(build_vmlinux())
    shoff = struct.unpack_from("<Q", image, 40)[0]
    struct.pack_into("<Q", image, shoff + section * 64 + field, value)
    try:
        found = read(tmp_path, bytes(image))
    except FormatError as error:
        assert "vmlinux" in error.message
    else:
        assert found.e_machine == 62
