"""ELF headers: every class and byte order, PN_XNUM, and files that lie about themselves."""

from __future__ import annotations

import struct

import pytest

from kdump_elftool.elf import reader
from kdump_elftool.elf.notes import read_notes
from kdump_elftool.elf.reader import MAX_HEADERS, ElfFile
from kdump_elftool.errors import CorruptDumpError, FormatError
from kdump_elftool.files import InputFile
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core, build_core_map


def read(tmp_path, image: bytes) -> ElfFile:
    path = tmp_path / "core"
    path.write_bytes(image)
    return ElfFile.read(InputFile.open(str(path)))


LOADS = [
    SegmentSpec(0x1000, b"A" * 10, vaddr=0x8000, memsz=99, flags=5),
    SegmentSpec(0xFFFFF000, b"B" * 3, vaddr=0xC0000000),
]


@pytest.mark.parametrize("elf_class", [32, 64])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("xnum", [False, True])
def test_headers(tmp_path, elf_class, big_endian, xnum):
    placed = build_core_map(
        CoreSpec(LOADS, [NoteSpec("CORE", 1, b"desc")], elf_class=elf_class, big_endian=big_endian,
                 machine=8, force_xnum=xnum, ehdr={"e_flags": 0x70001007, "e_entry": 0x1234})
    )  # fmt: skip
    elf = read(tmp_path, placed.image)
    header = elf.header
    assert (header.kind.bits, header.kind.order) == (elf_class, ">" if big_endian else "<")
    assert (header.e_type, header.e_machine, header.e_flags, header.e_entry) == (4, 8, 0x70001007, 0x1234)
    assert (header.phnum, len(elf.segments), elf.missing_headers) == (3, 3, 0)
    loads = elf.segments.of_type(1)
    assert loads.p_paddr.tolist() == [0x1000, 0xFFFFF000]
    assert loads.p_vaddr.tolist() == [0x8000, 0xC0000000]
    assert loads.p_filesz.tolist() == [10, 3]
    assert loads.p_memsz.tolist() == [99, 3]
    assert loads.p_flags.tolist() == [5, 7]
    assert tuple(loads.p_offset.tolist()) == placed.data_offsets
    assert [(note.name, note.type, note.desc) for note in elf.notes()[0]] == [(b"CORE", 1, b"desc")]
    assert elf.notes()[1] == ()


def test_real_xnum(tmp_path):
    elf = read(tmp_path, build_core(CoreSpec([SegmentSpec(page * 4096) for page in range(70000)])))
    assert len(elf.segments) == 70000
    assert elf.segments.p_paddr.tolist() == [page * 4096 for page in range(70000)]


@pytest.mark.parametrize("notes_at", ["front", "end", "split"])
def test_notes_anywhere(tmp_path, notes_at):
    notes = [NoteSpec("CORE", number, bytes([number]) * 5) for number in range(1, 6)]
    elf = read(tmp_path, build_core(CoreSpec(LOADS, notes, notes_at=notes_at)))
    assert [note.type for note in elf.notes()[0]] == [1, 2, 3, 4, 5]


def test_section_headers_as_qemu_writes_them(tmp_path):
    elf = read(tmp_path, build_core(CoreSpec(LOADS, [NoteSpec("CORE", 1, b"x")], sections=True)))
    assert elf.sections()["sh_type"].tolist() == [0, 7]
    assert len(elf.segments) == 3


@pytest.mark.parametrize("image", [b"", b"\x7f", b"\x7fEL", b"#!/bin/sh\n" * 50, b"KDUMP   " + bytes(5000)])
def test_no_elf_file(tmp_path, image):
    with pytest.raises(FormatError) as caught:
        read(tmp_path, image)
    assert type(caught.value) is FormatError


@pytest.mark.parametrize("at,value", [(4, 0), (4, 3), (5, 0), (5, 9)])
def test_unknown_class_or_byte_order(tmp_path, at, value):
    with pytest.raises(CorruptDumpError):
        read(tmp_path, build_core(CoreSpec(LOADS, ident={at: value})))


