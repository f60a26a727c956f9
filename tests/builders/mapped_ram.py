"""QEMU migration files with mapped-ram from their description, byte by byte (struct only)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.builders import migration as mig
from tests.builders.migration_devices import behind, common, timer, x86_cpu

PAGE = 4096
ALIGNED = 1 << 20
HEADER_SIZE = 28


def capabilities(*names: str) -> tuple[str, bytes]:
    """The subsection that lists what a reader must know."""
    return "configuration/capabilities", struct.pack(">I", len(names)) + b"".join(map(mig.name, names))


@dataclass
class MappedFile:
    """``pages`` are those that are not zero, by block and offset; a block in ``ignored`` was left out."""

    pages: dict[str, dict[int, bytes]]
    blocks: dict[str, int]
    machine: str = mig.I440FX
    ignored: tuple[str, ...] = ()
    addresses: bool = False
    finished: bool = True
    version: int = 1
    page_size: int = PAGE
    behind: bytes = field(default_factory=lambda: behind([timer(), common(0), x86_cpu(0, {"rip": 0x1000})]))
    before: int = 0
    """Bytes before the stream in the file that QEMU wrote into."""
    headers: dict[str, int] = field(default_factory=dict)
    """Where each block's header was put."""

    def build(self) -> bytes:
        """The file's bytes."""
        names = ("mapped-ram", "x-ignore-shared") if self.addresses else ("mapped-ram",)
        out = bytearray(b"QEVM" + struct.pack(">I", 3))
        out += mig.configuration(self.machine, capabilities(*names))
        out += mig.begin(mig.START) + struct.pack(">Q", sum(self.blocks.values()) | mig.MEM_SIZE)
        for name, size in self.blocks.items():
            self._block(out, name, size)
        out += mig.end()
        return bytes(out + mig.begin(mig.END) + mig.end() + self.behind) if self.finished else bytes(out)

    def _block(self, out: bytearray, name: str, size: int) -> None:
        out += mig.name(name) + struct.pack(">Q", size)
        out += struct.pack(">Q", 0) if self.addresses else b""
        self.headers[name] = len(out)
        if name in self.ignored:
            out += struct.pack(">IQQQ", self.version, self.page_size, 0, 0)
            return
        count = size // PAGE
        bitmap = self.before + len(out) + HEADER_SIZE
        words = -(-count // 64) * 8
        pages = -(-(bitmap + words) // ALIGNED) * ALIGNED
        out += struct.pack(">IQQQ", self.version, self.page_size, bitmap, pages)
        held = self.pages.get(name, {})
        bits = sum(1 << offset // PAGE for offset in held) if self.finished else 0
        out += bits.to_bytes(words, "little")
        begin = pages - self.before
        out += bytes(begin + size - len(out))
        for offset, data in held.items():
            out[begin + offset : begin + offset + PAGE] = data


def pages_of(memory: bytes) -> dict[int, bytes]:
    """Those that are not zero."""
    cut = {at: memory[at : at + PAGE] for at in range(0, len(memory), PAGE)}
    return {at: data for at, data in cut.items() if any(data)}
