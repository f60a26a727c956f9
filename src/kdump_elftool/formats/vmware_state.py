"""The state of a suspended VMware guest (.vmss, .vmsn): groups of tagged values, little-endian.

A header of three u32 (magic, version, number of groups), then 80 bytes a group: name, u64 offset, u64 size.
A tag is a byte with the value's size in its low 6 bits and the number of u32 indices in the upper 2, a byte
with the length of the name, the name, the indices, the value; a tag of zeros ends the group.  The two highest
sizes are blocks, the lower of them compressed: u64 size in the file, u64 size, u16 padding, padding, data.
Source: vmware_vmss.h and vmware_vmss.c of crash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kdump_elftool.errors import CorruptDumpError, UnsupportedError
from kdump_elftool.files import ByteSource
from kdump_elftool.safe_text import printable

_OLD = 0xBED0BED0
_MAGICS = (_OLD, 0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2)
MAGICS = tuple(magic.to_bytes(4, "little") for magic in _MAGICS)
_HEADER, _GROUP, _BLOCK = struct.Struct("<3I"), struct.Struct("<64s2Q"), struct.Struct("<QQH")
_MOST_GROUPS = 4096
_MOST_TAGS = 1 << 20
_COMPRESSED, _PLAIN = 0x3E, 0x3F


@dataclass(frozen=True)
class Group:
    """A group's values begin at ``start`` in the file."""

    name: str
    start: int


@dataclass(frozen=True)
class Tag:
    """A value, or a block of ``size`` bytes at ``at``; ``compressed`` is of blocks alone."""

    name: str
    indices: tuple[int, ...]
    at: int
    size: int
    is_block: bool = False
    compressed: bool = False


def read_groups(file: ByteSource) -> list[Group]:
    """All groups.  Raises UnsupportedError for the oldest form, CorruptDumpError."""
    head = file.read_at(0, _HEADER.size)
    if len(head) < _HEADER.size:
        raise CorruptDumpError(file.path, "this VMware state ends within its header")
    magic, _, count = _HEADER.unpack(head)
    if magic == _OLD:
        raise UnsupportedError(
            file.path,
            "a VMware state with 32-bit offsets: not supported",
            hint="VMware's vmss2core makes a core file of it",
        )
    if not 0 < count <= _MOST_GROUPS:
        raise CorruptDumpError(file.path, f"{count} groups in a VMware state", file_offset=8)
    raw = file.read_at(_HEADER.size, count * _GROUP.size)
    if len(raw) < count * _GROUP.size:
        raise CorruptDumpError(file.path, "this VMware state ends within its list of groups")
    groups = []
    for name, position, _ in _GROUP.iter_unpack(raw):
        text = printable(name.split(b"\0")[0].decode("utf-8", "replace"))
        groups.append(Group(text, position))
    return groups


def read_tags(file: ByteSource, group: Group) -> Iterator[Tag]:
    """The values of a group.  Raises CorruptDumpError where one runs over the file's end."""
    at = group.start
    for _ in range(_MOST_TAGS):
        head = file.read_at(at, 2)
        if len(head) < 2:
            raise _cut(file, group, at)
        if head == b"\0\0":
            return
        size, number = head[0] & 0x3F, head[0] >> 6
        rest = file.read_at(at + 2, head[1] + 4 * number + _BLOCK.size)
        behind = head[1] + 4 * number
        is_block = size in (_COMPRESSED, _PLAIN)
        if len(rest) < behind + (_BLOCK.size if is_block else 0):
            raise _cut(file, group, at)
        name = printable(rest[: head[1]].decode("utf-8", "replace"))
        indices = struct.unpack_from(f"<{number}I", rest, head[1])
        begin = at + 2 + behind
        if is_block:
            size, _, padding = _BLOCK.unpack_from(rest, behind)
            begin += _BLOCK.size + padding
        yield Tag(name, indices, begin, size, is_block, head[0] & 0x3F == _COMPRESSED)
        at = begin + size
    raise CorruptDumpError(file.path, f"more than {_MOST_TAGS} values in the group {group.name!r}")


def number(file: ByteSource, tag: Tag) -> int:
    """The value of a tag of at most 8 bytes.  Raises CorruptDumpError."""
    data = file.read_at(tag.at, tag.size) if tag.size <= 8 and not tag.is_block else b""
    if not data or len(data) < tag.size:
        raise CorruptDumpError(file.path, f"the value {tag.name!r} is no number", file_offset=tag.at)
    return int.from_bytes(data, "little")


def _cut(file: ByteSource, group: Group, at: int) -> CorruptDumpError:
    return CorruptDumpError(file.path, f"the group {group.name!r} ends within a value", file_offset=at)
