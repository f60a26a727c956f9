"""Page selection for a level: what is dropped, and what can be said about it."""

from __future__ import annotations

import logging

from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.kernel.freelists import free_by_lists
from kdump_elftool.kernel.memmap import SparseGeometry, find_memmap
from kdump_elftool.kernel.pages import LEVELS, Category, PageAccount, account, page_fields
from kdump_elftool.kernel.words import Words

log = logging.getLogger(__name__)

ALL_KEPT = "every page is kept: "


def choose_pages(dump: Dump, kernel: Kernel, level: str) -> tuple[PageAccount | None, list[str]]:
    """The account of what ``level`` drops, and warnings; None when every page is kept.

    Where the kernel does not tell how to read its page descriptors, nothing is dropped.
    """
    if level == "all":
        return None, []
    arch, form = kernel.arch, kernel.identity.form
    geometry = SparseGeometry(form.section_size_bits, form.physmem_bits)
    virtual = kernel.virtual(dump)
    words = Words(virtual, dump.kind.order, arch.prstatus.word)
    try:
        memmap = find_memmap(words, kernel.info, geometry)
        fields = page_fields(kernel.info, arch.prstatus.word, dump.kind.order)
        listed = None
        if fields.buddy_type is None and Category.FREE in LEVELS[level]:
            listed = free_by_lists(words, kernel.info, memmap)
    except IdentityError as error:
        return None, [ALL_KEPT + error.message]
    log.info("struct page: %s memory, %d parts", memmap.model, len(memmap.parts))
    free = listed.ranges if listed else None
    result = account(virtual, memmap, fields, level, dump.memory.present(), free)
    warnings = []
    if listed and listed.broken:
        warnings.append(f"{listed.broken} lists of free pages end early: what they lost is kept")
    if result.unknown:
        warnings.append(f"{result.unknown} pages are kept because their struct page is not in the dump")
    return result, warnings
