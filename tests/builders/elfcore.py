"""Build ELF cores, right ones and wrong ones, from a Python description.

Independent of the package under test: only ``struct`` and the ELF specification (System V ABI,
``elf(5)``).  Every header field can be overridden, so that absurd files are one line in a test.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

PAGE = 4096
PT_LOAD, PT_NOTE = 1, 4
ET_EXEC, ET_DYN, ET_CORE = 2, 3, 4
EM_386, EM_MIPS, EM_PPC, EM_ARM, EM_X86_64, EM_AARCH64 = 3, 8, 20, 40, 62, 183
NT_PRSTATUS, NT_AUXV = 1, 6
PN_XNUM = 0xFFFF

EHDR_FIELDS = (
    "e_type e_machine e_version e_entry e_phoff e_shoff e_flags e_ehsize "
    "e_phentsize e_phnum e_shentsize e_shnum e_shstrndx"
).split()
EHDR_FORMAT = {32: "HHIIIIIHHHHHH", 64: "HHIQQQIHHHHHH"}
PHDR_FIELDS = {
    32: "p_type p_offset p_vaddr p_paddr p_filesz p_memsz p_flags p_align".split(),
    64: "p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align".split(),
}
PHDR_FORMAT = {32: "IIIIIIII", 64: "IIQQQQQQ"}
SHDR_FIELDS = (
    "sh_name sh_type sh_flags sh_addr sh_offset sh_size sh_link sh_info sh_addralign sh_entsize"
).split()
SHDR_FORMAT = {32: "IIIIIIIIII", 64: "IIQQQQIIQQ"}


def own_address_words(paddr: int, size: int, byte_order: str = "<") -> bytes:
    """Data in which every aligned 8-byte word holds its own physical address (any alignment)."""
    start = paddr & ~7
    count = (paddr + size - start + 7) // 8
    words = np.arange(count, dtype=np.uint64) * np.uint64(8) + np.uint64(start)
    raw = words.astype(f"{byte_order}u8").tobytes()
    return raw[paddr - start : paddr - start + size]


@dataclass(frozen=True)
class NoteSpec:
    """One note; ``name`` gets its NUL here, ``raw_name`` and ``raw`` are for notes that lie."""

    name: str
    type: int
    desc: bytes
    raw_name: bytes | None = None
    raw: bytes | None = None

    def encode(self, order: str) -> bytes:
        """The note as in the file: 4-byte alignment, as the kernel and QEMU write it."""
        if self.raw is not None:
            return self.raw
        name = self.raw_name if self.raw_name is not None else self.name.encode() + b"\0"
        head = struct.pack(order + "III", len(name), len(self.desc), self.type)
        return head + _padded(name) + _padded(self.desc)


@dataclass(frozen=True)
class SegmentSpec:
    """One program header and its data.  ``offset`` None: after what was placed before it."""

    paddr: int
    data: bytes = b""
    vaddr: int = 0
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None
    align: int = 1
    p_type: int = PT_LOAD
    flags: int = 7
    overrides: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CoreSpec:
    """A whole core file."""

    segments: Sequence[SegmentSpec] = ()
    notes: Sequence[NoteSpec] = ()
    elf_class: int = 64
    big_endian: bool = False
    e_type: int = ET_CORE
    machine: int = EM_X86_64
    osabi: int = 0
    notes_at: str = "front"  # front | end | split (one PT_NOTE a note, half of them behind the data)
    force_xnum: bool = False
    sections: bool = False  # section headers right behind the ELF header, as QEMU has them
    ehdr: Mapping[str, int] = field(default_factory=dict)
    shdr0: Mapping[str, int] = field(default_factory=dict)
    ident: Mapping[int, int] = field(default_factory=dict)
    truncate: int | None = None

    @property
    def order(self) -> str:
        """``struct``'s byte-order character."""
        return ">" if self.big_endian else "<"


@dataclass(frozen=True)
class Placed:
    """Where :func:`build_core_map` put things: for tests that damage one of them."""

    image: bytes
    phoff: int
    phentsize: int
    phnum: int
    note_offsets: tuple[int, ...]
    data_offsets: tuple[int, ...]


def build_core(spec: CoreSpec) -> bytes:
    """The file's bytes."""
    return build_core_map(spec).image


