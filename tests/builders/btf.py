"""BTF objects of any content, in either byte order (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(9, 20)


class BtfWriter:
    """Types are added one by one; each call returns the type's number."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.strings = bytearray(b"\0")
        self.known = {"": 0}
        self.records: list[bytes] = []

    def string(self, name: str) -> int:
        if name not in self.known:
            self.known[name] = len(self.strings)
            self.strings += name.encode() + b"\0"
        return self.known[name]

    def add(
        self, kind: int, name: str, size: int, words: Sequence[int] = (), *, vlen: int = 0, flag: bool = False
    ) -> int:
        info = kind << 24 | vlen | int(flag) << 31
        numbers = [self.string(name), info, size & 0xFFFFFFFF, *(word & 0xFFFFFFFF for word in words)]
        self.records.append(struct.pack(f"{self.order}{len(numbers)}I", *numbers))
        return len(self.records)

    def integer(self, name: str, size: int) -> int:
        return self.add(INT, name, size, [size * 8])

    def pointer(self, to: int) -> int:
        return self.add(PTR, "", to)

    def array(self, of: int, count: int) -> int:
        return self.add(ARRAY, "", 0, [of, 1, count])

    def struct(
        self, name: str, size: int, members: Sequence[tuple[str, int, int]], *, kind: int = STRUCT
    ) -> int:
        """Members as (name, type, byte offset)."""
        words = [word for member, type_id, at in members for word in (self.string(member), type_id, at * 8)]
        return self.add(kind, name, size, words, vlen=len(members))

    def bitfields(self, name: str, size: int, members: Sequence[tuple[str, int, int, int]]) -> int:
        """Members as (name, type, bit offset, bits or 0)."""
        words = [
            word
            for member, type_id, at, bits in members
            for word in (self.string(member), type_id, bits << 24 | at)
        ]
        return self.add(STRUCT, name, size, words, vlen=len(members), flag=True)

    def enum(self, name: str, values: Sequence[tuple[str, int]], *, signed: bool = False) -> int:
        words = [word for label, value in values for word in (self.string(label), value)]
        return self.add(ENUM, name, 4, words, vlen=len(values), flag=signed)

    def enum64(self, name: str, values: Sequence[tuple[str, int]], *, signed: bool = False) -> int:
        words = [word for label, value in values for word in (self.string(label), value, value >> 32)]
        return self.add(ENUM64, name, 8, words, vlen=len(values), flag=signed)

    def finish(self) -> bytes:
        types = b"".join(self.records)
        head = struct.pack(
            f"{self.order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings)
        )
        return head + types + bytes(self.strings)
