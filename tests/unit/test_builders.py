"""The builders themselves, judged by readelf and pyelftools: fixtures must be what they say."""

from __future__ import annotations

import io
import struct

import pytest
from elftools.elf.elffile import ELFFile

from tests.builders.elfcore import (
    CoreSpec,
    NoteSpec,
    SegmentSpec,
    build_core,
    build_core_map,
    own_address_words,
)
from tests.builders.kernel import build_vmlinux, make_kernel
from tests.builders.notes import x86_64_prstatus
from tests.builders.pagetables import SIZE_1G, SIZE_2M, SIZE_4K
from tests.builders.spectext import number, parse_spec
from tests.builders.tools import readelf_complaints


@pytest.mark.parametrize("elf_class", [32, 64])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("notes_at", ["front", "end", "split"])
@pytest.mark.parametrize("xnum", [False, True])
def test_core_is_read_back_by_pyelftools(tmp_path, elf_class, big_endian, notes_at, xnum):
    spec = CoreSpec(
        segments=[SegmentSpec(0x1000, b"A" * 100, vaddr=0x5000, memsz=200), SegmentSpec(0x9000, b"B" * 33)],
        notes=[NoteSpec("CORE", 1, b"x" * 17), NoteSpec("VMCOREINFO", 0, b"A=1\n"), NoteSpec("", 7, b"")],
        elf_class=elf_class, big_endian=big_endian, notes_at=notes_at, force_xnum=xnum,
        machine=8,
    )  # fmt: skip
    path = tmp_path / "core"
    path.write_bytes(build_core(spec))
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    assert (elf.elfclass, elf.little_endian) == (elf_class, not big_endian)
    loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    assert [segment.data() for segment in loads] == [b"A" * 100, b"B" * 33]
    assert loads[0]["p_memsz"] == 200
    notes = [
        note
        for segment in elf.iter_segments()
        if segment["p_type"] == "PT_NOTE"
        for note in segment.iter_notes()
    ]
    assert [note["n_name"] for note in notes][:2] == ["CORE", "VMCOREINFO"]
    assert not readelf_complaints(path)


def test_overrides_and_truncation_change_only_what_they_name():
    plain = build_core(CoreSpec([SegmentSpec(0, b"x" * 64)]))
    odd = build_core(
        CoreSpec([SegmentSpec(0, b"x" * 64, overrides={"p_memsz": 2**63})], ehdr={"e_phnum": 77})
    )
    assert struct.unpack_from("<H", odd, 56)[0] == 77
    assert struct.unpack_from("<Q", odd, 64 + 40)[0] == 2**63
    assert [
        a for a, b in zip(range(len(plain)), zip(plain, odd, strict=True), strict=True) if b[0] != b[1]
    ] == [
        56,
        104,
        111,
    ]
    assert build_core(CoreSpec([SegmentSpec(0, b"x" * 64)], truncate=70)) == plain[:70]


def test_own_address_words_at_any_alignment():
    whole = own_address_words(0x1000, 0x100)
    assert struct.unpack_from("<Q", whole, 8)[0] == 0x1008
    for start in range(16):
        assert own_address_words(0x1000 + start, 32) == whole[start : start + 32]


def test_placed_offsets_point_at_the_data():
    placed = build_core_map(CoreSpec([SegmentSpec(0, b"Q" * 8)], [x86_64_prstatus(3, {"rip": 5})]))
    (data,), (note,) = placed.data_offsets, placed.note_offsets
    assert placed.image[data : data + 8] == b"Q" * 8
    assert struct.unpack_from("<i", placed.image, note + 20 + 32)[0] == 3
    assert struct.unpack_from("<Q", placed.image, note + 20 + 240)[0] == 5


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("style", ["kdump", "qemu"])
@pytest.mark.parametrize("direct_size", [SIZE_4K, SIZE_2M, SIZE_1G])
def test_kernel_maps_every_ram_page_into_the_direct_map(tmp_path, levels, style, direct_size):
    ram = ((0x1000, 0x9F000), (0x100000, 0x1000000))
    kernel = make_kernel(levels=levels, style=style, direct_size=direct_size, ram=ram)
    pages = kernel.readable_pages()
    direct = kernel.bases["page_offset"]
    for start, end in ram:
        assert all(pages[direct + paddr] == paddr for paddr in range(start, end, SIZE_4K))
    assert pages[kernel.text_vaddr + 0x3FF000] == 0x7FF000
    assert not any(vaddr < 1 << 63 for vaddr in pages)
    path = tmp_path / "dump"
    path.write_bytes(kernel.dump())
    assert not readelf_complaints(path)


def test_kernel_espfix_area_is_big_in_the_tables_and_absent_from_the_expectation():
    kernel = make_kernel(espfix=True)
    assert sum(1 for leaf in kernel.leaves() if leaf.paddr == 0xD10000) >= 65536
    assert kernel.kernel_pages() == make_kernel().kernel_pages()


def test_root_is_where_vmcoreinfo_says():
    kernel = make_kernel()
    keys = dict(line.split("=", 1) for line in kernel.vmcoreinfo_text().splitlines())
    root = int(keys["SYMBOL(swapper_pg_dir)"], 16) - 0xFFFFFFFF80000000 + int(keys["NUMBER(phys_base)"])
    assert root == kernel.tables.root
    assert int(keys["NUMBER(phys_base)"]) < 0


def test_vmlinux_has_symbols_and_build_id(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(build_vmlinux())
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    symbols = {
        symbol.name: symbol["st_value"] for symbol in elf.get_section_by_name(".symtab").iter_symbols()
    }
    assert symbols["_stext"] == 0xFFFFFFFF81000000
    (note,) = elf.get_section_by_name(".notes").iter_notes()
    assert note["n_desc"] == bytes(range(0x10, 0x24)).hex()
    assert not readelf_complaints(path)


def test_spec_text():
    spec = parse_spec(
        """
        class = 32
        order = big
        machine = 20
        note name=CORE type=1 desc=zero*4   # comment
        load paddr=0x1000 fill=own*0x20 memsz=0x40 p_offset=2**31-1
        @0x1008 AA*4
        ehdr e_phnum=0xfff0
        expect error nothing
        """
    )
    assert (spec.core.elf_class, spec.core.order, spec.core.machine) == (32, ">", 20)
    assert spec.core.segments[0].data[8:12] == b"\xaa" * 4
    assert spec.core.segments[0].overrides == {"p_offset": 2**31 - 1}
    assert spec.expect == [["error", "nothing"]]
    assert number("0x10+2**4-1") == 31
    with pytest.raises(ValueError, match="not understood"):
        parse_spec("nonsense")
