"""Everything that can be known of a dump's kernel, from all that is at hand, in order of trust.

The ``-e`` file, VMCOREINFO, the kernel's own tables inside the dump, the vmlinux, and what can be
recognised by its content.
"""

from __future__ import annotations

from kdump_elftool.arch.base import Architecture
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.kernel.btf import open_btf
from kdump_elftool.kernel.content import ContentSource
from kdump_elftool.kernel.facts import Knowledge, Later, Source
from kdump_elftool.kernel.identity import kaslr_offset_by
from kdump_elftool.kernel.kallsyms_tables import open_kallsyms
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.kernel.vmlinux_source import VmlinuxSymbols, vmlinux_btf

TYPES = ("OFFSET", "SIZE", "LENGTH", "NUMBER")


def knowledge(dump: Dump, kernel: Kernel) -> Knowledge:
    """The sources for one dump; those that cost something are opened when they are asked."""
    memory, window = kernel.virtual(dump), kernel.arch.image_window
    order, word = dump.kind.order, kernel.arch.prstatus.word
    symbols = Later(("SYMBOL",), lambda: open_kallsyms(memory, kernel.info, window, order, word))
    types = Later(TYPES, lambda: open_btf(memory, symbols, window, order, word))
    sources: list[Source] = [kernel.info, symbols, types, *_vmlinux(kernel)]
    sources.append(ContentSource(memory, Knowledge(tuple(sources)), window, order, word))
    return Knowledge(tuple(sources))


def vmlinux_knowledge(vmlinux: Vmlinux, arch: Architecture) -> Knowledge:
    """What a vmlinux alone tells: its link-time addresses and its types."""
    word = arch.prstatus.word
    types = Later(TYPES, lambda: vmlinux_btf(vmlinux, word))
    return Knowledge((VmlinuxSymbols(vmlinux, 0, arch.image_window[0]), types))


def _vmlinux(kernel: Kernel) -> list[Source]:
    vmlinux = kernel.vmlinux
    if vmlinux is None:
        return []
    offset = kaslr_offset_by(kernel.identity, vmlinux)
    word = kernel.arch.prstatus.word
    found: list[Source] = [Later(TYPES, lambda: vmlinux_btf(vmlinux, word))]
    if offset is not None:
        found.insert(0, VmlinuxSymbols(vmlinux, int(offset.value), kernel.arch.image_window[0]))
    return found
