"""Kernel image files (vmlinuz, bzImage, Image, zImage): the kernel in them as memory at its link addresses.

Most hold an ELF vmlinux without symbols or, of arm64, arm and mips, the plain memory of one, compressed.
Where that is, three headers say; otherwise a stream is looked for that becomes a kernel.  Plain memory does
not say where it was linked: that is worked out of what is in it.

References: Documentation/arch/x86/boot.rst (setup header), Documentation/arch/arm64/booting.rst,
drivers/firmware/efi/libstub/zboot-header.S, arch/arm/boot/compressed/head.S; scripts/extract-vmlinux.
"""

from __future__ import annotations

import itertools
import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import u64
from kdump_elftool.codecs.kernel_streams import KERNEL_STREAMS
from kdump_elftool.codecs.whole import Allowance, Held, decompressed
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.errors import FormatError, MissingCodecError
from kdump_elftool.files import ByteSource
from kdump_elftool.kernel.image_pointers import arm64_base, with_pointers
from kdump_elftool.kernel.kallsyms_tables import relative_bases
from kdump_elftool.memory.extents import Extents, normalise
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

MOST = 1 << 29
"""Bytes of a kernel; those with KASAN have 200 MB."""
_SMALLEST = 1 << 16
_MOST_STREAMS = 64
_MOST_TOGETHER = 2 * MOST
"""Bytes that all streams which are tried become: one may be a ramdisk or a bomb."""
_MOST_BASES = 8
_HEAD = 0x260
_FIRST_WITH_PAYLOAD = 0x208
"""Boot protocol of x86 since v2.6.26."""
_STREAM = re.compile(
    rb"\x1f\x8b\x08[\0-\x1f]|\xfd7zXZ\0|\x28\xb5\x2f\xfd|\x02\x21\x4c\x18|\x89LZO\0\r\n\x1a\n|BZh[1-9]1AY&SY"
    rb"|\x5d\0\0[\0-\xff][\0-\x10]\xff{8}",
    re.DOTALL,
)


@dataclass(frozen=True)
class Machine:
    """What the kernel is for."""

    e_machine: int
    kind: ElfKind
    e_flags: int = 0


@dataclass(frozen=True)
class BootImage:
    """A kernel as memory: ``window`` is the span of its link addresses, [start, end).

    ``elf`` is the vmlinux that it is, None of plain memory.  ``placed`` is false where the addresses of
    symbols are known, but not which bytes are at them: then the first byte is put at the lowest symbol.
    """

    path: str
    machine: Machine
    memory: VirtualMemory
    window: tuple[int, int]
    elf: ElfFile | None = None
    placed: bool = True


_ARM = Machine(c.EM_ARM, ElfKind(32, "<"))


def boot_images(file: ByteSource) -> Iterator[BootImage]:
    """What the file may be, likelier ones first; the caller looks for the one that has a symbol table.

    Raises MissingCodecError, FormatError for what is known to be damaged.
    """
    if file.size > MOST:
        yield from _of_elf(file)  # with debug information a vmlinux may be as large
        return
    outside = decompressed(file, MOST, KERNEL_STREAMS)
    data = file.read_at(0, file.size) if outside is None else outside
    yield from _images(file.path, data)


def _images(path: str, data: bytes) -> Iterator[BootImage]:
    """The kernel itself, or what is packed in it."""
    yield from _plain(path, data, None)
    said = _payload(data)
    if said is not None:
        start, size = said
        inside = decompressed(Held(path, data[start : start + size]), MOST, KERNEL_STREAMS)
        if inside is not None:
            yield from _plain(path, inside, _machine(data))
            return
        log.info("image: no compression that is known at %#x", start)
    if len(data) >= 0x40 and data[0x38:0x3C] == b"ARM\x64":
        return  # not packed
    for inside in _found(path, data):
        yield from _plain(path, inside, _machine(data))


def _machine(data: bytes) -> Machine | None:
    """What the file around a packed kernel says."""
    if data.startswith(c.ELFMAG):
        try:
            header = ElfFile.read(Held("", data)).header
        except FormatError:
            return None
        return Machine(header.e_machine, header.kind, header.e_flags)
    if data[0x24:0x28] == b"\x18\x28\x6f\x01":
        return _ARM
    return None


