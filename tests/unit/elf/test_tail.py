"""The tail of a core made in place: pure layout, the header to switch to, the way back."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest

from kdump_elftool.elf.notes import Note, chunk_size
from kdump_elftool.elf.own_notes import OWNER, UNDO_NOTE_SIZE, Undo, parse_undo, undo_note
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.tail import (
    Placed,
    claimed_end,
    find_remains,
    find_undo,
    read_original,
    tail_headers,
    tail_layout,
)
from kdump_elftool.errors import CorruptDumpError, OutputError
from kdump_elftool.files import InputFile
from tests.builders.check import Core, read_core
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core
from tests.builders.tools import readelf_complaints

BASE = 0xFFFF888000000000
KIND = ElfKind(64, "<")
SOME_NOTES = (Note(b"CORE", 1, b"abcd"), Note(b"VMCOREINFO", 0, b"A=1\n"))


def u64(values) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def placed(*pieces: tuple[int, int, int, int, int]) -> Placed:
    """Pieces are (vaddr, paddr, size, file_offset, rank)."""
    columns = list(zip(*pieces, strict=True))
    return Placed(*map(u64, columns[:4]), np.array(columns[4], dtype=np.intp))


def old_file(tmp_path, data: bytes = bytes(0x3000), **spec):
    path = tmp_path / "core"
    segments = spec.pop("segments", [SegmentSpec(0x100000, data)])
    path.write_bytes(build_core(CoreSpec(segments, [NoteSpec("CORE", 1, b"old!")], **spec)))
    return path


def changed(path, pieces: Placed, notes=SOME_NOTES) -> tuple[Core, bytes]:
    """The file as it is when the tail is written and the header switched, and the tail's part of it."""
    with InputFile.open(str(path)) as file:
        original = read_original(file)
    layout = tail_layout(original, 0, pieces, notes)
    headers = tail_headers(original, layout)
    before = path.read_bytes()
    chunks = b"".join(layout.notes)
    assert sum(map(chunk_size, layout.notes)) == len(chunks)
    image = before.ljust(layout.notes_offset, b"\0") + chunks
    assert len(image) <= headers.offset < len(image) + 8
    image = image.ljust(headers.offset, b"\0") + headers.tables
    assert len(image) == layout.file_size
    assert len(headers.ehdr) == (64 if image[4] == 2 else 52)
    image = headers.ehdr + image[len(headers.ehdr) :]
    path.write_bytes(image)
    return read_core(image), before


