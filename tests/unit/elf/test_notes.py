"""Notes: read what struct wrote, write what pyelftools reads, survive every lie."""

from __future__ import annotations

import io
import struct

import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.elf import notes
from kdump_elftool.elf.notes import HELD_IN_MEMORY, Note, encode_notes, read_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import FileSlice, InputFile
from tests.builders.elfcore import CoreSpec, NoteSpec, build_core

KINDS = [ElfKind(bits, order) for bits in (32, 64) for order in "<>"]


def parse(tmp_path, raw: bytes, kind: ElfKind = ElfKind(64, "<"), offset: int = 0, size: int | None = None):
    path = tmp_path / "notes"
    path.write_bytes(raw)
    file = InputFile.open(str(path))
    return read_notes(file, kind, offset, len(raw) - offset if size is None else size)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_read(tmp_path, kind):
    specs = [NoteSpec("CORE", 1, b"12345"), NoteSpec("VMCOREINFO", 0, b"A=1\n"), NoteSpec("Q" * 9, 77, b"")]
    found = parse(tmp_path, b"xx" + b"".join(spec.encode(kind.order) for spec in specs), kind, 2)
    assert found.bad_offset is None
    assert [(note.name.decode(), note.type, note.desc) for note in found.notes] == [
        (spec.name, spec.type, spec.desc) for spec in specs
    ]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_encode_is_what_pyelftools_reads(kind):
    notes = (Note(b"CORE", 0x500, b"abc"), Note(b"LINUX", 0x501, b""), Note(b"kdump-elftool", 0x502, b"{}"))
    raw = b"".join(encode_notes(notes, kind))
    assert len(raw) % 4 == 0
    image = build_core(
        CoreSpec(elf_class=kind.bits, big_endian=kind.order == ">", machine=8,
                 notes=[NoteSpec("PAD", 9, bytes(len(raw)))])
    )  # fmt: skip
    image = image.replace(NoteSpec("PAD", 9, bytes(len(raw))).encode(kind.order), raw + bytes(16))
    (segment,) = ELFFile(io.BytesIO(image)).iter_segments()
    found = list(segment.iter_notes())[:3]
    assert [(note["n_name"], note["n_descsz"]) for note in found] == [
        ("CORE", 3), ("LINUX", 0), ("kdump-elftool", 2),
    ]  # fmt: skip


def test_zero_padding_behind_the_last_note_ends_the_list(tmp_path):
    found = parse(tmp_path, NoteSpec("CORE", 1, b"12345678").encode("<") + bytes(64))
    assert len(found.notes) == 1
    assert found.bad_offset is None


@pytest.mark.parametrize(
    "namesz,descsz", [(2**31, 4), (4, 2**31), (2**32 - 1, 2**32 - 1), (4, 100), (300, 0)]
)
def test_a_lying_header_stops_with_its_offset(tmp_path, namesz, descsz):
    good = NoteSpec("CORE", 1, b"12345678").encode("<")
    bad = struct.pack("<III", namesz, descsz, 1) + b"CORE" + bytes(20)
    found = parse(tmp_path, good + bad)
    assert len(found.notes) == 1
    assert found.bad_offset == len(good)


def test_truncated_file_is_reported(tmp_path):
    whole = NoteSpec("CORE", 1, b"12345678").encode("<") + NoteSpec("CORE", 2, b"x" * 50).encode("<")
    for cut in range(len(whole)):
        found = parse(tmp_path, whole[:cut], size=len(whole))
        assert found.bad_offset is not None
        assert found.bad_offset <= cut + 3  # the padding of the last note may be cut off as well
        assert len(found.notes) == (cut >= 28) + (cut >= 98)


def test_range_far_outside_of_the_file(tmp_path):
    found = parse(tmp_path, b"abcd", offset=2**62, size=2**63)
    assert found.notes == ()
    assert found.bad_offset is not None


def test_large_descriptor_stays_in_the_file(tmp_path):
    desc = bytes(range(256)) * (HELD_IN_MEMORY // 256) + b"!"
    found = parse(
        tmp_path, NoteSpec("LINUX", 0x700, desc).encode("<") + NoteSpec("CORE", 1, b"1").encode("<")
    )
    large, small = found.notes
    assert isinstance(large.desc, FileSlice)
    assert large.size == len(desc)
    assert large.desc.file.read_at(large.desc.offset, large.desc.size) == desc
    assert small.desc == b"1"
    chunks = encode_notes((large, small), ElfKind(64, "<"))
    joined = b"".join(
        chunk.file.read_at(chunk.offset, chunk.size) if isinstance(chunk, FileSlice) else chunk
        for chunk in chunks
    )
    assert joined == NoteSpec("LINUX", 0x700, desc).encode("<") + NoteSpec("CORE", 1, b"1").encode("<")


def test_descriptors_in_memory_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "MOST_HELD", 100)
    found = parse(tmp_path, NoteSpec("CORE", 1, b"x" * 40).encode("<") * 10)
    assert len(found.notes) == 3
    assert found.bad_offset is not None
