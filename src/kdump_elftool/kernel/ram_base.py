"""Where memory begins that a file holds without saying so: the kernel in it must be where it thinks it is.

Something of the kernel is recognised in the file, init_uts_ns by the release that VMCOREINFO names, or
linux_banner by the vmlinux.  The image is one piece, so the place of every symbol in the file follows,
the top page table's too.  Where the architecture tells the physical address of a symbol the difference
is the beginning; else the entries of that table point into memory, so that only beginnings count from
which they do.  Each is no more than a candidate: who asks has to find a kernel there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, NO_RANGES, u64
from kdump_elftool.arch.base import Architecture, PagingForm
from kdump_elftool.arch.walker import Window, walk
from kdump_elftool.errors import PageAbsentError
from kdump_elftool.kernel.find import Texts
from kdump_elftool.kernel.image import ImageSearch
from kdump_elftool.kernel.utsname import found_namespaces
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.memory.physical import PhysicalMemory

_MOST_ANCHORS = 64
_MOST_BASES = 2048
"""Of one anchor; steps are larger where they would be more."""
_MOST_TRIED = 8192
_STEP = 1 << 20
"""Memory begins at a multiple of this, if nothing tells more exactly."""
_PAGE = 4096


@dataclass(frozen=True)
class Anchor:
    """A symbol found at ``offset`` in the file; ``root`` is how much behind it the top table is.

    ``vaddr`` is its address; ``paddr`` by what the kernel says, if it says so.
    """

    what: str
    offset: int
    vaddr: int
    root: int | None
    paddr: int | None

    @property
    def is_possible(self) -> bool:
        """Whether it is as far behind the beginning of a page as the image has it."""
        return (self.offset - self.vaddr) % _PAGE == 0


@dataclass(frozen=True)
class Base:
    """Where the memory may begin, and how that was told."""

    paddr: int
    how: str


def bases(
    memory: PhysicalMemory, arch: Architecture, order: str, texts: Texts, images: ImageSearch | None
) -> Iterator[Base]:
    """Candidates, best first.  ``memory`` is the file's with addresses that are offsets in it."""
    found = itertools.chain(_by_text(memory, arch, texts), _by_banner(arch, texts, images))
    anchors = list(itertools.islice((anchor for anchor in found if anchor.is_possible), _MOST_ANCHORS))
    for anchor in anchors:
        if anchor.paddr is not None and anchor.paddr >= anchor.offset:
            yield Base(anchor.paddr - anchor.offset, f"what is known of {anchor.what}")
    window = arch.image_window(VmcoreInfo({}))
    tried = (
        (anchor, form, base)
        for anchor in anchors
        if anchor.root is not None
        for form in arch.forms(VmcoreInfo({}), order)
        for base in _by_tables(memory, form, anchor, window)
    )
    for anchor, form, base in itertools.islice(tried, _MOST_TRIED):
        if base >= 0 and base % _PAGE == 0 and _leads_back(memory, form, anchor, base, window):
            yield Base(base, f"the page tables beside {anchor.what}")


def _leads_back(
    memory: PhysicalMemory, form: PagingForm, anchor: Anchor, base: int, window: tuple[int, int]
) -> bool:
    """Whether the tables map the anchor if memory begins at ``base``."""
    assert anchor.root is not None
    if base + int(memory.declared.end[-1]) > MASK64:
        return False
    low, high = (form.raw(edge) for edge in window)
    root, place = base + anchor.offset + anchor.root, u64([base + anchor.offset])
    found = walk(memory.moved(base), form, root, Window(low, high)).mappings
    return bool(((found.paddr <= place) & (place - found.paddr < found.size)).any())


def _by_text(memory: PhysicalMemory, arch: Architecture, texts: Texts) -> Iterator[Anchor]:
    """init_uts_ns of the kernels that texts describe."""
    for text in texts.found[:_MOST_ANCHORS]:
        info = parse(text.data)
        vaddr, table = info.symbol("init_uts_ns"), info.symbol("swapper_pg_dir")
        if vaddr is None:
            continue
        paddr = _known_paddr(arch, info, vaddr)
        root = None if table is None else table - vaddr
        for offset in found_namespaces(memory, texts, info):
            yield Anchor("init_uts_ns", offset, vaddr, root, paddr)


def _by_banner(arch: Architecture, texts: Texts, images: ImageSearch | None) -> Iterator[Anchor]:
    """linux_banner of the vmlinux, at its link address: where a kernel moves itself, its tables tell."""
    place = images.anchor() if images else None
    if images is None or images.wanted is None or place is None:
        return
    banner, root = place
    for offset in texts.places.get(images.wanted, ())[:_MOST_ANCHORS]:
        yield Anchor("linux_banner", offset, banner, root - banner, _known_paddr(arch, images.extra, banner))


def _known_paddr(arch: Architecture, info: VmcoreInfo, vaddr: int) -> int | None:
    """Where an address of the image is, if that follows from what the kernel says alone."""
    paddrs = arch.image_paddrs(info, vaddr, NO_RANGES)
    return paddrs[0] if len(paddrs) == 1 else None


def _by_tables(
    memory: PhysicalMemory, form: PagingForm, anchor: Anchor, window: tuple[int, int]
) -> Iterator[int]:
    """Beginnings of memory from which the tables that the top one names for the image are in it, roundest
    first.
    """
    level, (start, end), size = form.levels[0], window, int(memory.declared.end[-1])
    assert anchor.root is not None
    if anchor.offset + anchor.root < 0:
        return
    try:
        data = memory.read(anchor.offset + anchor.root, level.table_size)
    except PageAbsentError:
        return
    width = level.table_size >> level.bits
    words = np.frombuffer(data, dtype=f"{form.byte_order}u{width}").astype(np.uint64)
    raw = np.arange(len(words), dtype=np.uint64) << np.uint64(level.shift)
    entries = form.decode(words & np.uint64(MASK64 & ~form.ignored_bits), level, raw)
    index = form.raw(anchor.vaddr) >> level.shift & ((1 << level.bits) - 1)
    if entries.leaf[index]:
        yield int(entries.paddr[index]) + form.raw(anchor.vaddr) % level.span - anchor.offset
    # memory may be a part of the machine's: only what the image needs has to be there
    low, high = (form.raw(edge) >> level.shift & ((1 << level.bits) - 1) for edge in (start, end - 1))
    tables = entries.paddr[low : high + 1][entries.table[low : high + 1]]
    if not len(tables):
        return
    low, high = int(tables.max()) + _PAGE - size, int(tables.min())
    step = max(_STEP, 1 << max(size // _MOST_BASES - 1, 0).bit_length())
    first = max(-(-low // step) * step, 0)
    found = itertools.islice(range(first, high + 1, step), 2 * _MOST_BASES)
    yield from sorted(found, key=lambda base: (-(base & -base) if base else -(1 << 64), base))