@pytest.mark.parametrize(("elf_class", "big_endian"), [(64, False), (64, True), (32, False), (32, True)])
@pytest.mark.parametrize("sections", [False, True])
def test_headers_point_into_the_old_data(tmp_path, elf_class, big_endian, sections):
    data = bytes(range(256)) * 64
    path = old_file(tmp_path, data, elf_class=elf_class, big_endian=big_endian, sections=sections, machine=8)
    offset = path.read_bytes().index(data)
    base = BASE if elf_class == 64 else 0xC0000000
    core, before = changed(
        path,
        placed((base, 0x100000, 0x1000, offset, 2), (base + 0x5000, 0x101000, 0x2000, offset + 0x1000, 0)),
    )
    assert [(load["p_vaddr"], load["p_paddr"], load["p_filesz"], load["p_memsz"]) for load in core.loads] == [
        (base + 0x5000, 0x101000, 0x2000, 0x2000),
        (base, 0x100000, 0x1000, 0x1000),
    ]
    assert core.read(base, 0x1000) == data[:0x1000]
    assert core.read(base + 0x5000, 0x2000) == data[0x1000:0x3000]
    assert core.segments[0]["p_type"] == 4
    assert core.segments[0]["p_offset"] == -(-len(before) // 4096) * 4096
    assert [(name, kind) for name, kind, _ in core.notes()] == [
        ("kdump-elftool", 3), ("CORE", 1), ("VMCOREINFO", 0),
    ]  # fmt: skip
    assert (core.osabi, core.e_type, core.e_machine) == (3, 4, 8)
    ehdr_size = 64 if elf_class == 64 else 52
    assert core.image[ehdr_size : len(before)] == before[ehdr_size:]
    assert not readelf_complaints(path)


def test_p_align_is_1_where_offset_and_address_do_not_agree(tmp_path):
    path = old_file(tmp_path, bytes(0x8000))
    core, _ = changed(path, placed((BASE, 0, 0x1000, 0x1000, 0), (BASE + 0x2000, 0x2000, 0x1000, 0x14A0, 0)))
    assert [load["p_align"] for load in core.loads] == [4096, 1]
    assert not readelf_complaints(path)


@pytest.mark.parametrize("count", [65533, 65534, 70000])
@pytest.mark.parametrize("sections", [False, True])
def test_xnum_border(tmp_path, count, sections):
    """Beyond 65,534 headers section 0 has their number: a new one in the tail, the other sections kept."""
    path = old_file(tmp_path, bytes(0x1000), sections=sections)
    old_sections = path.read_bytes()[64:192]
    with InputFile.open(str(path)) as file:
        original = read_original(file)
    vaddr = u64(BASE) + np.arange(count, dtype=np.uint64) * u64(0x2000)
    same = np.full(count, 0x1000, dtype=np.uint64)
    pieces = Placed(vaddr, same, same, same, np.zeros(count, dtype=np.intp))
    layout = tail_layout(original, 0, pieces, SOME_NOTES)
    headers = tail_headers(original, layout)
    shoff, phnum, shentsize, shnum = (
        struct.unpack_from(form, headers.ehdr, at)[0]
        for form, at in (("<Q", 40), ("<H", 56), ("<H", 58), ("<H", 60))
    )
    tables = (count + 1) * 56
    assert layout.file_size == headers.offset + len(headers.tables)
    if count + 1 <= 65534:
        assert (phnum, shoff, len(headers.tables)) == (count + 1, 64 if sections else 0, tables)
        return
    assert (phnum, shentsize, shnum) == (65535, 64, 2 if sections else 1)
    assert shoff == headers.offset + tables
    tail = headers.tables[tables:]
    assert struct.unpack_from("<I", tail, 44)[0] == count + 1
    assert tail[64:] == (old_sections[64:] if sections else b"")


def test_more_than_four_gigabytes_in_a_32_bit_file_are_refused(tmp_path):
    path = old_file(tmp_path, elf_class=32)
    pieces = placed((0xC0000000, 0x100000, 0x1000, 0x1000, 0))
    with path.open("r+b") as file:
        file.truncate(0xFFFFF001)
    with InputFile.open(str(path)) as file:
        original = read_original(file)
        with pytest.raises(OutputError, match="32-bit"):
            tail_layout(original, 0, pieces, SOME_NOTES)
    with path.open("r+b") as file:
        file.truncate(0xFFFF0000)
    with InputFile.open(str(path)) as file:
        tail_layout(read_original(file), 0, pieces, SOME_NOTES)


@pytest.mark.parametrize("missing", [1, 4096, 0x2FFF])
def test_a_file_shorter_than_it_says_is_refused(tmp_path, missing):
    path = old_file(tmp_path)
    image = path.read_bytes()
    with InputFile.open(str(path)) as file:
        assert claimed_end(ElfFile.read(file)) == len(image)
        read_original(file)
    path.write_bytes(image[:-missing])
    with InputFile.open(str(path)) as file, pytest.raises(OutputError, match="nothing can be put behind"):
        read_original(file)


def test_absurd_sizes_are_refused(tmp_path):
    for wrong in ({"p_filesz": 1 << 63}, {"p_offset": (1 << 64) - 4096, "p_filesz": 8192}):
        path = old_file(tmp_path, segments=[SegmentSpec(0x100000, bytes(4096), overrides=wrong)])
        with InputFile.open(str(path)) as file, pytest.raises(OutputError):
            read_original(file)


@pytest.mark.parametrize("kind", [KIND, ElfKind(64, ">"), ElfKind(32, "<"), ElfKind(32, ">")], ids=str)
def test_undo_note_round_trip_and_garbage(kind):
    undo = Undo(bytes(range(kind.ehdr.itemsize)), 0x123456789A, 0x123456AAAA)
    note = undo_note(kind, undo)
    assert parse_undo(kind, note) == undo
    assert len(note.desc) + 28 == UNDO_NOTE_SIZE
    chance = random.Random(1)
    used = 32 + kind.ehdr.itemsize
    for _ in range(2000):
        desc = bytearray(note.desc)
        desc[chance.randrange(used)] ^= 1 << chance.randrange(8)
        assert parse_undo(kind, Note(OWNER, 3, bytes(desc))) is None
    for desc in (b"", note.desc[:-1], note.desc + b"\0", bytes(1024), b"\xff" * 1024):
        assert parse_undo(kind, Note(OWNER, 3, desc)) is None


def checksummed(ehdr: bytes, old: int, new: int) -> bytes:
    """An undo note's descriptor by its description in docs/notes.md, lies included."""
    body = struct.pack("<QQII", old, new, len(ehdr), 0)
    crc = zlib.crc32(struct.pack("<II", 1, 0) + body + ehdr)
    return (struct.pack("<II", 1, crc) + body + ehdr).ljust(1024, b"\0")


def in_place_file(tmp_path):
    path = old_file(tmp_path)
    before = path.read_bytes()
    changed(path, placed((BASE, 0x100000, 0x1000, 0x1000, 0)))
    return path, before


def test_the_format_is_the_documented_one(tmp_path):
    path, before = in_place_file(tmp_path)
    (desc,) = [desc for name, kind, desc in read_core(path).notes() if (name, kind) == ("kdump-elftool", 3)]
    assert desc == checksummed(before[:64], len(before), path.stat().st_size)


def test_find_undo(tmp_path):
    path, before = in_place_file(tmp_path)
    with InputFile.open(str(path)) as file:
        assert find_undo(file) == Undo(before[:64], len(before), path.stat().st_size)
    path.write_bytes(before)
    with InputFile.open(str(path)) as file:
        assert find_undo(file) is None


@pytest.mark.parametrize(
    "lie",
    [
        {"old": 1 << 63},
        {"old": 0},
        {"old": 63},
        {"old": 4096},
        {"old": (1 << 64) - 1},
        {"ehdr": b"\x7fELF\x01\x01".ljust(64, b"\0")},
        {"ehdr": bytes(64)},
    ],
    ids=str,
)
def test_an_undo_note_with_a_right_checksum_that_cannot_be_true(tmp_path, lie):
    path, before = in_place_file(tmp_path)
    image = bytearray(path.read_bytes())
    desc = checksummed(lie.get("ehdr", before[:64]), lie.get("old", len(before)), len(image))
    at = image.index(b"kdump-elftool\0") + 16
    image[at : at + 1024] = desc
    path.write_bytes(image)
    with InputFile.open(str(path)) as file, pytest.raises(CorruptDumpError):
        find_undo(file)


def test_remains_of_an_interrupted_run(tmp_path):
    path, before = in_place_file(tmp_path)
    image = before[:64] + path.read_bytes()[64:]
    for end in (len(image), -(-len(before) // 4096) * 4096 + UNDO_NOTE_SIZE):
        path.write_bytes(image[:end])
        with InputFile.open(str(path)) as file:
            assert find_undo(file) is None
            found = find_remains(file)
            assert found is not None
            assert (found.ehdr, found.old_length) == (before[:64], len(before))
    for other in (before, image + b"x", image[: len(before) + 100], before + bytes(9000)):
        path.write_bytes(other)
        with InputFile.open(str(path)) as file:
            assert find_remains(file) is None
