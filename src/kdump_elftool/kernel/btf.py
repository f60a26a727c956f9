"""BTF: the kernel's types as columns, and the answers they give about structs.

A header, type records one behind the other, strings.  A record is three words (name, info, size or
type) and what its kind adds; only by going from record to record can it be told where one begins.
Members of anonymous structs and unions are looked for in the struct around them, as in C.

References: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of v7.0 (kinds up to 19, ENUM64).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import Index
from kdump_elftool.elf.btf_kinds import HEAD, WORDS, WORDS_EACH, Kind
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Fact, Source
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

U32 = npt.NDArray[np.uint32]

MAGIC = 0xEB9F
HEADER_SIZE = 24
MAX_SIZE = 64 << 20
_WORDS_AT_ONCE = 1 << 16
_MOST_CANDIDATES = 64
"""Places that begin like a BTF object and are none."""
_MOST_BEGINNINGS = 1 << 20
"""Places that have the first bytes of one."""
_DEEPEST = 32
_FEW = 50

_ALIASES = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_STRUCTS = (Kind.STRUCT, Kind.UNION)
_SIZED = (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.INT, Kind.FLOAT)


@dataclass(frozen=True)
class Member:
    """A member within its outermost struct: bits from the start, width of a bit field or 0, type."""

    bit_offset: int
    bit_size: int
    type_id: int


@dataclass(frozen=True)
class Btf:
    """One BTF object.  Row i of the columns is type i + 1 (0 is void).

    ``words`` are the type section, in which record i begins at ``start[i]``; ``size`` is the
    record's third word, a size in bytes or a type, as its kind has it.  A module's BTF goes on where
    that of the kernel ends, with numbers and with strings: it comes with the kernel's in front, and its
    own rows begin at ``first``, its own strings at ``first_string``.
    """

    words: U32
    strings: bytes
    start: Index
    name: U32
    kind: npt.NDArray[np.uint8]
    vlen: Index
    kind_flag: npt.NDArray[np.bool_]
    size: U32
    word: int
    label: str
    first: int = 0
    first_string: int = 0
    damage: str | None = None

    @classmethod
    def parse(
        cls,
        data: bytes,
        order: str,
        word: int,
        label: str,
        base: Btf | None = None,
        *,
        partial: bool = False,
    ) -> Btf | None:
        """Read a BTF object; None, with the reason in the log, when it is none or damaged.

        ``base`` is the kernel's when the object is a module's.  If ``partial``, the types before one that
        makes no sense are taken, whose numbers are right, and ``damage`` says so.
        """
        sections = sections_of(data, order, split=base is not None)
        if sections is None:
            return None
        types, strings = sections
        words = np.frombuffer(types, dtype=f"{order}u4").astype(np.uint32)
        start, good = _records(words)
        damage = (
            None
            if good == len(words)
            else f"type {len(start) + 1} makes no sense: all from it on are left out"
        )
        if damage is not None:
            log.info("BTF: %s", damage)
            if not partial:
                return None
        own = cls._of_records(words[:good], start, strings, word, label, damage)
        return own if base is None else _behind(base, own)

    @classmethod
    def _of_records(
        cls, words: U32, start: Index, strings: bytes, word: int, label: str, damage: str | None
    ) -> Btf:
        """The columns of the records that begin at ``start``."""
        info = words[start + 1]
        return cls(
            words=words,
            strings=strings,
            start=start,
            name=words[start],
            kind=(info >> np.uint32(24) & np.uint32(31)).astype(np.uint8),
            vlen=(info & np.uint32(0xFFFF)).astype(np.intp),
            kind_flag=(info >> np.uint32(31)).astype(np.bool_),
            size=words[start + 2],
            word=word,
            label=label,
            damage=damage,
        )

    def __len__(self) -> int:
        return len(self.start)

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        ask = {"OFFSET": self._offset, "SIZE": self._size, "LENGTH": self._length, "NUMBER": self._number}
        value = ask[kind](name) if kind in ask else None
        return None if value is None else Fact(f"{kind}({name})", value, self.label)

    def ids(self, name: str, kinds: tuple[Kind, ...]) -> list[int]:
        """The types of that name, in the order of the table."""
        offset = self._string(name)
        if offset is None:
            return []
        rows = np.flatnonzero(self.name == np.uint32(offset)).tolist()
        return [row + 1 for row in rows if self.kind[row] in kinds]

    def resolve(self, type_id: int) -> int | None:
        """The type behind typedefs and qualifiers; None for void and for what leads nowhere."""
        for _ in range(_DEEPEST):
            if not 0 < type_id <= len(self):
                return None
            if self.kind[type_id - 1] not in _ALIASES:
                return type_id
            type_id = int(self.size[type_id - 1])
        return None

    def size_of(self, type_id: int) -> int | None:
        """Bytes of a type."""
        count = 1
        for _ in range(_DEEPEST):
            found = self.resolve(type_id)
            if found is None:
                return None
            kind = self.kind[found - 1]
            if kind in _SIZED:
                return count * int(self.size[found - 1])
            if kind == Kind.PTR:
                return count * self.word
            if kind != Kind.ARRAY:
                return None
            type_id, _, elements = self._extra(found, 3)
            count *= elements
        return None

    def member(self, struct_id: int, path: str) -> Member | None:
        """``a.b`` of a struct or union."""
        bits, found = 0, struct_id
        member = None
        for name in path.split("."):
            inner = self.resolve(found)
            offset = self._string(name)
            if inner is None or offset is None or not name:
                return None
            member = self._member(inner, offset, 0, set())
            if member is None:
                return None
            bits, found = bits + member.bit_offset, member.type_id
        return None if member is None else Member(bits, member.bit_size, member.type_id)

    def _member(self, struct_id: int, name: int, depth: int, seen: set[int]) -> Member | None:
        """Of a struct or of anonymous ones in it; those ``seen`` don't have it.

        A forged one can be in each of the others twice.
        """
        row = struct_id - 1
        if depth > _DEEPEST or struct_id in seen or self.kind[row] not in _STRUCTS or not self.vlen[row]:
            return None
        seen.add(struct_id)
        first = int(self.start[row]) + 3
        table = self.words[first : first + 3 * int(self.vlen[row])].reshape(-1, 3)
        hits = np.flatnonzero(table[:, 0] == np.uint32(name))
        if len(hits):
            return self._read_member(row, table[hits[0]])
        for entry in table[table[:, 0] == 0]:
            outer = self._read_member(row, entry)
            inner = self.resolve(outer.type_id)
            found = None if inner is None else self._member(inner, name, depth + 1, seen)
            if found is not None:
                return Member(outer.bit_offset + found.bit_offset, found.bit_size, found.type_id)
        return None

    def _read_member(self, row: int, entry: U32) -> Member:
        offset = int(entry[2])
        if self.kind_flag[row]:
            return Member(offset & 0xFFFFFF, offset >> 24, int(entry[1]))
        return Member(offset, 0, int(entry[1]))

    def _path(self, name: str) -> Member | None:
        """``struct.member``, of the first type of that name that has it."""
        struct_name, _, path = name.partition(".")
        kinds = (*_STRUCTS, Kind.TYPEDEF)
        found = (self.member(type_id, path) for type_id in self.ids(struct_name, kinds))
        return next((member for member in found if member is not None), None)

    def _offset(self, name: str) -> int | None:
        member = self._path(name)
        return None if member is None or member.bit_offset % 8 else member.bit_offset // 8

    def _size(self, name: str) -> int | None:
        if "." in name:
            member = self._path(name)
            return None if member is None or member.bit_size else self.size_of(member.type_id)
        sizes = (self.size_of(type_id) for type_id in self.ids(name, (*_SIZED, Kind.TYPEDEF)))
        return next((size for size in sizes if size is not None), None)

    def _length(self, name: str) -> int | None:
        if "." in name:
            member = self._path(name)
            types = [] if member is None else [member.type_id]
        else:
            types = [int(self.size[type_id - 1]) for type_id in self.ids(name, (Kind.VAR,))]
        for type_id in types:
            found = self.resolve(type_id)
            if found is not None and self.kind[found - 1] == Kind.ARRAY:
                return self._extra(found, 3)[2]
        return None

    def _number(self, name: str) -> int | None:
        """The value of an enumerator."""
        offset = self._string(name)
        if offset is None:
            return None
        for at in np.flatnonzero(self.words == np.uint32(offset)).tolist():
            row = int(np.searchsorted(self.start, at, side="right")) - 1
            kind, inside = self.kind[row], at - int(self.start[row]) - 3
            each = WORDS_EACH[Kind.ENUM64] if kind == Kind.ENUM64 else WORDS_EACH[Kind.ENUM]
            if kind not in (Kind.ENUM, Kind.ENUM64) or inside < 0 or inside % each:
                continue
            value, bits = int(self.words[at + 1]), 32
            if kind == Kind.ENUM64:
                value, bits = value | int(self.words[at + 2]) << 32, 64
            return value - (1 << bits) if self.kind_flag[row] and value >> (bits - 1) else value
        return None

    def _extra(self, type_id: int, count: int) -> list[int]:
        first = int(self.start[type_id - 1]) + 3
        return [int(word) for word in self.words[first : first + count]]

    def _string(self, name: str) -> int | None:
        wanted = name.encode()
        if wanted not in self._found:
            if len(self._found) >= _FEW:
                return self._offsets.get(wanted)
            at = self.strings.find(b"\0" + wanted + b"\0")
            self._found[wanted] = None if at < 0 else at + 1
        return self._found[wanted]

    @cached_property
    def _found(self) -> dict[bytes, int | None]:
        """Where strings are that were asked for."""
        return {}

    @cached_property
    def _offsets(self) -> dict[bytes, int]:
        """Where all strings are: takes as long as looking for fifty of them, and a core asks for hundreds."""
        ends = np.flatnonzero(np.frombuffer(self.strings, dtype=np.uint8) == 0)
        return dict(zip(self.strings.split(b"\0")[1:-1], (ends[:-1] + 1).tolist(), strict=True))


def _behind(base: Btf, own: Btf) -> Btf:
    """A module's columns behind those of its kernel."""

    return replace(
        own,
        words=np.concatenate([base.words, own.words]),
        strings=base.strings + own.strings,
        start=np.concatenate([base.start, own.start + len(base.words)]),
        name=np.concatenate([base.name, own.name]),
        kind=np.concatenate([base.kind, own.kind]),
        vlen=np.concatenate([base.vlen, own.vlen]),
        kind_flag=np.concatenate([base.kind_flag, own.kind_flag]),
        size=np.concatenate([base.size, own.size]),
        first=len(base),
        first_string=len(base.strings),
    )


