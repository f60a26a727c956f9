"""Suspended VMware guests and snapshots: a state (.vmss, .vmsn), and memory in it or in a .vmem beside it.

The group ``memory`` says where pieces of the memory lie: ``regionPageNum``, ``regionPPN`` and ``regionSize``
are the first page in the file, the first page frame, and pages.  Without regions memory begins at 0 and has
no hole.  Registers are in the group ``cpu``.  Source: vmware_vmss.c of crash (``vmware_vmss_init``,
``read_vmware_vmss``) and struct vmssregs64 in its vmware_vmss.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

import numpy as np

from kdump_elftool.addr import merge_ranges, subtract_ranges, u64
from kdump_elftool.elf.constants import EM_386, EM_X86_64
from kdump_elftool.errors import CorruptDumpError, FormatError, UnsupportedError, UsageError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.base import CpuRegisters, Dump, Format, Lost, OpenOptions, there
from kdump_elftool.formats.lime import PADDR_LIMIT, image_dump
from kdump_elftool.formats.vmware_state import MAGICS, Group, Tag, number, read_groups, read_tags
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory

NAME = "vmware"
MEMORY_SUFFIX, STATE_SUFFIXES = ".vmem", (".vmss", ".vmsn")
PAGE = 4096
_MACHINES = (EM_386, EM_X86_64)
"""Of others there are no such registers."""
_MOST_REGIONS = 64
_MOST_CPUS = 4096
_OF_REGIONS = ("regionPPN", "regionPageNum", "regionSize")
_GENERAL = "rax rcx rdx rbx rbp rsp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
"""In the order of the block ``gpregs``; they can also be values of their own."""
_NAMED = {name: name for name in (*_GENERAL, "rip")} | {"eflags": "rflags", "EFLAGS": "rflags"}
_SEGMENTS = "es cs ss ds fs gs".split()


@dataclass
class _State:
    """What was read: regions by number as first page in the file, first frame, pages; registers by CPU."""

    count: int = 0
    regions: dict[int, dict[str, int]] = field(default_factory=dict)
    block: Tag | None = None
    cpus: dict[int, dict[str, int]] = field(default_factory=dict)


def probe(head: bytes) -> bool:
    """Whether a file begins like a state."""
    return head.startswith(MAGICS)


def open_vmware(files: tuple[ByteSource, ...], options: OpenOptions) -> Dump:
    """Open a state and the memory that belongs to it, in either order.

    Raises FormatError (one of them is missing), UnsupportedError, CorruptDumpError, UsageError.
    """
    state, memory_file = _sorted(files)
    told = _read(state)
    if told.block is not None:
        reader, base, size = state, told.block.at, told.block.size
    elif memory_file is None:
        wanted = _beside(state.path, MEMORY_SUFFIX)
        raise FormatError(state.path, f"the guest's memory is in a file of its own, and {wanted} is missing")
    else:
        reader, base, size = memory_file, 0, memory_file.size
    pages, frames, counts = _places(state, told, size)
    position, paddr, length = (u64([PAGE * value for value in column]) for column in (pages, frames, counts))
    position += np.uint64(base)
    end = np.uint64(min(base + size, reader.size))
    held = np.where(position < end, np.minimum(end - np.minimum(position, end), length), np.uint64(0))
    begin, at, kept = there(reader, paddr, position, held)
    memory = PhysicalMemory(reader, normalise(begin, kept, at), merge_ranges(paddr, paddr + length))
    in_file = merge_ranges(paddr, paddr + held)
    cut = f"{reader.path} is truncated at file offset {reader.size:#x}"
    lost = (
        Lost("paddr", cut, subtract_ranges(memory.absent(), in_file), reader.size),
        Lost("paddr", f"missing from {reader.path}", subtract_ranges(in_file, memory.present())),
    )
    dump = image_dump(NAME, state, options, memory, lost, ())
    registers = _registers(told) if options.e_machine in _MACHINES else ()
    return replace(dump, cpu_registers=registers)


def _sorted(files: tuple[ByteSource, ...]) -> tuple[ByteSource, ByteSource | None]:
    states = [file for file in files if probe(file.read_at(0, 4))]
    others = [file for file in files if file not in states]
    if not states:
        raise no_state(files[0])
    if len(states) > 1 or len(others) > 1:
        raise UsageError(f"{len(files)} files are given", hint="a VMware state goes with one file of memory")
    return states[0], others[0] if others else None


def no_state(file: ByteSource) -> FormatError:
    """What to say of memory whose state is not there."""
    wanted = " or ".join(_beside(file.path, suffix) for suffix in STATE_SUFFIXES)
    return FormatError(
        file.path,
        f"no VMware state; where the guest's memory lies is said in {wanted}, and there is none",
        hint="without it memory of up to 3 GB can be read as one piece: -I raw",
    )


def _beside(path: str, suffix: str) -> str:
    stem = path[: path.rindex(".")] if path.endswith((MEMORY_SUFFIX, *STATE_SUFFIXES)) else path
    return stem + suffix


def _read(file: ByteSource) -> _State:
    state = _State()
    for group in read_groups(file):
        if group.name == "memory":
            _read_memory(file, state, group)
        elif group.name == "cpu":
            try:
                for tag in read_tags(file, group):
                    _cpu_tag(file, state, tag)
            except CorruptDumpError:
                state.cpus.clear()  # memory is whole without them
    return state


def _read_memory(file: ByteSource, state: _State, group: Group) -> None:
    try:
        for tag in read_tags(file, group):
            _memory_tag(file, state, tag)
    except CorruptDumpError:
        # of a state that was cut off in its memory the rest can be read
        if state.block is None or state.block.at + state.block.size < file.size:
            raise


def _memory_tag(file: ByteSource, state: _State, tag: Tag) -> None:
    if tag.is_block:
        if tag.name != "Memory":
            return
        if tag.compressed:
            raise UnsupportedError(
                file.path,
                "the guest's memory is compressed in the state: not supported",
                hint="VMware's vmss2core makes a core file of it",
                file_offset=tag.at,
            )
        state.block = tag
    elif tag.name == "regionsCount":
        state.count = number(file, tag)
    elif tag.name in _OF_REGIONS and len(tag.indices) == 1 and tag.indices[0] < _MOST_REGIONS:
        state.regions.setdefault(tag.indices[0], {})[tag.name] = number(file, tag)


def _places(file: ByteSource, state: _State, size: int) -> tuple[list[int], list[int], list[int]]:
    """First page in the file, first frame and pages of each region.  Raises CorruptDumpError."""
    if not state.count:
        if size > PADDR_LIMIT:
            raise CorruptDumpError(file.path, f"an impossible size of memory, {size:#x} bytes")
        return [0], [0], [size // PAGE]
    if state.count > _MOST_REGIONS:
        raise CorruptDumpError(file.path, f"{state.count} regions of memory in a VMware state")
    rows = []
    for index in range(state.count):
        region = state.regions.get(index, {})
        if len(region) < 3:
            raise CorruptDumpError(file.path, f"where the region {index} of memory lies is not told")
        rows.append(tuple(region[name] for name in _OF_REGIONS))
    reach = 0
    for frame, page, count in sorted(rows):
        if frame < reach or max(frame + count, page + count) * PAGE > PADDR_LIMIT:
            raise CorruptDumpError(file.path, f"an impossible region of memory at {frame * PAGE:#x}")
        reach = frame + count
    return [row[1] for row in rows], [row[0] for row in rows], [row[2] for row in rows]


def _cpu_tag(file: ByteSource, state: _State, tag: Tag) -> None:
    """A register; what is no register of a CPU is left out."""
    if not tag.indices or tag.indices[0] >= _MOST_CPUS:
        return
    cpu = state.cpus.setdefault(tag.indices[0], {})
    if tag.is_block:
        names = {"gpregs": _GENERAL, "CR64": [f"cr{index}" for index in range(9)]}.get(tag.name)
        if names and tag.size == 8 * len(names) and not tag.compressed:
            data = file.read_at(tag.at, tag.size)
            if len(data) == tag.size:
                cpu |= dict(zip(names, struct.unpack(f"<{len(names)}Q", data), strict=True))
        return
    name = _register_name(tag)
    if name is not None and 0 < tag.size <= 8:
        # the flags may be told in two parts, EFLAGS and eflags
        cpu[name] = number(file, tag) | (cpu.get(name, 0) if name == "rflags" else 0)


def _register_name(tag: Tag) -> str | None:
    if len(tag.indices) == 1:
        return _NAMED.get(tag.name)
    if len(tag.indices) != 2:
        return None
    index = tag.indices[1]
    if tag.name == "CR64":
        return f"cr{index}" if index in (0, 2, 3, 4, 8) else None
    if index < len(_SEGMENTS) and tag.name in ("S", "S.base64"):
        return _SEGMENTS[index] + ("_base" if tag.name == "S.base64" else "")
    return None


def _registers(state: _State) -> tuple[CpuRegisters, ...]:
    """Those of CPUs of which the instruction and the stack pointer are known."""
    whole = {cpu: values for cpu, values in state.cpus.items() if {"rip", "rsp"} <= values.keys()}
    return tuple(CpuRegisters(cpu, whole[cpu]) for cpu in sorted(whole))


FORMAT = Format(NAME, probe, open_vmware, sets=True, members_layered=False)
