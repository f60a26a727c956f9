"""The vminfo file: what the original tool had its users fetch with gdb, all of it, from dump or vmlinux.

Keys as its gdb macros name them (vminfo_qemu_base, vminfo_qemu_all, thread_vminfo_*); those that a
kernel does not have are left out, and none is left to be filled in by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.arch.base import Architecture
from kdump_elftool.kernel.facts import Fact, Knowledge
from kdump_elftool.plain.vminfo import BASE, PAGES, THREADS, header_lines, line

GROUPS = {"base": BASE, "qemu": PAGES, "thread": THREADS}


@dataclass(frozen=True)
class VmInfo:
    """Lines in the order of the macros, and the facts behind them."""

    lines: tuple[str, ...]
    facts: tuple[Fact, ...]


def vminfo(
    known: Knowledge, arch: Architecture, release: str | None, page: int, groups: tuple[str, ...]
) -> VmInfo:
    """The lines that can be given, ``page`` being its page size.  ``groups`` are names of :data:`GROUPS`."""
    lines: list[str] = []
    facts: list[Fact] = []
    if "base" in groups:
        lines += header_lines(release, page)
    keys = [key for group in groups for key in GROUPS[group]]
    if "thread" in groups:
        keys += arch.thread_keys
    for key in dict.fromkeys(keys):
        kind, _, rest = key.partition("(")
        fact = known.find(kind, rest.removesuffix(")"))
        if fact is not None:
            lines.append(line(key, int(fact.value)))
            facts.append(fact)
    return VmInfo(tuple(lines), tuple(facts))
