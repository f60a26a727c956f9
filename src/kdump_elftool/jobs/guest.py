"""What machine a memory image is of, when neither it nor the user says.

Images and streams of one QEMU machine hold guests of x86_64 and of i386 alike.  The kernel tells: its
VMCOREINFO leads to page tables that translate its text to where that says in one architecture only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from kdump_elftool.arch import ARCHITECTURES, find_architecture
from kdump_elftool.arch.base import Architecture
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.description import SEARCHING, describes, kernel_search
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.jobs.ram_base import place
from kdump_elftool.kernel.find import Texts, find_texts
from kdump_elftool.kernel.utsname import MARK

log = logging.getLogger(__name__)

_MOST_TEXTS = 16


def recognise(dump: Dump, request: KernelRequest, *, moves: bool = False) -> tuple[Dump, KernelRequest]:
    """The dump with the machine of the kernel in its memory; as it is where no kernel tells.

    Memory is read once for it; who looks for the kernel later gets what was found.  With ``moves`` the dump
    is put where the kernel must have run, as nothing says where it begins.
    """
    if request.pgt_root is not None or describes(request.extra):
        return dump, request
    with request.progress(SEARCHING, dump.memory.present().total) as advance:
        texts = find_texts(dump.memory, dump.kind.order, advance, (MARK,))
    request = replace(request, seen=texts)
    guesses = list(_guesses(dump))
    for guess, arch in guesses:
        if _is_of(guess, arch, request, texts, is_own=guess is dump):
            return guess, request
    for guess, arch in guesses if moves and texts.found else ():
        there, placed = place(guess, arch, request, None)
        if placed.placed is not None:
            return there, placed
    return dump, request


def _guesses(dump: Dump) -> Iterator[tuple[Dump, Architecture]]:
    """The dump as one of each architecture, first as what it is taken for."""
    own = find_architecture(dump.e_machine, dump.kind.bits)
    if own is not None:
        yield dump, own
    for arch in ARCHITECTURES:
        for order in arch.byte_orders if arch is not own else ():
            yield replace(dump, e_machine=arch.e_machine, kind=ElfKind(arch.bits, order)), arch


def _is_of(dump: Dump, arch: Architecture, request: KernelRequest, texts: Texts, *, is_own: bool) -> bool:
    """Whether a kernel of this architecture is where a text says.

    An address that needs no tables proves little: for another architecture its name must be there as well.
    """
    search = kernel_search(dump, arch, request)
    found = (search.judge(text.data, text.paddr) for text in texts.found[:_MOST_TEXTS])
    if any(kernel.verified if is_own else search.is_certain(kernel) for kernel in found):
        log.info("the memory is %s's, by the kernel in it", arch.byte_orders[dump.kind.order])
        return True
    return False
