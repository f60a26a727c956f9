"""What each page of memory is used for, and which pages a level keeps.

The tests are those of the kernel itself (include/linux/page-flags.h, mm/internal.h) in the order
that makedumpfile's ``-d`` uses, so that the kept set is comparable bit for bit:

* free: in the buddy allocator (``_mapcount`` has the buddy type, ``private`` the order), or
  unaccepted memory; the whole block goes by its head;
* cache: on an LRU list or in the swap cache, not anonymous; a compound page goes by its head;
* user: anonymous (``mapping`` bit 0) or hugetlb;
* poison and offline: never worth keeping, at any level but ``all``.

Slab pages share those fields and are never any of it.  A page whose ``struct page`` cannot be
read is kept and counted as unknown.  Everything is columns over a chunk of the array; only blocks
that reach over a chunk's end are carried on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import MASK64, U64, Bools, Index, Ranges, merge_ranges
from kdump_elftool.errors import IdentityError
from kdump_elftool.kernel.memmap import Memmap
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.memory.virtual import VirtualMemory

CHUNK_PAGES = 1 << 15
_MAPPING_ANON = 1
_TAIL = 1
_MAX_ORDER = 32
_MAX_STRUCT_SIZE = 4096


class Category(IntEnum):
    """Why a page is left out (``KEPT``: it is not)."""

    KEPT = 0
    FREE = 1
    CACHE = 2
    USER = 3
    POISON = 4
    OFFLINE = 5


LEVELS: dict[str, frozenset[Category]] = {
    "all": frozenset(),
    "inuse": frozenset({Category.FREE, Category.POISON, Category.OFFLINE}),
    "user": frozenset({Category.FREE, Category.CACHE, Category.POISON, Category.OFFLINE}),
    "cache": frozenset({Category.FREE, Category.USER, Category.POISON, Category.OFFLINE}),
    "kernel": frozenset({Category.FREE, Category.CACHE, Category.USER, Category.POISON, Category.OFFLINE}),
}
"""What each level leaves out: as makedumpfile -d 16, 22, 24 and 30."""

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PageFields:
    """Where ``struct page`` keeps what is asked, and the values that mean something.

    Offsets in bytes; bit numbers of ``flags``; None where this kernel has no such thing.  If
    ``dtor_is_pointer`` a compound page is known by that alone: newer kernels have a way to the head there.
    """

    word: int
    flags: int
    mapcount: int | None
    mapping: int
    private: int | None
    head: int | None
    order: tuple[int, int] | None
    dtor: tuple[int, int] | None
    lru: int
    swapcache: int | None
    swapbacked: int | None
    slab: int | None
    hwpoison: int | None
    head_mask: int | None
    hugetlb_bit: int | None
    hugetlb_dtor: int | None
    slab_type: int | None
    buddy_type: int | None
    hugetlb_type: int | None
    offline_type: int | None
    unaccepted_type: int | None
    max_order: int
    byte_order: str = "<"
    dtor_is_pointer: bool = False


@dataclass(frozen=True)
class PageAccount:
    """Dropped physical ranges and counts of present pages by category.

    ``unknown`` pages have a struct page that could not be read, ``unmapped`` ones have none; both
    are kept.
    """

    dropped: Ranges
    counts: dict[Category, int]
    unknown: int
    without_struct: int


def page_fields(info: VmcoreInfo, word: int, byte_order: str = "<") -> PageFields:
    """Read the layout from VMCOREINFO.  Raises IdentityError naming a missing key."""
    order, dtor = _compound_fields(info)
    old = None if order or dtor else _words_of_the_list(info, word)
    order, dtor = old or (order, dtor)
    mapcount = info.offset("page._mapcount")
    private = info.offset("page.private")
    fields = PageFields(
        word=word,
        flags=_need(info.offset("page.flags"), "OFFSET(page.flags)"),
        mapcount=mapcount,
        mapping=_need(info.offset("page.mapping"), "OFFSET(page.mapping)"),
        private=private,
        # renamed in v7.1, when it became either a pointer or a mask; bit 0 still means tail
        head=_first(info.offset("page.compound_head"), info.offset("page.compound_info")),
        order=order,
        dtor=dtor,
        lru=_need(info.number("PG_lru"), "NUMBER(PG_lru)"),
        swapcache=info.number("PG_swapcache"),
        swapbacked=info.number("PG_swapbacked"),
        slab=info.number("PG_slab"),
        hwpoison=info.number("PG_hwpoison"),
        head_mask=info.number("PG_head_mask"),
        hugetlb_bit=info.number("PG_hugetlb"),
        hugetlb_dtor=_first(info.number("HUGETLB_PAGE_DTOR"), info.symbol("free_huge_page")),
        slab_type=info.number("PAGE_SLAB_MAPCOUNT_VALUE"),
        buddy_type=None if mapcount is None else info.number("PAGE_BUDDY_MAPCOUNT_VALUE"),
        hugetlb_type=info.number("PAGE_HUGETLB_MAPCOUNT_VALUE"),
        offline_type=info.number("PAGE_OFFLINE_MAPCOUNT_VALUE"),
        unaccepted_type=info.number("PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
        max_order=min(max(info.length("zone.free_area") or _MAX_ORDER, 1), _MAX_ORDER),
        byte_order=byte_order,
        dtor_is_pointer=old is not None,
    )
    _check(fields, _need(info.size("page"), "SIZE(page)"))
    return fields


def _check(fields: PageFields, struct_size: int) -> None:
    """Refuse what no kernel has.  Raises IdentityError."""
    word = fields.word
    places = [(fields.flags, word), (fields.mapping, word)]
    places += [(at, word) for at in (fields.private, fields.head) if at is not None]
    places += [place for place in (fields.order, fields.dtor) if place is not None]
    if fields.mapcount is not None:
        places.append((fields.mapcount, 4))
    numbers = (fields.lru, fields.swapcache, fields.swapbacked, fields.slab, fields.hwpoison)
    bits = [number for number in (*numbers, fields.hugetlb_bit) if number is not None]
    masks = [mask for mask in (fields.head_mask, fields.hugetlb_dtor) if mask is not None]
    if (
        struct_size > _MAX_STRUCT_SIZE
        or any(not 0 <= at <= struct_size - width for at, width in places)
        or any(not 0 <= number < 8 * word for number in bits)
        or any(not 0 <= mask <= MASK64 for mask in masks)
    ):
        raise IdentityError(
            "SIZE(page)",
            "pages cannot be told apart: VMCOREINFO describes an impossible struct page",
            hint="-l all needs none of this; -e FILE can supply the lines",
        )


def account(
    virtual: VirtualMemory,
    memmap: Memmap,
    fields: PageFields,
    level: str,
    present: Ranges,
    free: Ranges | None = None,
) -> PageAccount:
    """Classify every page of the array and sum up what ``level`` drops of ``present`` memory.

    ``free``: memory that the allocator's lists call free, of kernels that don't mark such pages.
    """
    counts = np.zeros(len(Category), dtype=np.int64)
    unknown = with_struct = 0
    starts: list[U64] = []
    ends: list[U64] = []
    shift = np.uint64(memmap.page_size.bit_length() - 1)
    for pfn, codes, known in classify(virtual, memmap, fields, LEVELS[level]):
        first = (np.uint64(pfn) + np.arange(len(codes), dtype=np.uint64)) << shift
        here = present.contains(first)
        if free is not None:
            codes[free.contains(first)] = Category.FREE
        counts += np.bincount(codes[here], minlength=len(Category))
        unknown += int((here & ~known & (codes == 0)).sum())
        with_struct += int(here.sum())
        edges = np.flatnonzero(np.diff(np.concatenate([[0], codes != 0, [0]])))
        address = (np.uint64(pfn) + edges.astype(np.uint64)) << shift
        starts.append(address[::2])
        ends.append(address[1::2])
    empty = np.zeros(0, dtype=np.uint64)
    dropped = merge_ranges(np.concatenate([*starts, empty]), np.concatenate([*ends, empty]))
    total = present.total // memmap.page_size
    return PageAccount(
        dropped=dropped,
        counts={category: int(counts[category]) for category in Category},
        unknown=unknown,
        without_struct=max(total - with_struct, 0),
    )


def classify(
    virtual: VirtualMemory, memmap: Memmap, fields: PageFields, drop: frozenset[Category]
) -> Iterator[tuple[int, Codes, Bools]]:
    """Per chunk: first pfn, category codes, and a mask of the pages whose struct page was read."""
    carry_end, carry_code = 0, 0
    buffer = bytearray(CHUNK_PAGES * memmap.struct_size)
    for part in memmap.parts:
        pfn, end = part.pfn, part.pfn + part.nr_pages
        while pfn < end:
            # chunks end at whole multiples: no aligned block has its second page in another chunk
            count = min(CHUNK_PAGES - pfn % CHUNK_PAGES, end - pfn)
            view = memoryview(buffer)[: count * memmap.struct_size]
            vaddr = part.vaddr + (pfn - part.pfn) * memmap.struct_size
            known = _read_structs(virtual, vaddr, view, memmap.struct_size)
            codes, nr_pages, poison = _heads(view, count, memmap.struct_size, fields, drop, pfn)
            codes[~known] = 0
            carry_end, carry_code = _spread(codes, nr_pages, pfn, carry_end, carry_code)
            if Category.POISON in drop:
                # the mark is each page's own: a huge page that could not be split has it on a tail
                codes[poison & known & (codes == 0)] = Category.POISON
            yield pfn, codes, known
            pfn += count


def _read_structs(virtual: VirtualMemory, vaddr: int, view: memoryview, size: int) -> Bools:
    """Fill ``view`` with what is there; mask of the structures that are there completely."""
    holes = virtual.read_present(vaddr, view)
    known = np.ones(len(view) // size, dtype=np.bool_)
    for begin, end in holes:
        known[begin // size : -(-end // size)] = False
    return known


def _heads(
    view: memoryview, count: int, size: int, fields: PageFields, drop: frozenset[Category], pfn: int
) -> tuple[Codes, Index, Bools]:
    """Category of each page judged by itself, how many pages go with it, and which are poisoned."""
    flags = _column(view, count, size, fields, fields.flags)
    mapcount = None if fields.mapcount is None else _signed(view, count, size, fields, fields.mapcount)
    slab = _bit(flags, fields.slab) | _is_type(mapcount, fields.slab_type, count)
    anon = _masked(_column(view, count, size, fields, fields.mapping), _MAPPING_ANON) & ~slab
    order, hugetlb = _compound(view, count, size, fields, flags, mapcount, pfn)
    swapcache = _bit(flags, fields.swapcache)
    if fields.swapbacked is not None:
        # since v4.10 the bit has another meaning on pages that are not swap-backed
        swapcache &= _bit(flags, fields.swapbacked)
    cache = (_bit(flags, fields.lru) | swapcache) & ~anon
    free, order = _free(view, count, size, fields, slab, mapcount, order)
    poison = _bit(flags, fields.hwpoison)
    tests = {
        Category.FREE: free,
        Category.CACHE: cache,
        Category.USER: anon | hugetlb,
        Category.POISON: poison,
        Category.OFFLINE: _is_type(mapcount, fields.offline_type, count) & ~slab,
    }
    codes = np.zeros(count, dtype=np.uint8)
    for category in sorted(drop, reverse=True):
        codes[tests[category]] = category
    if fields.head is not None:
        # tails share their head's fate
        codes[_masked(_column(view, count, size, fields, fields.head), _TAIL)] = 0
    return codes, np.where(codes > 0, np.left_shift(1, order), 1), poison


def _free(
    view: memoryview,
    count: int,
    size: int,
    fields: PageFields,
    slab: Bools,
    mapcount: npt.NDArray[np.int32] | None,
    order: Index,
) -> tuple[Bools, Index]:
    """Heads of free blocks, and the orders with theirs filled in."""
    buddy = _is_type(mapcount, fields.buddy_type, count) & ~slab
    if fields.private is not None:
        private = _column(view, count, size, fields, fields.private)
        buddy &= private < np.uint64(fields.max_order)
        order = np.where(buddy, np.minimum(private, np.uint64(_MAX_ORDER)).astype(np.intp), order)
    unaccepted = _is_type(mapcount, fields.unaccepted_type, count)
    return buddy | unaccepted, np.where(unaccepted & ~buddy, fields.max_order - 1, order)


def _compound(
    view: memoryview,
    count: int,
    size: int,
    fields: PageFields,
    flags: U64,
    mapcount: npt.NDArray[np.int32] | None,
    pfn: int,
) -> tuple[Index, Bools]:
    """Order of each compound head (0 elsewhere), and which heads are hugetlb.

    The order lies in the second struct page: in the low byte of its flags since v6.6, in
    ``compound_order`` before, in its ``lru`` until v4.3.
    """
    order = np.zeros(count, dtype=np.intp)
    hugetlb = np.zeros(count, dtype=np.bool_)
    if fields.head_mask is None:
        return order, hugetlb
    head = np.flatnonzero((flags[:-1] & np.uint64(fields.head_mask)) != 0)
    if fields.hugetlb_type is not None and mapcount is not None:
        order[head] = (flags[head + 1] & np.uint64(0xFF)).astype(np.intp)
        hugetlb[head] = mapcount[head] == np.int32(fields.hugetlb_type)
    elif fields.hugetlb_bit is not None:
        order[head] = (flags[head + 1] & np.uint64(0xFF)).astype(np.intp)
        hugetlb[head] = _bit(flags[head + 1], fields.hugetlb_bit)
    else:
        if fields.dtor is not None:
            at, width = fields.dtor
            dtor = _column(view, count, size, fields, at, width)[head + 1]
            if fields.dtor_is_pointer:
                real = (dtor != 0) & ~_masked(dtor, _TAIL)
                head, dtor = head[real], dtor[real]
            if fields.hugetlb_dtor is not None:
                hugetlb[head] = dtor == np.uint64(fields.hugetlb_dtor)
        if fields.order is not None:
            at, width = fields.order
            order[head] = _column(view, count, size, fields, at, width)[head + 1].clip(max=64).astype(np.intp)
    misplaced = (order >= _MAX_ORDER) | (((pfn + np.arange(count)) & (np.left_shift(1, order % 63) - 1)) != 0)
    order[misplaced] = 0
    return order, hugetlb


def _spread(codes: Codes, nr_pages: Index, pfn: int, carry_end: int, carry_code: int) -> tuple[int, int]:
    """Give whole blocks their head's category; returns the block that reaches into the next chunk."""
    count = len(codes)
    carried = min(max(carry_end - pfn, 0), count)
    codes[:carried] = carry_code
    start = np.flatnonzero((codes > 0) & (nr_pages > 1))
    start = start[start >= carried]
    end = start + nr_pages[start]
    if len(start):
        outer = _outermost(start, end)
        start, end = start[outer], end[outer]
        length = np.minimum(end, count) - start
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        codes[np.repeat(start, length) + within] = np.repeat(codes[start], length)
        if end[-1] > count:
            return pfn + int(end[-1]), int(codes[start[-1]])
    return carry_end, carry_code


