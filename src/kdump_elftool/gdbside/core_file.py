"""What gdb does not tell of the core it has open: its file, and the notes of this tool in it.

References: the System V ABI, "Note Section"; docs/notes.md.  Word size and byte order are those of the
file.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import gdb

OWNER = b"kdump-elftool"
SUMMARY, TASKS, LAYOUT = 1, 2, 4
_SCHEMAS = {SUMMARY: "kdump-elftool/velf/1", TASKS: "kdump-elftool/tasks/1", LAYOUT: "kdump-elftool/layout/1"}
_CORE = re.compile(r"^Local core dump file:\n\t[`'](.*)', file type", re.MULTILINE)
_LARGEST = 64 << 20
"""Bytes of all notes together."""
_MOST_HEADERS = 1 << 20
_LARGEST_OFFSET = 1 << 62
_PT_NOTE = 4
_PN_XNUM = 0xFFFF


class Segment(NamedTuple):
    """A program header, without its alignment."""

    type: int
    flags: int
    file_offset: int
    vaddr: int
    paddr: int
    file_size: int
    size: int


def core_path() -> str | None:
    """The core that gdb has open."""
    found = _CORE.search(gdb.execute("info files", to_string=True))
    return None if found is None else found[1]


class CoreFile:
    """Program headers and our notes.  Raises OSError and ValueError for a file that has none."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            ident = file.read(16)
            if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
                raise ValueError("no ELF file")
            self.word = 4 if ident[4] == 1 else 8
            self.order = "<" if ident[5] == 1 else ">"
            file.seek(0)
            self.machine, headers = self._headers(file)
            self.segments = [self._segment(fields) for fields in headers]
            self.ours: dict[int, bytes] = {}
            self.vmcoreinfo = b""
            for name, kind, desc in self._notes(file):
                # of several of one kind the last: a core made in place has an older one in front
                if name == OWNER and kind in _SCHEMAS:
                    self.ours[kind] = desc
                elif name == b"VMCOREINFO":
                    self.vmcoreinfo = desc

    def document(self, kind: int) -> dict[str, Any]:
        """One of our notes, decoded; empty where there is none, or one of another make."""
        try:
            found = json.loads(self.ours.get(kind, b"{}"))
        except (ValueError, RecursionError):
            return {}
        if not isinstance(found, dict) or found.get("schema") != _SCHEMAS[kind]:
            return {}
        return found

    def _headers(self, file: Any) -> tuple[int, Iterator[tuple[int, ...]]]:
        header = struct.Struct(self.order + ("16sHHIIIIIHHHHHH" if self.word == 4 else "16sHHIQQQIHHHHHH"))
        fields = header.unpack(_exactly(file, header.size))
        each = struct.Struct(self.order + ("8I" if self.word == 4 else "IIQQQQQQ"))
        count, offset = fields[10], fields[5]
        if count == _PN_XNUM:  # sh_info of the first section
            file.seek(min(fields[6], _LARGEST_OFFSET) + (28 if self.word == 4 else 44))
            count = int.from_bytes(_exactly(file, 4), "little" if self.order == "<" else "big")
        if count > _MOST_HEADERS or fields[9] != each.size or offset > _LARGEST_OFFSET:
            raise ValueError("program headers that cannot be")
        file.seek(offset)
        return fields[2], each.iter_unpack(_exactly(file, count * each.size))

    def _segment(self, fields: tuple[int, ...]) -> Segment:
        if self.word == 4:
            kind, offset, vaddr, paddr, file_size, size, flags, _ = fields
        else:
            kind, flags, offset, vaddr, paddr, file_size, size, _ = fields
        return Segment(kind, flags, offset, vaddr, paddr, file_size, size)

    def _notes(self, file: Any) -> Iterator[tuple[bytes, int, bytes]]:
        """Owner, type and content of every note."""
        head = struct.Struct(self.order + "III")
        left = _LARGEST
        for segment in self.segments:
            if segment.type != _PT_NOTE or segment.file_size > left or segment.file_offset > _LARGEST_OFFSET:
                continue
            left -= segment.file_size
            file.seek(segment.file_offset)
            data = file.read(segment.file_size)
            at = 0
            while at + head.size <= len(data):
                name_size, size, kind = head.unpack_from(data, at)
                start = at + head.size + (name_size + 3 & ~3)
                name = data[at + head.size : at + head.size + name_size].rstrip(b"\0")
                yield name, kind, data[start : start + size]
                at = start + (size + 3 & ~3)


def _exactly(file: Any, size: int) -> bytes:
    data = bytes(file.read(size))
    if len(data) != size:
        raise ValueError("the file ends within its headers")
    return data