def _payload(data: bytes) -> tuple[int, int] | None:
    """Where a header says that the packed kernel is: file offset, size."""
    if len(data) < _HEAD:
        return None
    if data[0x202:0x206] == b"HdrS" and data[0x1FE:0x200] == b"\x55\xaa":
        (version,) = struct.unpack_from("<H", data, 0x206)
        offset, size = struct.unpack_from("<II", data, 0x248)
        start = ((data[0x1F1] or 4) + 1) * 512 + offset
        return (start, size) if version >= _FIRST_WITH_PAYLOAD and start < len(data) else None
    if data.startswith(b"MZ") and data[4:8] == b"zimg":
        start, size = struct.unpack_from("<II", data, 8)
        return (start, size) if start < len(data) else None
    return None


def _found(path: str, data: bytes) -> Iterator[bytes]:
    """The contents of streams that are large enough for a kernel."""
    missing: MissingCodecError | None = None
    shared = Allowance(_MOST_TOGETHER)
    for match in itertools.islice(_STREAM.finditer(data), _MOST_STREAMS):
        if not shared.left:
            log.info("image: what is packed in it is too much")
            break
        try:
            inside = decompressed(Held(path, data[match.start() :]), MOST, KERNEL_STREAMS, shared)
        except FormatError:
            continue
        except MissingCodecError as error:
            missing = error
            continue
        if inside is not None and len(inside) >= _SMALLEST:
            log.info("image: %#x bytes are packed at file offset %#x", len(inside), match.start())
            yield inside
    if missing is not None:
        raise missing


def _plain(path: str, data: bytes, machine: Machine | None) -> Iterator[BootImage]:
    """A kernel that is not packed: an ELF file, the memory of arm64, or of a ``machine`` that is known."""
    if data.startswith(c.ELFMAG):
        yield from _of_elf(Held(path, data))
    elif len(data) >= 0x40 and data[0x38:0x3C] == b"ARM\x64":
        text_offset, size, flags = struct.unpack_from("<QQQ", data, 8)
        order = ">" if flags & 1 else "<"
        base = arm64_base(data, order, text_offset)
        if base is not None:
            data = with_pointers(data, order, base)
            machine = Machine(c.EM_AARCH64, ElfKind(64, order))
            # what has no bytes in the file (.bss) lies behind it; kernels before v3.17 don't say how much
            end = base + (size if len(data) <= size <= MOST else 2 * len(data))
            yield BootImage(path, machine, _memory_at(data, base), (base, end))
    elif machine is not None:
        flat = _memory_at(data, 0)
        word = machine.kind.bits // 8
        for number, base in enumerate(relative_bases(flat, (0, len(data)), machine.kind.order, word)):
            if number >= _MOST_BASES:
                break
            if base and base + len(data) < 1 << machine.kind.bits:
                end = min(base + 2 * len(data), (1 << machine.kind.bits) - 1)
                yield BootImage(path, machine, _memory_at(data, base), (base, end), placed=False)


def _memory_at(data: bytes, base: int) -> VirtualMemory:
    held = Extents(u64([0]), u64([len(data)]), u64([0]))
    physical = PhysicalMemory(Held("", data), held, held.ranges())
    return VirtualMemory.of(physical, u64([base]), u64([0]), u64([len(data)]))


def _of_elf(file: ByteSource) -> Iterator[BootImage]:
    """An ELF vmlinux by its program headers."""
    elf = ElfFile.read(file)
    header, loads = elf.header, elf.segments.of_type(c.PT_LOAD)
    if header.e_type not in (c.ET_EXEC, c.ET_DYN):
        kind = c.ET_NAMES.get(header.e_type, f"ELF file of type {header.e_type}")
        raise FormatError(file.path, f"this is an ELF {kind}, not a kernel image")
    room = np.uint64(file.size)
    size = np.where(loads.p_offset < room, np.minimum(loads.p_filesz, room - loads.p_offset), 0)
    mapped = normalise(loads.p_vaddr, size.astype(np.uint64), loads.p_offset)
    # x86_64 has per-CPU variables in a segment at 0
    image = loads.p_vaddr != 0
    if not image.any() or not len(mapped):
        return
    low = int(loads.p_vaddr[image].min())
    ends = zip(loads.p_vaddr[image].tolist(), loads.p_memsz[image].tolist(), strict=True)
    high = max(start + size for start, size in ends)
    held = Extents(u64([0]), u64([file.size]), u64([0]))
    memory = VirtualMemory(PhysicalMemory(file, held, held.ranges()), mapped)
    machine = Machine(header.e_machine, header.kind, header.e_flags)
    yield BootImage(file.path, machine, memory, (low, min(high, (1 << 64) - 1)), elf)
