"""BTF objects of any content, in either byte order (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(9, 20)


class BtfWriter:
    """Types are added one by one; each call returns the type's number.

    With ``base`` it is a module's: numbers and strings go on where that one has ended.
    """

    def __init__(self, order: str = "<", base: BtfWriter | None = None) -> None:
        self.order = order
        self.before = (
            (base.before[0] + len(base.records), base.before[1] + len(base.strings)) if base else (0, 0)
        )
        self.strings = bytearray() if base else bytearray(b"\0")
        self.known = {"": 0} | (base.known if base else {})
        self.records: list[bytes] = []

    def string(self, name: str) -> int:
        if name not in self.known:
            self.known[name] = self.before[1] + len(self.strings)
            self.strings += name.encode() + b"\0"
        return self.known[name]

    def add(
        self, kind: int, name: str, size: int, words: Sequence[int] = (), *, vlen: int = 0, flag: bool = False
    ) -> int:
        info = kind << 24 | vlen | int(flag) << 31
        numbers = [self.string(name), info, size & 0xFFFFFFFF, *(word & 0xFFFFFFFF for word in words)]
        self.records.append(struct.pack(f"{self.order}{len(numbers)}I", *numbers))
        return self.before[0] + len(self.records)

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        """``encoding``: 1 signed, 2 char, 4 bool."""
        return self.add(INT, name, size, [encoding << 24 | size * 8])

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

    def proto(self, returns: int, params: Sequence[tuple[str, int]]) -> int:
        """Parameters as (name, type); ("", 0) at the end is an ellipsis."""
        words = [word for name, type_id in params for word in (self.string(name), type_id)]
        return self.add(FUNC_PROTO, "", returns, words, vlen=len(params))

    def section(self, name: str, variables: Sequence[tuple[int, int, int]]) -> int:
        """Variables as (number of a VAR, offset, size)."""
        words = [word for variable in variables for word in variable]
        return self.add(DATASEC, name, 0, words, vlen=len(variables))

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
