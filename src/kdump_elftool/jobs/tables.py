"""The mappings of a dump's kernel, and of the page table that the user asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kdump_elftool.arch.base import PagingForm
from kdump_elftool.arch.walker import Walk, Window, beside, translate, walk
from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.kernel.identity import KernelIdentity

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """What the kernel's table maps, and what the table at ``root`` does.

    ``process_form`` is the form of that one if it maps a process' addresses alone: then ``written`` has those
    of the kernel, too, by the kernel's own table.
    """

    walked: Walk
    written: Walk
    root: int
    process_form: PagingForm | None = None


def walk_tables(dump: Dump, identity: KernelIdentity, asked: int | None) -> Tables:
    """Walk the kernel's table and the one that was asked for.  Raises IdentityError if that is empty."""
    form, own = identity.form, identity.pgt_root
    walked = _walk(dump, identity, form, own, with_user_half=False)
    if asked is None:
        return Tables(walked, _not_empty(walked, own), own)
    process_form = None if _is_kernels(dump, identity, asked) else form.user_form
    written = _not_empty(_walk(dump, identity, process_form or form, asked, with_user_half=True), asked)
    if process_form is not None:
        return Tables(walked, beside(written, walked), asked, process_form)
    return Tables(written if asked == own else walked, written, asked)


def _not_empty(found: Walk, root: int) -> Walk:
    if len(found.mappings):
        return found
    raise IdentityError(
        "pgt_root",
        f"the page tables at {root:#x} map nothing"
        + (", and tables below it are not in the dump" if found.lost else ""),
        hint="the dump was cut short or filtered too much: take it again"
        if found.lost
        else "this is not the kernel's page-table root: check -P or the VMCOREINFO lines",
    )


def _is_kernels(dump: Dump, identity: KernelIdentity, root: int) -> bool:
    """Whether a table is the kernel's own, or maps the kernel's text as that does."""
    if root == identity.pgt_root:
        return True
    if identity.stext is None:
        return False
    try:
        own, other = (
            translate(dump.memory, identity.form, table, identity.stext).paddr
            for table in (identity.pgt_root, root)
        )
    except FaultError:
        return False
    return own == other


def _walk(dump: Dump, identity: KernelIdentity, form: PagingForm, root: int, *, with_user_half: bool) -> Walk:
    wanted = (form.kernel, *form.more, *((form.user,) if with_user_half else ()))
    regions = [region for region in wanted if region.end]
    low, high = min(region.start for region in regions), max(region.end for region in regions)
    aliases = tuple((form.raw(begin), form.raw(end - 1) + 1) for begin, end in identity.arch.alias_ranges)
    walked = walk(dump.memory, form, root, Window(low, high, aliases))
    log.info(
        "page tables: %d read, %d mappings, %d aliases left out",
        walked.tables,
        len(walked.mappings),
        walked.aliases,
    )
    return walked
