"""Small kernels as their builds pack them: an ELF or plain memory, compressed, behind a header.

References: Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst, zboot-header.S.
Compressors are those that the kernel's build runs, or their libraries.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lz4.block
from backports import zstd

from tests.builders import btf as b
from tests.builders.kallsyms import Form, Symbol, build
from tests.builders.streams import lzop_file

RELEASE = "6.1.0-image"
BANNER = b"Linux version " + RELEASE.encode() + b" (me@here) (gcc 12) %s SMP of today\n\0"
VERSION = b"#7 SMP of today"
SIZE, FILLER = 0x80000, 1500
RODATA, UTS_NS, INIT_TASK = 0x20000, 0x28000, 0x29000
KALLSYMS_AT, BTF_AT, ORC_IP_AT, ORC_AT, RELA_AT = 0x40000, 0x60000, 0x64000, 0x65000, 0x70000
NAME_AT, COMM_AT, TASKS_AT, PID_AT = 8, 0x40, 0x20, 0x30
X86_BASE, ARM64_BASE, ARM_BASE = 0xFFFFFFFF81000000, 0xFFFF800008000000, 0xC0208000
LEGACY_BLOCK = 8 << 20


def types(order: str = "<", word: int = 8) -> bytes:
    w = b.BtfWriter(order)
    integer, char, number = w.integer("int", 4, 1), w.integer("char", 1, 1), w.integer("long", word)
    w.struct("uts_namespace", 512, [("count", integer, 0), ("name", w.array(char, 390), NAME_AT)])
    node = w.struct("list_head", 2 * word, [("next", number, 0), ("prev", number, word)])
    members = [("tasks", node, TASKS_AT), ("pid", integer, PID_AT), ("tgid", integer, PID_AT + 4)]
    task = w.struct("task_struct", 0x80, [*members, ("comm", w.array(char, 16), COMM_AT)])
    w.add(b.FUNC, "schedule_task", w.proto(integer, [("task", w.pointer(task))]), vlen=1)
    return w.finish()


@dataclass
class Kernel:
    """The memory of one, from its first byte on, and where it was linked."""

    base: int
    data: bytearray
    relocations: list[tuple[int, int]] = field(default_factory=list)
    order: str = "<"
    word: int = 8

    def pointer(self, at: int, target: int, *, relocated: bool) -> None:
        """A pointer to ``target`` in the image: its bits, or zeros and a relocation."""
        value = self.base + target
        if relocated:
            self.relocations.append((self.base + at, value))
        else:
            self.data[at : at + self.word] = value.to_bytes(
                self.word, "little" if self.order == "<" else "big"
            )


def symbols_of(base: int, *, everything: bool) -> list[Symbol]:
    """A table of all symbols, or of functions only."""
    functions = [
        (base + 0x1000, "T", "_stext"),
        (base + 0x1000, "T", "panic"),
        (base + 0x1100, "t", "schedule_task"),
        *((base + 0x2000 + 16 * number, "t", f"filler_{number}") for number in range(FILLER)),
        (base + 0x10000, "T", "_etext"),
    ]
    if not everything:
        return functions
    return [
        (base, "T", "_text"),
        *functions,
        (base + RODATA, "R", "linux_banner"),
        (base + UTS_NS, "D", "init_uts_ns"),
        (base + INIT_TASK, "D", "init_task"),
        (base + BTF_AT, "R", "__start_BTF"),
        (base + BTF_AT + len(types()), "R", "__stop_BTF"),
        (base + SIZE, "B", "_end"),
    ]


def make(
    base: int,
    form: Form,
    *,
    everything: bool = True,
    relocated: bool = False,
    btf: bool = True,
    more: Sequence[Symbol] = (),
) -> Kernel:
    """A kernel with symbols, ``more`` of them, types and the variables that are found by their content."""
    kernel = Kernel(base, bytearray(SIZE), order=form.order, word=form.word)
    data = kernel.data
    table = sorted([*symbols_of(base, everything=everything), *more], key=lambda symbol: symbol[0])
    image = build(table, form, base + KALLSYMS_AT, table[0][0])
    assert KALLSYMS_AT + len(image.data) <= BTF_AT
    data[KALLSYMS_AT : KALLSYMS_AT + len(image.data)] = image.data
    if relocated and "relative_base" in image.at:
        at = image.at["relative_base"] - base
        data[at : at + form.word] = bytes(form.word)
        kernel.pointer(at, table[0][0] - base, relocated=True)
    if btf:
        object_ = types(form.order, form.word)
        data[BTF_AT : BTF_AT + len(object_)] = object_
    early = BANNER.replace(b"%s", b"#")
    data[RODATA + 0x800 : RODATA + 0x800 + len(early)] = early
    banner = BANNER.replace(b"%s", b"#7")
    data[RODATA : RODATA + len(banner)] = banner
    for at, version in ((UTS_NS, VERSION), (UTS_NS + 0x400, b"# SMP of today")):
        for number, text in enumerate((b"Linux", b"(none)", RELEASE.encode(), version, b"machine")):
            start = at + NAME_AT + 65 * number
            data[start : start + len(text)] = text
    data[INIT_TASK + COMM_AT : INIT_TASK + COMM_AT + 7] = b"swapper"
    for at in (INIT_TASK + TASKS_AT, INIT_TASK + TASKS_AT + form.word):
        kernel.pointer(at, INIT_TASK + TASKS_AT, relocated=relocated)
    for number in range(1500):
        kernel.pointer(0x10000 + 8 * number, 0x2000 + 16 * number, relocated=relocated)
    return kernel


def with_relocations(kernel: Kernel) -> bytes:
    """.rela.dyn in it: R_AARCH64_RELATIVE (gABI: offset, info, addend)."""
    rows = [
        struct.pack(f"{kernel.order}QQq", place, 1027, value - (1 << 64))
        for place, value in kernel.relocations
    ]
    table = b"".join(rows)
    assert RELA_AT + len(table) <= SIZE
    kernel.data[RELA_AT : RELA_AT + len(table)] = table
    return bytes(kernel.data)


def elf(kernel: Kernel, e_machine: int, *, percpu: bool = True) -> bytes:
    """A vmlinux without sections: text, data, and the per-CPU variables of x86_64 at 0."""
    bits = 8 * kernel.word
    half = SIZE // 2
    loads = [(0, kernel.base, half, half), (half, kernel.base + half, half, half + 0x1000)]
    if percpu:
        loads.insert(1, (0, 0, 0x100, 0x100))
    head = 0x1000
    ident = b"\x7fELF" + bytes([bits // 32, 1 if kernel.order == "<" else 2, 1]) + bytes(9)
    if bits == 64:
        header = struct.pack(
            kernel.order + "HHIQQQIHHHHHH", 2, e_machine, 1, 0, 64, 0, 0, 64, 56, len(loads), 64, 0, 0
        )
        table = [
            struct.pack(kernel.order + "IIQQQQQQ", 1, 7, head + at, vaddr, 0, size, room, 0x1000)
            for at, vaddr, size, room in loads
        ]
    else:
        header = struct.pack(
            kernel.order + "HHIIIIIHHHHHH", 2, e_machine, 1, 0, 52, 0, 0, 52, 32, len(loads), 40, 0, 0
        )
        table = [
            struct.pack(kernel.order + "IIIIIIII", 1, head + at, vaddr, 0, size, room, 7, 0x1000)
            for at, vaddr, size, room in loads
        ]
    return (ident + header + b"".join(table)).ljust(head, b"\0") + bytes(kernel.data)


def legacy_lz4(data: bytes) -> bytes:
    """As ``lz4 -l`` writes it."""
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), LEGACY_BLOCK):
        block = lz4.block.compress(data[at : at + LEGACY_BLOCK], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: bz2.compress(data, 1),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=0),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, preset=0),
    "lzo": lzop_file,
    "lz4": legacy_lz4,
    "zstd": lambda data: zstd.compress(data, 1),
}


def packed(data: bytes, how: str) -> bytes:
    """Compressed, with the size behind it as the kernel's build adds it."""
    return COMPRESS[how](data) + struct.pack("<I", len(data))


