"""Per-CPU variables: which CPUs there are, and where each has its copy.

The copy of CPU n lies at the variable's symbol plus ``__per_cpu_offset[n]``, modulo the size of an
address: true for x86_64's symbols that count from 0 (until v6.14) as for all others.  A kernel
without that array has one CPU, and the symbol is the variable.  References:
include/linux/percpu-defs.h, mm/percpu.c.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, U64, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

MOST_CPUS = 8192
"""NR_CPUS_RANGE_END of x86_64 with MAXSMP (arch/x86/Kconfig)."""
_MASKS = ("__cpu_present_mask", "cpu_present_mask", "__cpu_online_mask")


@dataclass(frozen=True)
class PerCpu:
    """CPU numbers in ascending order, and what to add to a per-CPU symbol for each."""

    cpu: tuple[int, ...]
    offset: U64
    word: int

    def address(self, symbol: int) -> U64:
        """Where each CPU has its copy of the variable at ``symbol``."""
        top = np.uint64(MASK64 >> (64 - 8 * self.word))
        return (self.offset + np.uint64(symbol & MASK64)) & top


def find_percpu(memory: VirtualMemory, known: Knowledge, order: str, word: int) -> PerCpu | None:
    """None when the kernel's CPUs or their areas cannot be found."""
    table = known.symbol("__per_cpu_offset")
    if table is None:
        if known.symbol("nr_cpu_ids") is not None:
            log.info("per-CPU areas: the address of __per_cpu_offset is not known")
            return None
        return PerCpu((0,), u64([0]), word)
    cpus = _present(memory, known, order, word)
    if not cpus:
        return None
    try:
        data = memory.read(table, (max(cpus) + 1) * word)
    except FaultError as error:
        log.info("per-CPU areas: %s", error)
        return None
    offsets = np.frombuffer(data, dtype=f"{order}u{word}").astype(np.uint64)
    return PerCpu(tuple(cpus), offsets[list(cpus)], word)


def _present(memory: VirtualMemory, known: Knowledge, order: str, word: int) -> list[int]:
    """The CPUs that are plugged in, by the kernel's bit mask."""
    try:
        count = _number(memory, known.symbol("nr_cpu_ids"), order, 4) or _bits(known, word)
        for name in _MASKS:
            mask = known.symbol(name)
            if mask is None:
                continue
            if name == "cpu_present_mask":  # a pointer to it, until v4.4
                mask = _number(memory, mask, order, word) or 0
            words = -(-min(count, MOST_CPUS) // (8 * word))
            numbers = np.frombuffer(memory.read(mask, words * word), dtype=f"{order}u{word}")
            bits = np.unpackbits(numbers.astype(f"<u{word}").view(np.uint8), bitorder="little")
            cpus: list[int] = np.flatnonzero(bits[:count]).tolist()
            if cpus:
                return cpus
    except FaultError as error:
        log.info("CPUs: %s", error)
    return []


def _bits(known: Knowledge, word: int) -> int:
    """Of a mask where the kernel has no nr_cpu_ids: with CONFIG_FORCE_NR_CPUS it is a macro (v6.1 on).

    Where no type tells, the first word: behind a short mask lies another one.
    """
    told = known.size("cpumask") or 0
    return 8 * (told if 0 < told <= MOST_CPUS // 8 else word)


def _number(memory: VirtualMemory, vaddr: int | None, order: str, size: int) -> int | None:
    if vaddr is None:
        return None
    return int.from_bytes(memory.read(vaddr, size), "little" if order == "<" else "big")
