"""Per-CPU variables, CPU by CPU: the plain reference of ``kernel.percpu``.

The copy of CPU n lies at the variable's symbol plus ``__per_cpu_offset[n]``, modulo the size of an
address.  A kernel without that array has one CPU, and the symbol is the variable.  References:
include/linux/percpu-defs.h, kernel/cpu.c.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.target import Target, unsigned

NEEDS = (
    "SYMBOL(__per_cpu_offset)",
    "SYMBOL(nr_cpu_ids)",
    "SYMBOL(__cpu_present_mask)",
    "SYMBOL(cpu_present_mask)",
    "SYMBOL(__cpu_online_mask)",
    "SIZE(cpumask)",
)
"""What this reader asks of a kernel."""
MOST_CPUS = 8192
"""NR_CPUS_RANGE_END of x86_64 with MAXSMP (arch/x86/Kconfig)."""


class PerCpu(NamedTuple):
    """For each CPU, in ascending order, its number and what to add to a per-CPU symbol."""

    areas: tuple[tuple[int, int], ...]
    word: int

    def addresses(self, symbol: int) -> list[tuple[int, int]]:
        """CPU by CPU its number and where its copy of the variable at ``symbol`` is."""
        top = (1 << 8 * self.word) - 1
        return [(cpu, (offset + symbol) & top) for cpu, offset in self.areas]


def find_percpu(target: Target) -> PerCpu | None:
    """None when the kernel's CPUs or their areas cannot be found."""
    table = target.symbol("__per_cpu_offset")
    if table is None:
        return None if target.symbol("nr_cpu_ids") is not None else PerCpu(((0, 0),), target.word)
    try:
        cpus = _present(target)
        areas = tuple((cpu, unsigned(target, table + cpu * target.word, target.word)) for cpu in cpus)
    except FaultError:
        return None
    return PerCpu(areas, target.word) if areas else None


def _present(target: Target) -> tuple[int, ...]:
    """The CPUs that are plugged in, by the kernel's bit mask.  Raises FaultError."""
    ids = target.symbol("nr_cpu_ids")
    bits = 8 * target.word
    # with CONFIG_FORCE_NR_CPUS it is a macro (v6.1 on); behind a short mask lies another one
    told = 8 * (target.size("cpumask") or 0)
    told = told if 0 < told <= MOST_CPUS else bits
    count = min((unsigned(target, ids, 4) if ids is not None else 0) or told, MOST_CPUS)
    for name in ("__cpu_present_mask", "cpu_present_mask", "__cpu_online_mask"):
        mask = target.symbol(name)
        if mask is None:
            continue
        if name == "cpu_present_mask":  # a pointer to it, until v4.4
            mask = unsigned(target, mask, target.word)
        words = [unsigned(target, mask + at * target.word, target.word) for at in range(-(-count // bits))]
        cpus = tuple(cpu for cpu in range(count) if words[cpu // bits] >> cpu % bits & 1)
        if cpus:
            return cpus
    return ()
