"""The unwind tables of modules: ``struct module`` knows where each has its own.

References: arch/x86/include/asm/module.h (struct mod_arch_specific), include/linux/module.h: the
module's text is where core_layout says (v4.5), or mem[MOD_TEXT] (v6.4).  What a table says of init
code, which is gone, is left out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from kdump_elftool.addr import MASK64, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.lists import ListReader
from kdump_elftool.kernel.orc import MOST_ENTRIES, OrcFormat, OrcTable, decode, read_raw
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

MOST_MODULES = 4096
_NAME_SIZE = 56
"""MODULE_NAME_LEN on 64-bit machines."""
_LARGEST_TEXT = 1 << 30


@dataclass(frozen=True)
class ModuleOrc:
    """A module's name, printable, and its table; ``end`` of the table is that of its text."""

    name: str
    table: OrcTable


@dataclass(frozen=True)
class _Layout:
    """Offsets within struct module, bytes."""

    list: int
    name: int
    ip: int
    entries: int
    count: int
    base: int
    size: int

    @classmethod
    def of(cls, known: Knowledge) -> _Layout | None:
        """None when a type does not have it or is not known."""
        arch = known.offset("module.arch")
        inside = [
            known.offset(f"mod_arch_specific.{name}") for name in ("orc_unwind_ip", "orc_unwind", "num_orcs")
        ]
        own = [known.offset("module.list"), known.offset("module.name"), *_text(known)]
        if arch is None or any(offset is None for offset in (*inside, *own)):
            return None
        ip, entries, count = (arch + (offset or 0) for offset in inside)
        head, name, base, size = (offset or 0 for offset in own)
        return cls(head, name, ip, entries, count, base, size)


def _text(known: Knowledge) -> tuple[int | None, int | None]:
    """Where the address and the size of the module's text are."""
    for member, struct in (("mem", "module_memory"), ("core_layout", "module_layout")):
        start = known.offset(f"module.{member}")
        base, size = (known.offset(f"{struct}.{name}") for name in ("base", "size"))
        if start is not None and base is not None and size is not None:
            return start + base, start + size
    return known.offset("module.module_core"), known.offset("module.core_size")


def read_module_orc(memory: VirtualMemory, known: Knowledge, form: OrcFormat) -> list[ModuleOrc]:
    """The tables of all modules that have one, in the form of the kernel's."""
    head, layout = known.symbol("modules"), _Layout.of(known)
    if head is None or layout is None:
        log.info("ORC of modules: it is not known where struct module has it")
        return []
    nodes = ListReader(memory, "<", 8).walk(u64([head]), MOST_MODULES).node
    found = []
    left = MOST_ENTRIES
    for node in nodes.tolist():
        try:
            module, read = _read(Words(memory), layout, node - layout.list, form, left)
        except FaultError as error:
            log.info("ORC of a module: %s", error)
            continue
        left -= read
        if module is not None:
            found.append(module)
    return found


def _read(
    words: Words, layout: _Layout, module: int, form: OrcFormat, most: int
) -> tuple[ModuleOrc | None, int]:
    """The module's table, if it has one, and how many entries were read."""
    memory = words.memory
    ip, entries = words.read(module + layout.ip), words.read(module + layout.entries)
    count = words.read(module + layout.count, 4)
    base, size = words.read(module + layout.base), words.read(module + layout.size, 4)
    name = printable(memory.read(module + layout.name, _NAME_SIZE).split(b"\0", 1)[0])
    if not count or not size:
        return None, 0
    if count > most or size > _LARGEST_TEXT or count > size or base + size > MASK64:
        log.info("ORC of module %s: %d entries for %d bytes of code at %#x", name, count, size, base)
        return None, 0
    table = decode(read_raw(memory, ip, entries, count), form, (base, base + size))
    if not len(table):
        return None, count
    damage = tuple(f"module {name}: {text}" for text in table.damage)
    return ModuleOrc(name, replace(table, damage=damage)), count