def sections_of(data: bytes, order: str, *, split: bool = False) -> tuple[bytes, bytes] | None:
    """Type records and strings; None when the header makes no sense.

    Strings begin with an empty one and end with a NUL; those of a module have only to end, if any
    (btf_parse_str_sec() in kernel/bpf/btf.c).
    """
    if len(data) < HEADER_SIZE:
        return None
    byte_order = "little" if order == "<" else "big"
    if data[2] != 1 or int.from_bytes(data[:2], byte_order) != MAGIC:  # type: ignore[arg-type]
        return None
    head = np.frombuffer(data, dtype=f"{order}u4", count=6)
    hdr_len, type_off, type_len, str_off, str_len = (int(word) for word in head[1:])
    types, strings = hdr_len + type_off, hdr_len + str_off
    if hdr_len < HEADER_SIZE or type_len % 4 or max(types + type_len, strings + str_len) > len(data):
        log.info("BTF: the header describes more than there is")
        return None
    text = data[strings : strings + str_len]
    if split and not text:
        return data[types : types + type_len], text
    if not text.endswith(b"\0") or not (split or text.startswith(b"\0")):
        return None
    return data[types : types + type_len], text


def _records(words: U32) -> tuple[Index, int]:
    """Where each record begins, and where the last one ends: before one that is unknown or runs over the end.

    The length of the record that would begin at each word is computed for many words at once; what is
    left is to go from one to the next.
    """
    fixed, each = np.full(32, HEAD, dtype=np.intp), np.zeros(32, dtype=np.intp)
    for kind, count in WORDS.items():
        fixed[kind] += count
    for kind, count in WORDS_EACH.items():
        each[kind] = count
    fixed[[kind for kind in range(32) if kind not in list(Kind)]] = len(words) + 1
    found, at, end = [np.zeros(0, dtype=np.intp)], 0, len(words)
    while at < end:
        count = min(_WORDS_AT_ONCE, end - at)
        info = np.zeros(count, dtype=np.uint32)
        behind = words[at + 1 : at + 1 + count]
        info[: len(behind)] = behind
        kind_of = info >> np.uint32(24) & np.uint32(31)
        length = fixed[kind_of] + each[kind_of] * (info & np.uint32(0xFFFF)).astype(np.intp)
        following, starts, here = (np.arange(count) + length).tolist(), [], 0
        while here < count:
            starts.append(here)
            here = following[here]
        found.append(np.array(starts, dtype=np.intp) + at)
        at += here
    start = np.concatenate(found)
    return (start, end) if at == end else (start[:-1], int(start[-1]))


