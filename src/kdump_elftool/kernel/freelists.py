"""Free pages by the allocator's own lists, of kernels that do not mark such pages.

Before v3.12 VMCOREINFO has no PAGE_BUDDY_MAPCOUNT_VALUE.  Each zone of each node has a list per
order and migrate type (include/linux/mmzone.h: ``zone.free_area[order].free_list[type]``), chained
through ``page.lru``.  A list that runs in a circle, leaves the array of struct page or cannot be
read ends there: its further pages are kept, other lists go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from kdump_elftool.addr import MASK64, Ranges, merge_ranges, u64
from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.kernel.memmap import Memmap, node_addresses
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.words import Words

_USUAL_ZONES = 4
_MAX_ZONES = 8
_MAX_ORDER = 32
_MAX_TYPES = 8
_MAX_LISTS = 1 << 19
_MAX_OFFSET = 1 << 24


@dataclass(frozen=True)
class FreeLists:
    """Physical ranges of free pages, and how many lists could not be followed to their end."""

    ranges: Ranges
    broken: int


@dataclass(frozen=True)
class ListFields:
    """Offsets and sizes of the structures on the way to a list, in bytes."""

    node_zones: int
    zone_size: int
    free_area: int
    area_size: int
    free_list: int
    head_size: int
    next: int
    lru: int
    nr_zones: int | None
    nr_orders: int
    nr_types: int


def free_by_lists(words: Words, info: VmcoreInfo, memmap: Memmap) -> FreeLists:
    """Follow every list.  Raises IdentityError naming a VMCOREINFO key that is missing."""
    fields = list_fields(info)
    frames = _Frames(memmap)
    seen: set[int] = set()
    starts: list[int] = []
    ends: list[int] = []
    broken = 0
    nodes = list(dict.fromkeys(node_addresses(words, info)))
    for order, head in islice(_heads(words, nodes, fields), _MAX_LISTS):
        whole = False
        for pfn in _follow(words, head, fields, frames, seen):
            whole = pfn is None
            if pfn is not None and pfn % (1 << order) == 0:
                starts.append(pfn * memmap.page_size)
                ends.append((pfn + (1 << order)) * memmap.page_size)
        broken += not whole
    return FreeLists(merge_ranges(u64(starts), u64(ends)), broken)


def list_fields(info: VmcoreInfo) -> ListFields:
    """Read the layout from VMCOREINFO; an array of unknown length has the kernel's usual one."""
    return ListFields(
        node_zones=_need(info.offset("pglist_data.node_zones"), "OFFSET(pglist_data.node_zones)"),
        zone_size=_need(info.size("zone"), "SIZE(zone)"),
        free_area=_need(info.offset("zone.free_area"), "OFFSET(zone.free_area)"),
        area_size=_need(info.size("free_area"), "SIZE(free_area)"),
        free_list=_need(info.offset("free_area.free_list"), "OFFSET(free_area.free_list)"),
        head_size=_need(info.size("list_head"), "SIZE(list_head)"),
        next=_need(info.offset("list_head.next"), "OFFSET(list_head.next)"),
        lru=_need(info.offset("page.lru"), "OFFSET(page.lru)"),
        nr_zones=info.offset("pglist_data.nr_zones"),
        nr_orders=_count(info.length("zone.free_area"), 11, _MAX_ORDER),
        # before v2.6.24 one list per order and no LENGTH
        nr_types=_count(info.length("free_area.free_list"), 1, _MAX_TYPES),
    )


def _heads(words: Words, nodes: list[int], fields: ListFields) -> Iterator[tuple[int, int]]:
    """(order, address of the list head) of every list."""
    for node in nodes:
        for zone in range(_nr_zones(words, node, fields)):
            zone_at = node + fields.node_zones + zone * fields.zone_size
            for order in range(fields.nr_orders):
                area = zone_at + fields.free_area + order * fields.area_size + fields.free_list
                for kind in range(fields.nr_types):
                    yield order, (area + kind * fields.head_size) & MASK64


def _nr_zones(words: Words, node: int, fields: ListFields) -> int:
    """Zones up to the last one that has memory, as the node says itself."""
    if fields.nr_zones is None:
        return _USUAL_ZONES
    try:
        found = words.read(node + fields.nr_zones, 4)
    except FaultError:
        return _USUAL_ZONES
    return min(found, _MAX_ZONES)


def _follow(
    words: Words, head: int, fields: ListFields, frames: _Frames, seen: set[int]
) -> Iterator[int | None]:
    """Frames on a list, then None when it came back to its head.

    A frame is on one list only, so that ``seen`` bounds the whole walk by the size of the array.
    """
    try:
        entry = words.read(head + fields.next)
        if entry == 0:
            yield None  # a zone without memory: its lists were never set up
            return
        while entry != head:
            pfn = frames.pfn((entry - fields.lru) & MASK64)
            if pfn is None or pfn in seen:
                return
            seen.add(pfn)
            yield pfn
            entry = words.read(entry + fields.next)
    except FaultError:
        return
    yield None


class _Frames:
    """From the address of a struct page to its frame."""

    def __init__(self, memmap: Memmap) -> None:
        parts = sorted(memmap.parts, key=lambda part: part.vaddr)
        self._start = u64([part.vaddr for part in parts])
        self._parts = parts
        self._size = memmap.struct_size

    def pfn(self, vaddr: int) -> int | None:
        """The frame, or None where no struct page begins."""
        index = int(np.searchsorted(self._start, np.uint64(vaddr), side="right")) - 1
        if index < 0:
            return None
        part = self._parts[index]
        number, rest = divmod(vaddr - part.vaddr, self._size)
        return part.pfn + number if not rest and number < part.nr_pages else None


def _need(value: int | None, key: str) -> int:
    if value is None or not 0 <= value < _MAX_OFFSET:
        raise IdentityError(
            key,
            f"free pages cannot be found: VMCOREINFO lacks {key}",
            hint="-l all needs none of this; -e FILE can supply the line",
        )
    return value


def _count(value: int | None, usual: int, limit: int) -> int:
    return usual if value is None or value < 1 else min(value, limit)
