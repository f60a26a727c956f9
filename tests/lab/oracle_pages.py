"""drgn as the judge of page frames: what each of them is used for, one by one, as JSON.

usage: oracle_pages.py CORE VMLINUX ANSWER < REQUEST

REQUEST: {"seed": int, "count": int}.  The answer has ``frames`` as [pfn, category] for frames drawn
at random from the sections that are present, and ``free`` with the number of free pages of all
zones.  Free pages come from the allocator's own lists and not from marks on the pages; where fields
of struct page lie is asked of the debug information and never of VMCOREINFO.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import (
    PageHead,
    PageHWPoison,
    PageLRU,
    PageSwapBacked,
    PageTail,
    compound_head,
    page_to_pfn,
    pfn_to_page,
)
from drgn.helpers.linux.mmzone import for_each_online_pgdat, for_each_present_section, section_nr_to_pfn

PAGE_TYPE_BASE = 0xF0000000
OLD_TYPES = {"slab": None, "offline": 0x100, "hugetlb": None}
"""Bits of page types before v6.11, which are macros and in no debug information."""


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    judge = Judge(prog)
    chance = random.Random(request["seed"])
    frames = []
    ranges = section_ranges(prog)
    while len(frames) < request["count"]:
        start, end = chance.choice(ranges)
        pfn = chance.randrange(start, end)
        frames.append([pfn, judge.category(pfn)])
    result = {"frames": frames, "free": sum(end - start for start, end in judge.free)}
    Path(answer).write_text(json.dumps(result))


def section_ranges(prog: drgn.Program) -> list[tuple[int, int]]:
    """Frames of each section, or of each node of flat memory."""
    if "mem_section" not in prog:
        nodes = [
            (int(node.node_start_pfn), int(node.node_spanned_pages)) for node in for_each_online_pgdat(prog)
        ]
        return [(start, start + size) for start, size in nodes]
    bits = int(prog.constant("SECTION_SIZE_BITS")) if has(prog, "SECTION_SIZE_BITS") else 27
    pages = 1 << (bits - int(prog["PAGE_SHIFT"]))
    starts = [int(section_nr_to_pfn(prog, number)) for number, _ in for_each_present_section(prog)]
    return [(start, start + pages) for start in starts]


def has(prog: drgn.Program, name: str) -> bool:
    try:
        prog.constant(name)
    except LookupError:
        return False
    return True


def free_ranges(prog: drgn.Program) -> list[tuple[int, int]]:
    """Blocks on the free lists of every zone of every node."""
    found = []
    for pgdat in for_each_online_pgdat(prog):
        for zone in pgdat.node_zones:
            if not zone.present_pages:
                continue  # its lists were never set up
            for order, area in enumerate(zone.free_area):
                for free_list in area.free_list:
                    found += blocks(free_list, order)
    return sorted(found)


def blocks(free_list: drgn.Object, order: int) -> list[tuple[int, int]]:
    member = "buddy_list" if has_member(free_list.prog_, "buddy_list") else "lru"
    starts = [
        int(page_to_pfn(page)) for page in list_for_each_entry("struct page", free_list.address_of_(), member)
    ]
    return [(start, start + (1 << order)) for start in starts]


def has_member(prog: drgn.Program, name: str) -> bool:
    return prog.type("struct page").has_member(name)


class Judge:
    """Says what a frame is used for, in the words of Category."""

    def __init__(self, prog: drgn.Program) -> None:
        self.prog = prog
        self.free = free_ranges(prog)
        self.free_frames = {pfn for start, end in self.free for pfn in range(start, end)}
        self.swapcache = self._flag("PG_swapcache")
        self.slab = self._flag("PG_slab")
        self.hugetlb = self._flag("PG_hugetlb")

    def _flag(self, name: str) -> int | None:
        return int(self.prog.constant(name)) if has(self.prog, name) else None

    def category(self, pfn: int) -> str:
        if pfn in self.free_frames:
            return "FREE"
        page = pfn_to_page(self.prog, pfn)
        try:
            tail = PageTail(page)
        except drgn.FaultError:
            return "UNKNOWN"
        head = compound_head(page) if tail else page
        slab = self.is_slab(head)
        anon = bool(head.mapping.value_() & 1) and not slab
        if not anon and (PageLRU(head) or self.is_swapcache(head)):
            return "CACHE"
        if anon or self.is_hugetlb(head):
            return "USER"
        # a poisoned page that still belongs to a process counts there, as in makedumpfile
        if PageHWPoison(page):
            return "POISON"
        return "OFFLINE" if self.is_type(head, "PGTY_offline", "offline") else "KEPT"

    def bit(self, page: drgn.Object, number: int | None) -> bool:
        if number is None:
            return False
        flags = page.flags if not hasattr(page.flags, "f") else page.flags.f
        return bool(flags.value_() >> number & 1)

    def is_swapcache(self, head: drgn.Object) -> bool:
        return PageSwapBacked(head) and self.bit(head, self.swapcache)

    def is_slab(self, head: drgn.Object) -> bool:
        return self.bit(head, self.slab) or self.is_type(head, "PGTY_slab", "slab")

    def is_type(self, page: drgn.Object, name: str, old: str) -> bool:
        value = page._mapcount.counter.value_() & 0xFFFFFFFF
        if has(self.prog, name):
            return value >> 24 == int(self.prog.constant(name))
        bit = OLD_TYPES[old]
        return bit is not None and value & (PAGE_TYPE_BASE | bit) == PAGE_TYPE_BASE

    def is_hugetlb(self, head: drgn.Object) -> bool:
        if has(self.prog, "PGTY_hugetlb"):
            return self.is_type(head, "PGTY_hugetlb", "hugetlb")
        if not PageHead(head):
            return False
        if self.hugetlb is not None:
            return self.bit(head + 1, self.hugetlb)
        second = head + 1
        if second.prog_.type("struct page").has_member("compound_dtor"):
            if not has(self.prog, "HUGETLB_PAGE_DTOR"):
                return False  # a kernel without them
            return bool(second.compound_dtor == self.prog.constant("HUGETLB_PAGE_DTOR"))
        folio = drgn.cast("struct folio *", head)
        return bool(folio._folio_dtor == self.prog.constant("HUGETLB_PAGE_DTOR"))


if __name__ == "__main__":
    main()