def _outermost(start: Index, end: Index) -> Index:
    """Indices of the blocks that do not begin inside an earlier one (blocks nest in damage only)."""
    if np.all(start[1:] >= end[:-1]):
        return np.arange(len(start))
    kept: list[int] = []
    reached = 0
    for index, (begin, stop) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        if begin >= reached:
            kept.append(index)
            reached = stop
    return np.array(kept, dtype=np.intp)


def _column(view: memoryview, count: int, size: int, fields: PageFields, offset: int, width: int = 0) -> U64:
    """One unsigned field of every structure, as uint64; a word without ``width``."""
    dtype = f"{fields.byte_order}u{width or fields.word}"
    column: npt.NDArray[np.uint64] = np.ndarray(
        (count,), dtype=dtype, buffer=view, offset=offset, strides=(size,)
    ).astype(np.uint64)
    return column


def _signed(
    view: memoryview, count: int, size: int, fields: PageFields, offset: int
) -> npt.NDArray[np.int32]:
    dtype = f"{fields.byte_order}i4"
    return np.ndarray((count,), dtype=dtype, buffer=view, offset=offset, strides=(size,)).astype(np.int32)


def _bit(values: U64, number: int | None) -> Bools:
    if number is None:
        return np.zeros(len(values), dtype=np.bool_)
    return _masked(values, 1 << number)


