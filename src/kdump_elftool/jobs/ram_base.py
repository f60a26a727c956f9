"""Raw memory is put where its kernel must have run, or the user's word on that is checked.

All of the file is read once for it; who looks for the kernel later gets what was found.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

from kdump_elftool.arch.base import Architecture
from kdump_elftool.errors import IdentityError, UsageError
from kdump_elftool.formats.base import Dump
from kdump_elftool.formats.raw import moved
from kdump_elftool.jobs.description import SEARCHING, describes, kernel_search
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.find import Texts, find_texts
from kdump_elftool.kernel.ram_base import bases
from kdump_elftool.kernel.utsname import MARK

log = logging.getLogger(__name__)

_MOST_TEXTS = 16
_MOST_BASES = 256


def place(
    dump: Dump, arch: Architecture, request: KernelRequest, given: int | None
) -> tuple[Dump, KernelRequest]:
    """The dump where it belongs.  ``given`` is where the user says that it begins; it is there already.

    Without a kernel anywhere it stays where it is.  Raises IdentityError for a word that is wrong.
    """
    if request.pgt_root is not None or describes(request.extra):
        return dump, request
    search = kernel_search(dump, arch, request)
    texts = request.seen
    if texts is None:
        with request.progress(SEARCHING, dump.memory.present().total) as advance:
            texts = find_texts(dump.memory, dump.kind.order, advance, (*search.wanted, MARK))
    if _has_kernel(dump, arch, request, texts):
        return dump, replace(request, seen=texts)
    begins = given or 0
    at_0, in_file = moved(dump, -begins), texts.moved(-begins)
    images = kernel_search(at_0, arch, request).images
    for base in itertools.islice(bases(at_0.memory, arch, dump.kind.order, in_file, images), _MOST_BASES):
        try:
            there, seen = moved(at_0, base.paddr), in_file.moved(base.paddr)
        except UsageError:
            continue  # no machine has memory there
        if _has_kernel(there, arch, request, seen):
            log.info("memory begins at %#x by %s", base.paddr, base.how)
            if given is not None:
                raise IdentityError(
                    "ram_base",
                    f"{dump.file.path}: there is no kernel if it begins at {given:#x}, but one if it begins "
                    f"at {base.paddr:#x}",
                    hint=f"say --ram-base {base.paddr:#x}, or nothing",
                )
            placed = Fact("ram_base", base.paddr, f"{base.how}, confirmed by a kernel")
            return there, replace(request, seen=seen, placed=placed)
    return dump, replace(request, seen=texts)


def _has_kernel(dump: Dump, arch: Architecture, request: KernelRequest, texts: Texts) -> bool:
    """Whether a kernel is where its description says."""
    search = kernel_search(dump, arch, replace(request, seen=texts))
    if any(search.judge(text.data, text.paddr).verified for text in texts.found[:_MOST_TEXTS]):
        return True
    wanted = search.images.wanted if search.images else None
    places = texts.places.get(wanted, ()) if wanted else ()
    return bool(search.images and search.images.images(places))