def bz_image(payload: bytes, *, version: int = 0x20F, offset: int = 0x123, size: int | None = None) -> bytes:
    """The boot sector, setup code of 3 sectors, the decompressor, the kernel, what follows."""
    setup = bytearray(4 * 512)
    setup[0x1F1], setup[0x1FE:0x200] = 3, b"\x55\xaa"
    setup[0x202:0x208] = b"HdrS" + struct.pack("<H", version)
    setup[0x248:0x250] = struct.pack("<II", offset, len(payload) if size is None else size)
    return bytes(setup) + b"\x90" * offset + payload + b"the rest"


def arm64_image(data: bytes, *, text_offset: int = 0, flags: int = 0xA) -> bytes:
    """The header over the first 64 bytes."""
    head = struct.pack("<IIQQQQQQ", 0xFA405A4D, 0x14000000, text_offset, len(data) + 0x2000, flags, 0, 0, 0)
    return head + b"ARM\x64" + struct.pack("<I", 0x40) + data[64:]


def zboot(payload: bytes, how: str) -> bytes:
    """An EFI application that unpacks the image behind its header."""
    head = b"MZ\0\0zimg" + struct.pack("<IIII", 0x200, len(payload), 0, 0) + how.encode()
    return head.ljust(0x38, b"\0") + struct.pack("<II", 0x818223CD, 0x40) + bytes(0x1C0) + payload


def z_image(payload: bytes) -> bytes:
    """arm's: code with a magic number, the kernel somewhere behind it."""
    return bytes(0x24) + struct.pack("<III", 0x016F2818, 0, 0x4000) + bytes(0x3000) + payload + bytes(64)
