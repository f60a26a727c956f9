"""Lists of modules as ``lsmod`` prints them: in the seed's columns, and with all that /proc/modules has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdump_elftool.plain.modules import Module
from kdump_elftool.safe_text import printable


def seed_lines(modules: Iterable[Module], word: int) -> Iterator[str]:
    """As the seed's ``lsmod``: name, base address, and the structure for further questions."""
    digits = 2 * word
    yield f"{'Name':<20} {'Base Addr':<{digits + 2}} Module Data"
    for module in modules:
        place = f"((struct module *) {module.vaddr:#0{digits + 2}x})"
        yield f"{printable(module.name):<20} {module.base:#0{digits + 2}x} {place}"


def all_columns(modules: Iterable[Module], word: int) -> Iterator[str]:
    """What lsmod(8) and /proc/modules show, a dash for what the kernel does not keep."""
    digits = 2 * word
    yield f"{'Module':<20} {'Size':>8} {'Refs':>4} {'State':<9} {'Base Addr':<{digits + 2}} Used by"
    for module in modules:
        references = "-" if module.references is None else str(module.references)
        users = ",".join(map(printable, module.users or ())) or "-"
        taints = f" ({module.taint_letters})" if module.taint_letters else ""
        name, base = printable(module.name), f"{module.base:#0{digits + 2}x}"
        line = f"{name:<20} {module.size:>8} {references:>4} {module.state_name:<9} {base} {users}{taints}"
        yield line
