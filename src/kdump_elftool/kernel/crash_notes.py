"""The registers that a dying kernel saved for each of its CPUs: ``crash_notes``.

A per-CPU ELF note, empty until crash_save_cpu() fills it in, on the way into the crash kernel.
References: kernel/kexec_core.c (crash_save_cpu()), kernel/crash_core.c (append_elf_note()); the
variable holds a pointer to per-CPU memory.
"""

from __future__ import annotations

import struct

from kdump_elftool.arch.base import PrStatusLayout
from kdump_elftool.elf.constants import NT_PRSTATUS
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.cpus import CORE
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.percpu import PerCpu
from kdump_elftool.memory.virtual import VirtualMemory

_HEAD = 20
"""Sizes of name and descriptor, type, the name padded to eight bytes."""


def read_crash_notes(
    memory: VirtualMemory, known: Knowledge, percpu: PerCpu, layout: PrStatusLayout, order: str
) -> list[bytes]:
    """For each CPU of ``percpu`` its ``elf_prstatus``, b"" where the kernel saved none."""
    variable = known.symbol("crash_notes")
    nothing = [b""] * len(percpu.cpu)
    if variable is None:
        return nothing
    try:
        data = memory.read(variable, layout.word)
    except FaultError:
        return nothing
    pointer = int.from_bytes(data, "little" if order == "<" else "big")
    blocks, readable = memory.gather(percpu.address(pointer), _HEAD + layout.size)
    return [
        bytes(block[_HEAD:]) if there and _is_note(bytes(block[:_HEAD]), layout, order) else b""
        for block, there in zip(blocks, readable, strict=True)
    ]


def _is_note(head: bytes, layout: PrStatusLayout, order: str) -> bool:
    name_size, size, kind = struct.unpack_from(order + "III", head)
    named = name_size == len(CORE) + 1 and head[12:].startswith(CORE + b"\0")
    return bool(named and kind == NT_PRSTATUS and size >= layout.size)
