"""``kd-vtop`` and ``kd-page``: where an address lies, and what the kernel says of that page."""

from __future__ import annotations

import gdb

from kdump_elftool.errors import FaultError, IdentityError, KdumpError
from kdump_elftool.gdbside.arguments import Chosen, address
from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.physical import CorePhysical
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.memmap import Memmap, find_memmap
from kdump_elftool.plain.pages import Page, read_page
from kdump_elftool.plain.pagewalk import Form, form_of, walk
from kdump_elftool.plain.vmas import page_table
from kdump_elftool.safe_text import printable


class KdVtop(Command):
    """Show where virtual addresses lie in physical memory.

    kd-vtop ADDRESS...
    kd-vtop -p PID ADDRESS...

    Addresses of the kernel are looked up in the core itself, and in the kernel's page table where the core
    does not have them.  With -p they are those of a process, by its own table.  Tables can be read for x86,
    arm64 and arm."""

    NAME = "kd-vtop"
    COMPLETES = gdb.COMPLETE_EXPRESSION

    def run(self, words: list[str]) -> None:
        """A line an address."""
        kernel = target()
        task = None
        if words[:1] == ["-p"] and len(words) > 1:
            task, words = Chosen(kernel, words[1]), words[2:]
        if not words or words[0].startswith("-"):
            raise usage(self)
        memory = physical(kernel)
        if task is None:
            for word in words:
                vaddr = address(kernel, word)
                say(f"{vaddr:#x} {_kernel_place(kernel, memory, vaddr)}")
            return
        form = paging_form(kernel)
        root = memory.paddr_of(page_table(kernel, task.vaddr))
        if root is None:
            raise gdb.GdbError(f"the page table of {task.tid} is not in the core")
        for word in words:
            vaddr = address(kernel, word)
            # arm64 has the kernel's half in a table of its own
            in_kernel = form.is_half and vaddr >> form.top
            place = _kernel_place(kernel, memory, vaddr) if in_kernel else _place(memory, form, root, vaddr)
            say(f"{vaddr:#x} {place}")


class KdPage(Command):
    """Show what the kernel says of pages of memory.

    kd-page PFN|ADDRESS...

    A number is that of a page frame; an address that of its struct page, or of memory of the kernel.  Shown
    are flags by name, counters as they are stored, what the page is used for (free, slab, file, anon, ...)
    and more about that."""

    NAME = "kd-page"
    COMPLETES = gdb.COMPLETE_EXPRESSION

    def run(self, words: list[str]) -> None:
        """Some lines a page."""
        if not words:
            raise usage(self)
        kernel = target()
        array = find_memmap(kernel)
        for word in words:
            found = address(kernel, word)
            try:
                page = read_page(kernel, array, _frame(kernel, array, found))
            except FaultError as error:
                say(f"{found:#x}: {error.message}")
                continue
            if page is None:
                say(f"{found:#x}: the kernel has no struct page for it")
                continue
            _show(page, array)


def physical(kernel: GdbTarget) -> CorePhysical:
    """Physical memory of the core.  Raises gdb.GdbError where the core does not tell of it."""
    if kernel.core is None or not kernel.core.ours:
        raise gdb.GdbError(
            "this needs a core that 'kdump-elftool tovelf' made: others have no physical addresses"
        )
    return CorePhysical(kernel, kernel.core)


def _frame(kernel: GdbTarget, array: Memmap, found: int) -> int:
    """The frame that is meant: of a page's description, of memory, or the number itself."""
    if found < 1 << (32 if kernel.word == 8 else 24):
        return found
    pfn = array.pfn_of(found)
    if pfn is not None:
        return pfn
    paddr = physical(kernel).paddr_of(found)
    if paddr is None:
        raise FaultError("vaddr", found, "not in the core")
    return paddr >> array.page_shift


def paging_form(kernel: GdbTarget) -> Form:
    """How the kernel's page tables look.  Raises IdentityError where they cannot be read here."""
    name = kernel.fact("paging") or "not known"
    form = form_of(name, kernel.order, _hexadecimal(kernel.fact("sme_mask")))
    if form is None:
        raise IdentityError(
            "paging",
            f"page tables of this form cannot be walked in gdb: {printable(name)}",
            hint="kdump-elftool virttophys -P walks those of every kernel, on the dump",
        )
    return form


def _hexadecimal(value: str | None) -> int:
    try:
        return int(value or "0", 16)
    except ValueError:
        return 0


def _kernel_place(kernel: GdbTarget, memory: CorePhysical, vaddr: int) -> str:
    """By the core's own segments, else by the kernel's table."""
    paddr = memory.paddr_of(vaddr)
    if paddr is not None:
        return f"{paddr:#x}"
    root = _hexadecimal(kernel.fact("pgt_root"))
    try:
        form = paging_form(kernel)
    except IdentityError:
        form = None
    if not root or form is None:
        return "not in the core"
    return _place(memory, form, root, vaddr)


def _place(memory: CorePhysical, form: Form, root: int, vaddr: int) -> str:
    try:
        found = walk(memory, form, root, vaddr)
    except KdumpError as error:
        return error.message
    there = "" if memory.vaddr_of(found.paddr) is not None else ", not in the core"
    return f"{found.paddr:#x}  {_size(found.size)} page{there}"


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def _show(page: Page, array: Memmap) -> None:
    paddr = page.pfn << array.page_shift
    say(f"pfn {page.pfn:#x}  physical {paddr:#x}  struct page {page.vaddr:#x}")
    say(f"  flags {page.flags:#x}: {' '.join(page.names) or 'none'}")
    if page.head != page.vaddr:
        say(f"  part of the compound page {page.head:#x}, pfn {array.pfn_of(page.head) or 0:#x}")
    say(
        f"  refcount {page.refcount}  mapcount {page.mapcount}  "
        f"index {page.offset:#x}  private {page.private:#x}"
    )
    if page.kind:
        say(f"  {page.kind} {printable(page.about)}".rstrip())
    elif page.mapping and page.head == page.vaddr:
        say(f"  mapping {page.mapping:#x}")
