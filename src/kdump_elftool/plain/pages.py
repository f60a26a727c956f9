"""One page of memory as the kernel's ``struct page`` describes it.

References: include/linux/page-flags.h, mm_types.h.  What a field means depends on others: of a slab page the
mapping is none, of a free page ``private`` is the order of its block.  Counters are as they are stored:
``_mapcount`` is one less than what it counts.  The two lowest bits of a mapping say what it points to: 1 an
anon_vma, 3 a node of KSM, and from v4.8 to v6.16 2 what can move a page that is in no list.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain import memmap
from kdump_elftool.plain.memmap import Memmap
from kdump_elftool.plain.paths import inode_number
from kdump_elftool.plain.target import Target, struct_size, unsigned
from kdump_elftool.plain.walking import known_offset, number, pointer, string

FLAGS = (
    *("locked", "writeback", "referenced", "uptodate", "dirty", "lru", "head", "waiters", "active"),
    *("workingset", "slab", "owner_priv_1", "owner_2", "arch_1", "reserved", "private", "private_2", "error"),
    *(
        "mappedtodisk",
        "reclaim",
        "swapbacked",
        "unevictable",
        "dropbehind",
        "mlocked",
        "uncached",
        "hwpoison",
    ),
    *("young", "idle", "arch_2", "arch_3", "tail", "compound", "swapcache", "compound_lock", "buddy"),
)
"""Names by which a bit is called first; others are aliases of these."""
_TYPES = {
    "BUDDY": "free",
    "OFFLINE": "offline",
    "HUGETLB": "hugetlb",
    "SLAB": "slab",
    "UNACCEPTED": "unaccepted",
}
_OF_HEADS = ("HUGETLB", "SLAB")
"""What the first page of a compound one says for all of it."""
_MEMBERS = (
    *("flags", "_refcount", "_count", "_mapcount", "mapping", "private", "index", "__folio_index"),
    *("compound_head", "compound_info", "first_page", "slab_cache"),
)
NEEDS = (
    *memmap.NEEDS,
    *(f"NUMBER(PG_{name})" for name in FLAGS),
    *(f"NUMBER(PAGE_{name}_MAPCOUNT_VALUE)" for name in _TYPES),
    "NUMBER(__NR_PAGEFLAGS)",
    "NUMBER(PG_isolated)",
    "OFFSET(movable_operations.migrate_page)",
    *(f"OFFSET(page.{name})" for name in _MEMBERS),
    *("OFFSET(slab.slab_cache)", "OFFSET(kmem_cache.name)", "OFFSET(address_space.host)"),
    *("OFFSET(inode.i_ino)", "SIZE(inode.i_ino)"),
)
_ANON, _KSM = 1, 3
_LOW_BITS = 3
_HEX = "{:#x}".format


class Page(NamedTuple):
    """``flags`` with the names of those that are set; ``refcount`` and ``mapcount`` signed.

    ``head`` is the first page of the block that this one is a tail of, else this one.  ``kind`` is free,
    slab, hugetlb, offline, unaccepted, anon, ksm, movable, file or empty; ``about`` says more of it.
    """

    pfn: int
    vaddr: int
    flags: int
    names: tuple[str, ...]
    refcount: int
    mapcount: int
    head: int
    mapping: int
    offset: int
    private: int
    kind: str
    about: str


def read_page(target: Target, array: Memmap, pfn: int) -> Page | None:
    """None for a frame without a ``struct page``.  Raises FaultError, IdentityError."""
    vaddr = array.page_of(pfn)
    if vaddr is None:
        return None
    flags = pointer(target, vaddr, "page.flags")
    mapcount = number(target, vaddr, 4, "page._mapcount")
    mapping = pointer(target, vaddr, "page.mapping")
    private = _maybe(target, vaddr, "page.private")
    head = _head(target, array, vaddr, flags)
    kind = _kind(target, head, flags, mapcount)
    mapping_of_head = mapping if head == vaddr else _there(target, head, "page.mapping")
    if not kind and mapping_of_head:
        kind = _kind_of_mapping(target, mapping_of_head)
    return Page(
        pfn=pfn,
        vaddr=vaddr,
        flags=flags,
        names=flag_names(target, flags),
        refcount=_signed(number(target, vaddr, 4, "page._refcount", "page._count")),
        mapcount=_signed(mapcount),
        head=head,
        mapping=mapping,
        offset=_maybe(target, vaddr, "page.index", "page.__folio_index"),
        private=private,
        kind=kind,
        about=_about(target, kind, head, mapping_of_head, private),
    )


def flag_names(target: Target, flags: int) -> tuple[str, ...]:
    """By bit; a bit that no name is known of is its number."""
    named: dict[int, str] = {}
    for name in FLAGS:
        bit = _flag(target, name)
        if bit is not None:
            named.setdefault(bit, name)
    count = target.number("__NR_PAGEFLAGS")
    top = max(named, default=-1) + 1 if count is None or not 0 < count <= 64 else count
    return tuple(named.get(bit, f"bit {bit}") for bit in range(top) if flags >> bit & 1)


def _flag(target: Target, name: str) -> int | None:
    """Its bit, if that can be one."""
    bit = target.number(f"PG_{name}")
    return bit if bit is not None and 0 <= bit < 64 else None


def _kind(target: Target, head: int, flags: int, mapcount: int) -> str:
    """By the type in place of ``_mapcount``, else by a flag."""
    for name, said in _TYPES.items():
        value = target.number(f"PAGE_{name}_MAPCOUNT_VALUE")
        if value is not None and value & 0xFFFFFFFF == mapcount:
            return said
    for name in _OF_HEADS:
        if _has_type(target, head, name):
            return _TYPES[name]
    buddy = _flag(target, "buddy")  # until v2.6.37
    if buddy is not None and flags >> buddy & 1:
        return "free"
    slab = _flag(target, "slab")
    if slab is None or target.number("PAGE_SLAB_MAPCOUNT_VALUE") is not None:
        return ""
    of_head = _there(target, head, "page.flags")
    return "slab" if (flags | of_head) >> slab & 1 else ""


def _kind_of_mapping(target: Target, mapping: int) -> str:
    """Nothing for a mapping that this kernel cannot have.

    PG_isolated came and went together with pages that drivers move by their mapping (v4.8 to v6.16).
    """
    kind = {0: "file", _ANON: "anon", _KSM: "ksm"}.get(mapping & _LOW_BITS)
    return kind or ("movable" if target.number("PG_isolated") is not None else "")


def _has_type(target: Target, vaddr: int, name: str) -> bool:
    value = target.number(f"PAGE_{name}_MAPCOUNT_VALUE")
    at = known_offset(target, "page._mapcount")
    if value is None or at is None:
        return False
    try:
        return unsigned(target, vaddr + at, 4) == value & 0xFFFFFFFF
    except FaultError:
        return False


def _head(target: Target, array: Memmap, vaddr: int, flags: int) -> int:
    """The first page of a compound one: this one where it is none of its tails."""
    found = known_offset(target, "page.compound_head", "page.compound_info")
    if found is None:  # until v4.3
        tail = _flag(target, "tail")
        is_tail = tail is not None and flags >> tail & 1
        head = _maybe(target, vaddr, "page.first_page") if is_tail else vaddr
    else:
        told = unsigned(target, vaddr + found, target.word)
        head = _told(target, vaddr, told) if told & 1 else _behind_fake(target, vaddr, found, flags)
    return head if array.pfn_of(head) is not None else vaddr


def _told(target: Target, vaddr: int, told: int) -> int:
    """By a pointer, or since v7.1 by a mask: ones from some bit on.  Bit 0 is no part of either."""
    rest = (1 << 8 * target.word) - 1 & ~(told | 1)
    is_mask = not (rest + 2) & rest
    return vaddr & told if is_mask else told - 1


def _behind_fake(target: Target, vaddr: int, offset_of_head: int, flags: int) -> int:
    """Huge pages of hugetlb share the memory of their descriptions, and with it PG_head (v5.18 to v7.0)."""
    bit = _flag(target, "head")
    if bit is None or not flags >> bit & 1:
        return vaddr
    try:
        told = unsigned(target, vaddr + struct_size(target, "page") + offset_of_head, target.word)
    except FaultError:
        return vaddr
    return told - 1 if told & 1 else vaddr


def _about(target: Target, kind: str, head: int, mapping: int, private: int) -> str:
    """More about a page of that kind, or nothing where it is not there."""
    try:
        if kind == "free":
            return f"block of {1 << private} pages" if private < 64 else ""
        if kind == "slab":
            return _cache(target, head)
        if kind in ("anon", "ksm", "movable"):
            points_to = mapping & ~_LOW_BITS
            return f"{_pointed_to(target, kind)} {_HEX(points_to)}" if points_to else ""
        if kind == "file":
            inode = pointer(target, mapping, "address_space.host")
            ino = inode_number(target, inode)
            return f"address_space {_HEX(mapping)} inode {_HEX(inode)} number {ino}"
    except FaultError:
        pass
    return ""


def _pointed_to(target: Target, kind: str) -> str:
    """By the name of its type: drivers gave an address_space until v5.19."""
    if kind == "movable":
        has_operations = known_offset(target, "movable_operations.migrate_page") is not None
        return "movable_operations" if has_operations else "address_space"
    return "anon_vma" if kind == "anon" else "stable node"


def _cache(target: Target, head: int) -> str:
    """The name of a slab page's cache."""
    where = known_offset(target, "slab.slab_cache", "page.slab_cache")
    if where is None or known_offset(target, "kmem_cache.name") is None:
        return ""
    cache = unsigned(target, head + where, target.word)
    name = string(target, pointer(target, cache, "kmem_cache.name"), 64)
    return f"kmem_cache {_HEX(cache)} {name.decode('latin-1')}"


def _maybe(target: Target, vaddr: int, *names: str) -> int:
    return pointer(target, vaddr, *names) if known_offset(target, *names) is not None else 0


def _there(target: Target, vaddr: int, name: str) -> int:
    try:
        return pointer(target, vaddr, name)
    except FaultError:
        return 0


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value