def no_types(word: int) -> Btf:
    """An object without any, for those that have other things to say of a kernel."""
    none, index = np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.intp)
    kind, flag = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.bool_)
    return Btf(none, b"\0", index, none, kind, index, flag, none, word, "none")


def open_btf(
    memory: VirtualMemory,
    known: Source,
    window: tuple[int, int],
    order: str,
    word: int,
    *,
    partial: bool = False,
) -> Btf | None:
    """The kernel's BTF in the dump: where its symbols say, else by its header; None when there is none.

    If ``partial``, what can be read of it.
    """
    start, stop = (known.find("SYMBOL", f"__{name}_BTF") for name in ("start", "stop"))
    if start is not None and stop is not None:
        size = int(stop.value) - int(start.value)
        return _open_at(memory, int(start.value), size, order, word, partial=partial)
    byte_order = "little" if order == "<" else "big"
    pattern = MAGIC.to_bytes(2, byte_order) + b"\1\0" + HEADER_SIZE.to_bytes(4, byte_order) + bytes(4)  # type: ignore[arg-type]
    # memory is zeros for the most part: a pattern that ends with them is looked for slowly
    beginning = pattern[:3]
    left, tries = _MOST_CANDIDATES, _MOST_BEGINNINGS
    for vaddr, data in memory.scan(*window, HEADER_SIZE):
        at = data.find(beginning)
        while at >= 0 and left and tries:
            tries -= 1
            if not data.startswith(pattern, at):
                at = data.find(beginning, at + 1)
                continue
            left -= 1
            head = np.frombuffer(data[at : at + HEADER_SIZE].ljust(HEADER_SIZE, b"\0"), dtype=f"{order}u4")
            size = HEADER_SIZE + int(head[4]) + int(head[5])
            found = _open_at(memory, vaddr + at, size, order, word, partial=partial)
            if found is not None:
                return found
            at = data.find(beginning, at + 1)
    log.info("BTF: none in the kernel image")
    return None


def _open_at(
    memory: VirtualMemory, vaddr: int, size: int, order: str, word: int, *, partial: bool
) -> Btf | None:
    if not HEADER_SIZE <= size <= MAX_SIZE:
        return None
    if partial:
        data = bytearray(size)
        memory.read_present(vaddr, memoryview(data))
        return Btf.parse(bytes(data), order, word, "BTF in the dump", partial=True)
    try:
        content = memory.read(vaddr, size)
    except FaultError as error:
        log.info("BTF: %s", error)
        return None
    found = Btf.parse(content, order, word, "BTF in the dump")
    if found is not None:
        log.info("BTF: %d types", len(found))
    return found
