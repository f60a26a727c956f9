"""A dump's modules: the list with sections and build ids, and the symbols of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.modules import SymbolColumns, read_module_symbols
from kdump_elftool.plain.module_sections import (
    Section,
    SymbolTable,
    read_build_id,
    read_sections,
    symbol_table,
)
from kdump_elftool.plain.modules import Module, ModuleList, read_modules
from kdump_elftool.safe_text import printable

_SHOWN = 5
_MOST_SECTIONS = 1 << 17
"""Of all modules together; a machine has some ten thousand."""


@dataclass(frozen=True)
class LoadedModule:
    """One module.  ``sections`` are those that are in memory; ``table`` is where its symbols are."""

    module: Module
    sections: tuple[Section, ...]
    build_id: bytes | None
    table: SymbolTable | None

    @property
    def name(self) -> str:
        """Its name, printable."""
        return printable(self.module.name)


@dataclass(frozen=True)
class LoadedModules:
    """All modules in the kernel's order, what read them, and what is worth a warning."""

    modules: tuple[LoadedModule, ...]
    target: DumpTarget
    warnings: tuple[str, ...]

    def symbols(self) -> SymbolColumns:
        """The symbols of all modules; ``table`` is the index of the module."""
        tables = [module.table for module in self.modules]
        return read_module_symbols(self.target.memory, self.target.order, self.target.word, tables)


def list_modules(dump: Dump, kernel: Kernel) -> LoadedModules:
    """Find all modules.  Raises IdentityError naming what is not known of the kernel."""
    return modules_by(knowledge(dump, kernel), dump, kernel)


def modules_by(known: Knowledge, dump: Dump, kernel: Kernel) -> LoadedModules:
    """As :func:`list_modules`, by what ``known`` tells."""
    target = DumpTarget(dump.kind.order, kernel.arch.prstatus.word, known, kernel.virtual(dump))
    try:
        found = read_modules(target)
    except IdentityError as error:
        hint = target.known.hint("give the kernel's vmlinux with -m, or the lines in a file with -e")
        raise IdentityError(error.key, f"the modules cannot be found: {error.message}", hint=hint) from None
    read = _Reader(target)
    modules = tuple(read.module(module) for module in found.modules)
    return LoadedModules(modules, target, (*target.known.advice, *_damage(found), *read.why_not))


@dataclass
class _Reader:
    """Reads what belongs to a module; what is not known of the kernel is said once, in ``why_not``."""

    target: DumpTarget
    why_not: dict[str, None] = field(default_factory=dict)
    left: int = _MOST_SECTIONS

    def module(self, module: Module) -> LoadedModule:
        """One module with what can be read of it."""
        sections: tuple[Section, ...] = ()
        table = None
        try:
            sections = read_sections(self.target, module) if self.left > 0 else ()
        except IdentityError as error:
            self.why_not[f"where the sections of modules are is not known: {error.message}"] = None
        try:
            table = symbol_table(self.target, module)
        except IdentityError as error:
            self.why_not[f"where the symbols of modules are is not known: {error.message}"] = None
        self.left -= len(sections)
        return LoadedModule(module, sections, read_build_id(self.target, module), table)


def _damage(found: ModuleList) -> list[str]:
    """What is wrong with the list."""
    warnings = []
    if found.broken:
        warnings.append(
            f"the list of modules is damaged: {len(found.modules)} were reached from its two ends"
        )
    warnings += [
        f"the module at {vaddr:#x} makes no sense and is left out" for vaddr in found.unreadable[:_SHOWN]
    ]
    if len(found.unreadable) > _SHOWN:
        warnings.append(f"{len(found.unreadable)} modules in all make no sense")
    return warnings