def _masked(values: U64, mask: int) -> Bools:
    result: Bools = (values & np.uint64(mask)) != 0
    return result


def _is_type(mapcount: npt.NDArray[np.int32] | None, value: int | None, count: int) -> Bools:
    """Page types are exact values of ``_mapcount`` (since v6.12 in its top byte)."""
    if mapcount is None or value is None:
        return np.zeros(count, dtype=np.bool_)
    wanted = np.int32((value & 0xFFFFFFFF) - (1 << 32) if value & 0x80000000 else value & 0x7FFFFFFF)
    result: Bools = mapcount == wanted
    return result


def _compound_fields(info: VmcoreInfo) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(offset, width) of compound order and destructor; widths follow from their distance."""
    order = _first(info.offset("folio._folio_order"), info.offset("page.compound_order"))
    dtor = _first(info.offset("folio._folio_dtor"), info.offset("page.compound_dtor"))
    page = info.size("page") or 0
    if order is not None and page and order >= page:
        order -= page  # offsets in a folio count from the first struct page
    if dtor is not None and page and dtor >= page:
        dtor -= page
    if order is None or dtor is None:
        return (None if order is None else (order, 1)), (None if dtor is None else (dtor, 1))
    # bytes; until v4.15 shorts or, on 64-bit machines, ints; until v4.3 a pointer and a long
    width = 1 << min(max(abs(order - dtor), 1).bit_length() - 1, 3)
    return (order, width), (dtor, width)


def _words_of_the_list(info: VmcoreInfo, word: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(offset, width) of compound order and destructor until v4.3, when no line names them.

    Both were words of ``lru`` (set_compound_order(), set_compound_page_dtor() in include/linux/mm.h).
    """
    lru, after, before = (info.offset(name) for name in ("page.lru", "list_head.next", "list_head.prev"))
    if lru is None or after is None or before is None:
        return None
    return (lru + before, word), (lru + after, word)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _need(value: int | None, key: str) -> int:
    if value is None or value < 0:
        raise IdentityError(
            key,
            f"pages cannot be told apart: VMCOREINFO lacks {key}",
            hint="-l all needs none of this; -e FILE can supply the line",
        )
    return value