def build_core_map(spec: CoreSpec) -> Placed:
    """The file's bytes and the offsets of its parts."""
    order = spec.order
    blobs = [note.encode(order) for note in spec.notes]
    if spec.notes_at != "split":
        blobs = [b"".join(blobs)] if blobs else []
    phnum = len(blobs) + len(spec.segments)
    xnum = spec.force_xnum or phnum >= PN_XNUM
    ehsize = 16 + struct.calcsize(order + EHDR_FORMAT[spec.elf_class])
    phentsize = struct.calcsize(order + PHDR_FORMAT[spec.elf_class])
    shentsize = struct.calcsize(order + SHDR_FORMAT[spec.elf_class])
    shnum = 2 if spec.sections else (1 if xnum else 0)
    phoff = ehsize + shnum * shentsize

    chunks: list[tuple[int, bytes]] = []
    front, behind = _split_notes(blobs, spec.notes_at)
    position = phoff + phnum * phentsize
    position, front_headers = _place_notes(front, position, chunks)
    position, loads = _place_segments(spec.segments, position, chunks)
    position, behind_headers = _place_notes(behind, _align(position, 4), chunks)
    headers = front_headers + loads + behind_headers

    ehdr = {
        "e_type": spec.e_type, "e_machine": spec.machine, "e_version": 1, "e_entry": 0,
        "e_phoff": phoff, "e_shoff": ehsize if shnum else 0, "e_flags": 0, "e_ehsize": ehsize,
        "e_phentsize": phentsize, "e_phnum": PN_XNUM if xnum else phnum,
        "e_shentsize": shentsize if shnum else 0, "e_shnum": shnum, "e_shstrndx": 0,
    }  # fmt: skip
    head = _ident(spec) + _pack(order, EHDR_FORMAT[spec.elf_class], EHDR_FIELDS, ehdr | dict(spec.ehdr))
    if shnum:
        head += _section_headers(spec, xnum, phnum, shnum, front_headers + behind_headers)
    kind, fields = PHDR_FORMAT[spec.elf_class], PHDR_FIELDS[spec.elf_class]
    head += b"".join(_pack(order, kind, fields, header) for header in headers)
    image = bytearray(max([len(head)] + [offset + len(data) for offset, data in chunks]))
    for offset, data in chunks:
        image[offset : offset + len(data)] = data
    image[: len(head)] = head
    notes = tuple(header["p_offset"] for header in front_headers + behind_headers)
    cut = len(image) if spec.truncate is None else spec.truncate
    return Placed(bytes(image[:cut]), phoff, phentsize, phnum, notes, tuple(h["p_offset"] for h in loads))


def _split_notes(blobs: list[bytes], where: str) -> tuple[list[bytes], list[bytes]]:
    if where == "front":
        return blobs, []
    if where == "end":
        return [], blobs
    if where == "split":
        middle = (len(blobs) + 1) // 2
        return blobs[:middle], blobs[middle:]
    raise ValueError(f"notes_at {where!r}")


def _place_notes(
    blobs: list[bytes], position: int, chunks: list[tuple[int, bytes]]
) -> tuple[int, list[dict[str, int]]]:
    headers = []
    for blob in blobs:
        chunks.append((position, blob))
        headers.append(
            {"p_type": PT_NOTE, "p_offset": position, "p_vaddr": 0, "p_paddr": 0,
             "p_filesz": len(blob), "p_memsz": len(blob), "p_flags": 0, "p_align": 4}
        )  # fmt: skip
        position += len(blob)
    return position, headers


def _place_segments(
    segments: Sequence[SegmentSpec], position: int, chunks: list[tuple[int, bytes]]
) -> tuple[int, list[dict[str, int]]]:
    headers = []
    for segment in segments:
        offset = segment.offset if segment.offset is not None else _align(position, segment.align)
        filesz = len(segment.data) if segment.filesz is None else segment.filesz
        header = {
            "p_type": segment.p_type, "p_offset": offset, "p_vaddr": segment.vaddr,
            "p_paddr": segment.paddr, "p_filesz": filesz,
            "p_memsz": filesz if segment.memsz is None else segment.memsz,
            "p_flags": segment.flags, "p_align": segment.align,
        }  # fmt: skip
        headers.append(header | dict(segment.overrides))
        if segment.data:
            chunks.append((offset, segment.data))
        position = max(position, offset + len(segment.data))
    return position, headers


def _ident(spec: CoreSpec) -> bytes:
    ident = bytearray(16)
    ident[:7] = b"\x7fELF" + bytes((spec.elf_class // 32, 2 if spec.big_endian else 1, 1))
    ident[7] = spec.osabi
    for index, value in spec.ident.items():
        ident[index] = value
    return bytes(ident)


def _section_headers(
    spec: CoreSpec, xnum: bool, phnum: int, shnum: int, notes: list[dict[str, int]]
) -> bytes:
    null = dict.fromkeys(SHDR_FIELDS, 0)
    if xnum:
        null |= {"sh_info": phnum, "sh_size": shnum if shnum >= 0xFF00 else 0}
    rows = [null | dict(spec.shdr0)]
    if shnum == 2:
        note = notes[0] if notes else {"p_offset": 0, "p_filesz": 0}
        rows.append(
            dict.fromkeys(SHDR_FIELDS, 0)
            | {"sh_type": 7, "sh_offset": note["p_offset"], "sh_size": note["p_filesz"], "sh_addralign": 4}
        )
    return b"".join(_pack(spec.order, SHDR_FORMAT[spec.elf_class], SHDR_FIELDS, row) for row in rows)


def _pack(order: str, fmt: str, fields: Sequence[str], values: Mapping[str, int]) -> bytes:
    wrapped = (
        values[name] & ((1 << 8 * struct.calcsize(order + kind)) - 1)
        for kind, name in zip(fmt, fields, strict=True)
    )
    return struct.pack(order + fmt, *wrapped)


def _align(value: int, alignment: int) -> int:
    return -(-value // max(alignment, 1)) * max(alignment, 1)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)
