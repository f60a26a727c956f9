"""QEMU migration streams from their description, byte by byte (struct only)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.builders.migration_devices import Device, behind, common, timer, x86_cpu

PAGE = 4096
ZERO, MEM_SIZE, DATA, EOS, CONTINUE = 2, 4, 8, 0x10, 0x20
START, PART, END, FULL, SUBSECTION, VMDESCRIPTION, CONFIGURATION, COMMAND, FOOTER = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    0x7E,
)
I440FX, Q35 = "pc-i440fx-7.2", "pc-q35-7.2"
RAM_ID = 2


def name(text: str) -> bytes:
    """A length in one byte, and the text."""
    return bytes([len(text)]) + text.encode()


def configuration(machine: str, *subsections: tuple[str, bytes]) -> bytes:
    """The section that names the machine."""
    body = struct.pack(">BI", CONFIGURATION, len(machine)) + machine.encode()
    for title, data in subsections:
        body += bytes([SUBSECTION]) + name(title) + struct.pack(">I", 1) + data
    return body


def command(number: int, data: bytes) -> bytes:
    """A command to the other side."""
    return struct.pack(">BHH", COMMAND, number, len(data)) + data


def begin(kind: int, number: int = RAM_ID, device: str = "ram", version: int = 4) -> bytes:
    """A section's header."""
    head = struct.pack(">BI", kind, number)
    return head + name(device) + struct.pack(">II", 0, version) if kind in (START, FULL) else head


def end(number: int = RAM_ID, footer: bool = True) -> bytes:
    """The end of a section of ``ram``."""
    return struct.pack(">Q", EOS) + (struct.pack(">BI", FOOTER, number) if footer else b"")


def block_list(blocks: dict[str, int], words: tuple[int, ...] = ()) -> bytes:
    """The list of memory blocks; ``words`` stand behind each size."""
    out = struct.pack(">Q", sum(blocks.values()) | MEM_SIZE)
    for title, size in blocks.items():
        out += name(title) + struct.pack(f">{1 + len(words)}Q", size, *words)
    return out


def page(offset: int, data: bytes | None, block: str | None = None) -> bytes:
    """A record: ``data`` None for a page of zeros, ``block`` None for the one before."""
    flags = (ZERO if data is None else DATA) | (0 if block else CONTINUE)
    return (
        struct.pack(">Q", offset | flags)
        + (name(block) if block else b"")
        + (b"\0" if data is None else data)
    )


@dataclass
class Stream:
    """A whole stream: each of ``parts`` are the records of a section."""

    parts: list[bytes]
    blocks: dict[str, int] = field(default_factory=lambda: {"pc.ram": 1 << 20})
    machine: str | None = I440FX
    subsections: tuple[tuple[str, bytes], ...] = ()
    words: tuple[int, ...] = ()
    commands: bytes = b""
    version: int = 3
    footers: bool = True
    behind: bytes = field(default_factory=lambda: behind([timer(), common(0), x86_cpu(0, {"rip": 0x1000})]))

    def build(self) -> bytes:
        """The stream's bytes."""
        out = b"QEVM" + struct.pack(">I", self.version)
        if self.machine is not None:
            out += configuration(self.machine, *self.subsections)
        out += self.commands
        out += begin(START) + block_list(self.blocks, self.words) + end(footer=self.footers)
        for index, records in enumerate(self.parts):
            kind = END if index == len(self.parts) - 1 else PART
            out += begin(kind) + records + end(footer=self.footers)
        return out + self.behind


def records(block: str, pages: list[tuple[int, bytes | None]]) -> bytes:
    """Records of one block; the first names it."""
    return b"".join(
        page(offset, data, None if index else block) for index, (offset, data) in enumerate(pages)
    )


def stream_of(ranges: list[tuple[int, bytes]], size: int, devices: list[Device] | None = None) -> bytes:
    """A pc guest of so many bytes that holds these ranges, and zeros elsewhere."""
    memory = bytearray(size)
    for start, data in ranges:
        memory[start : start + len(data)] = data
    pages = [(at, bytes(memory[at : at + PAGE])) for at in range(0, size, PAGE)]
    told = [(at, data if any(data) else None) for at, data in pages]
    more = {} if devices is None else {"behind": behind(devices)}
    return Stream([records("pc.ram", told), b""], {"pc.ram": size}, **more).build()
