"""VMware guest states from their description, byte by byte (struct only)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PAGE = 4096
MAGIC = 0xBED2BED2
GENERAL = "rax rcx rdx rbx rbp rsp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


def tag(name: str, value: bytes, *indices: int) -> bytes:
    """A value that is no block."""
    head = bytes([len(value) | len(indices) << 6, len(name)]) + name.encode()
    return head + struct.pack(f"<{len(indices)}I", *indices) + value


def block(name: str, data: bytes, *indices: int, padding: int = 0, compressed: bool = False) -> bytes:
    """A block."""
    head = bytes([(0x3E if compressed else 0x3F) | len(indices) << 6, len(name)]) + name.encode()
    head += struct.pack(f"<{len(indices)}I", *indices)
    return head + struct.pack("<QQH", len(data), len(data), padding) + bytes([0xEE]) * padding + data


def u32(name: str, value: int, *indices: int) -> bytes:
    """A number."""
    return tag(name, struct.pack("<I", value), *indices)


def u64(name: str, value: int, *indices: int) -> bytes:
    """A wide number."""
    return tag(name, struct.pack("<Q", value), *indices)


def memory_group(regions: list[tuple[int, int, int]], held: bytes = b"") -> bytes:
    """``regions``: first page in the file, first frame, pages; ``held``: a block of memory."""
    out = u32("align_mask", 0xFFFF) + u32("regionsCount", len(regions))
    for index, (page, frame, count) in enumerate(regions):
        out += u32("regionPageNum", page, index) + u32("regionPPN", frame, index)
        out += u32("regionSize", count, index)
    return out + held + b"\0\0"


def cpu_group(cpus: list[dict[str, int]], *, blocks: bool = False) -> bytes:
    """Registers as values of their own, or the general ones as a block."""
    out = u32("cpu:numVCPUs", len(cpus))
    for cpu, values in enumerate(cpus):
        if blocks:
            out += block(
                "gpregs", struct.pack("<16Q", *(values.get(name, 0) for name in GENERAL)), cpu, padding=3
            )
            out += block("CR64", struct.pack("<9Q", *(values.get(f"cr{n}", 0) for n in range(9))), cpu)
        else:
            out += b"".join(u64(name, values[name], cpu) for name in GENERAL if name in values)
            out += b"".join(u64("CR64", values[f"cr{n}"], cpu, n) for n in (0, 3) if f"cr{n}" in values)
        out += u64("rip", values["rip"], cpu) + u32("eflags", values.get("rflags", 2), cpu)
        out += u32("S", values.get("cs", 0x10), cpu, 1) + u64("S.base64", values.get("gs_base", 0), cpu, 5)
        out += tag("something", bytes(5), cpu, 1, 2)
    return out + b"\0\0"


@dataclass
class State:
    """A state: groups by name; ``at`` is where each was put."""

    groups: dict[str, bytes]
    magic: int = MAGIC
    at: dict[str, int] = field(default_factory=dict)

    def build(self) -> bytes:
        """The file's bytes."""
        place = 12 + 80 * len(self.groups)
        table, body = b"", b""
        for name, data in self.groups.items():
            self.at[name] = place + len(body)
            table += struct.pack("<64s2Q", name.encode(), place + len(body), len(data))
            body += data
        return struct.pack("<3I", self.magic, 8, len(self.groups)) + table + body