def test_every_cut_of_the_elf_header_is_an_error(tmp_path):
    image = build_core(CoreSpec(LOADS))
    for cut in range(64):
        with pytest.raises(FormatError):
            read(tmp_path, image[:cut])


def test_headers_behind_the_end_are_counted(tmp_path):
    image = build_core(CoreSpec(LOADS))
    for cut in range(64, 64 + 2 * 56):
        elf = read(tmp_path, image[:cut])
        assert len(elf.segments) + elf.missing_headers == 2
        assert len(elf.segments) == (cut - 64) // 56


@pytest.mark.parametrize("e_phentsize", [0, 1, 32, 55, 57, 65535])
def test_wrong_e_phentsize(tmp_path, e_phentsize):
    with pytest.raises(CorruptDumpError):
        read(tmp_path, build_core(CoreSpec(LOADS, ehdr={"e_phentsize": e_phentsize})))


@pytest.mark.parametrize("e_phoff", [2**63, 2**64 - 1, 10**6])
def test_e_phoff_outside_of_the_file(tmp_path, e_phoff):
    elf = read(tmp_path, build_core(CoreSpec(LOADS, ehdr={"e_phoff": e_phoff})))
    assert (len(elf.segments), elf.missing_headers) == (0, 2)


@pytest.mark.parametrize("e_shoff", [2**63, 2**64 - 1, 10**6])
def test_xnum_without_its_section(tmp_path, e_shoff):
    with pytest.raises(CorruptDumpError):
        read(tmp_path, build_core(CoreSpec(LOADS, force_xnum=True, ehdr={"e_shoff": e_shoff})))


def test_four_thousand_million_headers(tmp_path):
    elf = read(tmp_path, build_core(CoreSpec(LOADS, force_xnum=True, shdr0={"sh_info": 2**32 - 1})))
    assert len(elf.segments) <= MAX_HEADERS
    assert elf.missing_headers > 0


def note_headers(places: list[tuple[int, int]], notes: bytes) -> bytes:
    """An ELF64 core whose PT_NOTE headers lead to those offsets and sizes in ``notes``."""
    start = 64 + 56 * len(places)
    ehdr = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(places), 0, 0, 0
    )
    phdrs = [struct.pack("<IIQQQQQQ", 4, 0, start + at, 0, 0, size, size, 4) for at, size in places]
    return ehdr + b"".join(phdrs) + notes


NOTE = NoteSpec("CORE", 1, b"desc").encode("<")


def test_notes_that_many_headers_lead_to_are_read_once(tmp_path):
    found, bad = read(tmp_path, note_headers([(0, len(NOTE))] * 3000, NOTE)).notes()
    assert [(note.name, note.desc) for note in found] == [(b"CORE", b"desc")]
    assert bad == ()


@pytest.mark.parametrize(("bound", "read_in_all"), [("MAX_NOTES", 100), ("MOST_HELD", 50)])
def test_all_headers_share_one_bound(tmp_path, monkeypatch, bound, read_in_all):
    """Of notes, and of the bytes that they hold: the first header leads to 50 notes of four bytes."""
    monkeypatch.setattr(reader, bound, 100)
    notes = NOTE * 50
    places = [(at * len(NOTE), len(notes) - at * len(NOTE)) for at in range(40)]
    found, bad = read(tmp_path, note_headers(places, notes)).notes()
    assert len(found) == read_in_all
    assert bad


def test_more_headers_of_notes_than_any_machine_needs(tmp_path, monkeypatch):
    """Each over nothing: that too would cost two reads."""
    asked = []

    def counted(*words, **options):
        asked.append(words)
        return read_notes(*words, **options)

    monkeypatch.setattr(reader, "read_notes", counted)
    found, bad = read(tmp_path, note_headers([(at, 0) for at in range(30000)], b"")).notes()
    assert found == ()
    assert bad
    assert len(asked) == 1 << 14
