"""What machine a memory image is of, when neither it nor the user says.

Images and streams of one QEMU machine hold guests of x86_64 and of i386 alike.  The kernel tells: its
VMCOREINFO leads to page tables that translate its text to where that says in one architecture only.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from kdump_elftool.arch import ARCHITECTURES, find_architecture
from kdump_elftool.arch.base import Architecture
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.description import SEARCHING, describes, kernel_search
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.kernel.find import Texts, find_texts
from kdump_elftool.kernel.utsname import MARK

log = logging.getLogger(__name__)

_MOST_TEXTS = 16


def recognise(dump: Dump, request: KernelRequest) -> tuple[Dump, KernelRequest]:
    """The dump with the machine of the kernel in its memory; as it is where no kernel tells.

    Memory is read once for it; who looks for the kernel later gets what was found.
    """
    if request.pgt_root is not None or describes(request.extra):
        return dump, request
    with request.progress(SEARCHING, dump.memory.present().total) as advance:
        texts = find_texts(dump.memory, dump.kind.order, advance, (MARK,))
    request = replace(request, seen=texts)
    own = find_architecture(dump.e_machine, dump.kind.bits)
    others = [arch for arch in ARCHITECTURES if arch is not own]
    for arch in [own, *others] if own else others:
        for order in arch.byte_orders:
            guess = dump
            if arch is not own:
                guess = replace(dump, e_machine=arch.e_machine, kind=ElfKind(arch.bits, order))
            if _is_of(guess, arch, request, texts):
                if arch is not own:
                    log.info("the memory is %s's, by the kernel in it", arch.byte_orders[order])
                return guess, request
    return dump, request


def _is_of(dump: Dump, arch: Architecture, request: KernelRequest, texts: Texts) -> bool:
    """Whether a kernel of this architecture is where a text says."""
    search = kernel_search(dump, arch, request)
    return any(search.judge(text.data, text.paddr).verified for text in texts.found[:_MOST_TEXTS])
