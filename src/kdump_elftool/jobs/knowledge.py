"""Everything that can be known of a dump's kernel, from all that is at hand, in order of trust.

The ``-e`` file, VMCOREINFO, the kernel's own tables inside the dump, the vmlinux, and what can be
recognised by its content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kdump_elftool.arch.base import page_size_of
from kdump_elftool.elf.constants import EM_AARCH64
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.kernel.arm64_code import Arm64Code
from kdump_elftool.kernel.btf import Btf, open_btf
from kdump_elftool.kernel.btf_percpu import BtfPercpu
from kdump_elftool.kernel.content import ContentSource
from kdump_elftool.kernel.exports import Exports, open_exports
from kdump_elftool.kernel.facts import Knowledge, Later, Source
from kdump_elftool.kernel.identity import kaslr_offset_by
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.kallsyms_tables import open_kallsyms
from kdump_elftool.kernel.related import Related
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.kernel.vmlinux_source import TYPES, Advise, VmlinuxSymbols, vmlinux_types
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory


def knowledge(dump: Dump, kernel: Kernel, given: Btf | None = None) -> Knowledge:
    """The sources for one dump; those that cost something are opened when they are asked.

    ``given`` are types that go before those in the dump.
    """
    memory, window = kernel.virtual(dump), kernel.identity.image_window
    order, word = dump.kind.order, kernel.arch.prstatus.word
    advice: list[str] = []
    symbols = Later(("SYMBOL",), lambda: open_kallsyms(memory, kernel.info, window, order, word))
    types = Later(TYPES, lambda: given or open_btf(memory, symbols, window, order, word))
    sources: list[Source] = [kernel.info, symbols, types]
    if kernel.vmlinux is not None:
        sources += _vmlinux(kernel, types, lambda: kernel.vmlinux, advice.append)
    elif kernel.request.locate is not None:
        sources += _located(kernel, types, advice.append)
    exported = Later(("SYMBOL",), lambda: _exported(memory, symbols, window, order, word))
    sources.append(exported)
    sources.append(Later(("SYMBOL",), lambda: _percpu(types, exported)))
    if kernel.arch.e_machine == EM_AARCH64:
        by_code = Knowledge(tuple(sources))
        sources.append(Later(("SYMBOL",), lambda: _by_code(memory, symbols, exported, by_code, window)))
    sources.append(ContentSource(memory, Knowledge(tuple(sources)), window, order, word))
    sources.append(Related(Words(memory, order, word), Knowledge(tuple(sources)), window))
    sources.append(_of_form(kernel))
    return Knowledge(tuple(sources), advice)


def _exported(
    memory: VirtualMemory, symbols: Later, window: tuple[int, int], order: str, word: int
) -> Exports | None:
    """Variables by the table for modules, where the kernel's symbol table has none."""
    found = symbols.source
    if not isinstance(found, Kallsyms) or found.symbol("init_task") is not None:
        return None
    return open_exports(memory, found, window, order, word)


def _percpu(types: Later, exported: Later) -> BtfPercpu | None:
    found = exported.source
    return BtfPercpu(types.source, found) if isinstance(types.source, Btf) and found is not None else None


def _by_code(
    memory: VirtualMemory, symbols: Later, exported: Later, known: Knowledge, window: tuple[int, int]
) -> Arm64Code | None:
    functions = symbols.source
    if not isinstance(functions, Kallsyms) or exported.source is None:
        return None
    return Arm64Code(memory, functions, known, window)


def _of_form(kernel: Kernel) -> Source:
    """What follows from architecture and paging where the kernel does not say it."""
    form, page_size = kernel.identity.form, page_size_of(kernel.info) or kernel.arch.page_size
    numbers = {
        "PAGE_SHIFT": page_size.bit_length() - 1,
        "SECTION_SIZE_BITS": form.section_size_bits,
        "MAX_PHYSMEM_BITS": form.physmem_bits,
    }
    return VmcoreInfo({f"NUMBER({name})": str(value) for name, value in numbers.items()})


def in_dump(known: Knowledge) -> tuple[Kallsyms | None, Btf | None]:
    """The symbol table and the types that are in the dump itself, whole, of :func:`knowledge`'s sources."""
    found = [source.source for source in known.sources if isinstance(source, Later)]
    symbols = next((source for source in found if isinstance(source, Kallsyms)), None)
    return symbols, next((source for source in found if isinstance(source, Btf)), None)


def exported(known: Knowledge) -> Mapping[str, int]:
    """Addresses of what the kernel exports, of :func:`knowledge`'s sources, if that had to be asked for."""
    found = (
        source.source for source in known.sources if isinstance(source, Later) and source.kinds == ("SYMBOL",)
    )
    return next((source.address for source in found if isinstance(source, Exports)), {})


def _located(kernel: Kernel, types: Later, advise: Advise) -> list[Source]:
    """A vmlinux that is looked for when types or symbols are wanted and the dump has no types.

    With types what is needed of the symbols is found by its content, so nobody is made to wait for a file.
    """
    found: list[Vmlinux | None] = []

    def locate() -> Vmlinux | None:
        if not found and kernel.request.locate is not None:
            found.append(kernel.request.locate(kernel.info, kernel.arch))
        return found[0]

    of_symbols, of_types = _vmlinux(kernel, types, locate, advise)
    return [
        Later(("SYMBOL",), lambda: None if types.source else of_symbols),
        Later(TYPES, lambda: None if types.source else of_types),
    ]


def _vmlinux(
    kernel: Kernel, own: Later, locate: Callable[[], Vmlinux | None], advise: Advise
) -> tuple[Source, Source]:
    """Symbols and types of a vmlinux; ``own`` are the dump's types."""

    def symbols() -> Source | None:
        vmlinux = locate()
        offset = None if vmlinux is None else kaslr_offset_by(kernel.identity, vmlinux)
        if vmlinux is None or offset is None:
            return None
        return VmlinuxSymbols(vmlinux, int(offset.value), kernel.identity.image_window[0])

    def types() -> Source | None:
        vmlinux = locate()
        # one that mkvmlinux made has the dump's types, in a form that takes seconds to read
        if vmlinux is None or (vmlinux.is_made and own.source is not None):
            return None
        return vmlinux_types(vmlinux, kernel.arch.prstatus.word, kernel.request.cache, advise)

    return Later(("SYMBOL",), symbols), Later(TYPES, types)
