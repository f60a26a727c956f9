"""The array of struct page in all its forms, and what its entries say."""

from __future__ import annotations

import pytest

from kdump_elftool.errors import IdentityError
from kdump_elftool.plain.memmap import find_memmap
from kdump_elftool.plain.pages import Page, read_page
from tests.builders.page_array import MODELS, make_array
from tests.builders.structures import Memory

words = pytest.mark.parametrize("word", [8, 4])


@words
@pytest.mark.parametrize("model", MODELS)
def test_every_frame_has_its_page_and_no_other(model, word):
    memory, pages = make_array(model, word)
    array = find_memmap(memory)
    size = memory.keys["SIZE(page)"]
    assert {pfn: array.page_of(pfn) for pfn in range(3000) if array.page_of(pfn)} == pages
    for pfn, vaddr in pages.items():
        assert array.pfn_of(vaddr) == array.pfn_of(vaddr + size - 1) == pfn
    assert array.pfn_of(min(pages.values()) - 1) is None


def test_sections_that_lead_nowhere_are_none():
    memory, pages = make_array("extreme", 8)
    gone = [vaddr for pfn, vaddr in pages.items() if pfn < 48]
    for vaddr in gone:
        for at in range(vaddr, vaddr + memory.keys["SIZE(page)"]):
            memory.data.pop(at, None)
    array = find_memmap(memory)
    assert [part.pfn for part in array.parts] == [130 * 16]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE(page)", 0),
        ("SIZE(page)", None),
        ("NUMBER(PAGE_SHIFT)", None),
        ("NUMBER(PAGE_SHIFT)", 99),
        ("NUMBER(SECTION_SIZE_BITS)", None),
        ("NUMBER(SECTION_SIZE_BITS)", 70),
        ("SIZE(mem_section)", 1 << 30),
        ("SIZE(mem_section)", 1 << 13),
        ("OFFSET(mem_section.section_mem_map)", 1 << 12),
        ("OFFSET(mem_section.section_mem_map)", None),
        ("SYMBOL(mem_section)", 0x123456789000),
    ],
)
def test_an_array_described_as_impossible(key, value):
    memory, _ = make_array("extreme", 8)
    memory.keys[key] = value
    with pytest.raises(IdentityError):
        find_memmap(memory)


@words
@pytest.mark.parametrize("length", [None, 2, 4, 1 << 40])
def test_nodes_with_a_gap(length, word):
    """Node 1 is off line.  What lies behind the array is no node, where its length is known."""
    memory, _ = make_array("nodes", word)
    first, second = (
        int.from_bytes(memory.read(memory.keys["SYMBOL(node_data)"] + at * word, word), "little")
        for at in (0, 1)
    )
    stray = memory.make("pglist_data", node_start_pfn=0x4000, node_spanned_pages=1, node_mem_map=0x1234000)
    table = memory.take(5 * word)
    for index, node in enumerate((first, 0, second, 0, stray)):
        memory.put(table + index * word, node)
    memory.keys["SYMBOL(node_data)"] = table
    memory.keys["LENGTH(node_data)"] = length
    expected = {None: [0x10], 2: [0x10], 4: [0x10, 0x820], 1 << 40: [0x10, 0x820, 0x4000]}[length]
    assert [part.pfn for part in find_memmap(memory).parts] == expected


def test_no_array():
    with pytest.raises(IdentityError):
        find_memmap(Memory(keys={"SIZE(page)": 64, "NUMBER(PAGE_SHIFT)": 12}))


class Frame:
    """One frame's page under construction."""

    def __init__(self, word: int = 8, head: str = "compound_head") -> None:
        self.memory, self.pages = make_array("extreme", word, head)
        self.memory.keys |= {
            "NUMBER(PG_locked)": 0,
            "NUMBER(PG_lru)": 4,
            "NUMBER(PG_head)": 6,
            "NUMBER(PG_slab)": 7,
            "NUMBER(__NR_PAGEFLAGS)": 10,
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": -129,
        }
        self.pfn = 20

    def put(self, member: str, value: int, width: int = 0, pfn: int = 20) -> None:
        self.memory.put(self.pages[pfn] + self.memory.keys[f"OFFSET(page.{member})"], value, width)

    def read(self, pfn: int = 20) -> Page:
        found = read_page(self.memory, find_memmap(self.memory), pfn)
        assert found is not None
        return found


@words
def test_fields(word):
    frame = Frame(word)
    for member, value in (("flags", 1 << 4 | 1 | 1 << 9 | 1 << 11), ("index", 55), ("private", 66)):
        frame.put(member, value)
    frame.put("_refcount", 3, 4)
    frame.put("_mapcount", -1, 4)
    page = frame.read()
    assert (page.pfn, page.vaddr, page.head) == (20, frame.pages[20], frame.pages[20])
    assert page.names == ("locked", "lru", "bit 9")  # 11 is beyond the flags: node or zone
    assert (page.refcount, page.mapcount, page.offset, page.private) == (3, -1, 55, 66)
    assert (page.kind, page.about) == ("", "")


def test_a_free_block():
    frame = Frame()
    frame.put("_mapcount", -129, 4)
    frame.put("private", 3)
    page = frame.read()
    assert (page.kind, page.about) == ("free", "block of 8 pages")


def test_a_free_block_before_types():
    frame = Frame()
    del frame.memory.keys["NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)"]
    frame.memory.keys["NUMBER(PG_buddy)"] = 8
    frame.put("flags", 1 << 8)
    assert frame.read().kind == "free"


@pytest.mark.parametrize("by", ["flag", "type"])
def test_a_page_of_a_cache(by):
    frame = Frame()
    memory = frame.memory
    memory.struct("kmem_cache", "flags", "name")
    cache = memory.make("kmem_cache", name=memory.text(b"kmalloc-64"))
    frame.put("slab_cache", cache)
    frame.put("compound_head", frame.pages[20] + 1, pfn=21)
    if by == "flag":
        frame.put("flags", 1 << 7 | 1 << 6)
    else:
        memory.keys["NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)"] = 0xF5FFFFFF
        frame.put("_mapcount", 0xF5FFFFFF, 4)
    for pfn in (20, 21):
        page = frame.read(pfn)
        assert (page.kind, page.about) == ("slab", f"kmem_cache {cache:#x} kmalloc-64")
        assert page.head == frame.pages[20]


def test_a_huge_page():
    """The type is the first page's (since v6.11), and holds for those behind it."""
    frame = Frame()
    frame.memory.keys["NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)"] = 0xF4FFFFFF
    frame.put("compound_head", frame.pages[20] + 1, pfn=21)
    frame.put("_mapcount", 0xF4FFFFFF, 4)
    frame.put("mapping", 0x5001)
    assert [frame.read(pfn).kind for pfn in (20, 21)] == ["hugetlb", "hugetlb"]


def test_what_is_mapped():
    frame = Frame()
    memory = frame.memory
    frame.put("mapping", 0x5001)
    assert (frame.read().kind, frame.read().about) == ("anon", "anon_vma 0x5000")
    memory.struct("address_space", "host")
    memory.struct("inode", "i_ino")
    inode = memory.make("inode", i_ino=4711)
    space = memory.make("address_space", host=inode)
    frame.put("mapping", space)
    assert frame.read().about == f"address_space {space:#x} inode {inode:#x} number 4711"
    frame.put("mapping", 0x6000)  # which is not there
    assert (frame.read().kind, frame.read().about) == ("file", "")


def test_what_ksm_has_merged():
    """PAGE_MAPPING_KSM of page-flags.h: not the anon_vma of a process, but a node that many share."""
    frame = Frame()
    frame.put("mapping", 0x5003)
    assert (frame.read().kind, frame.read().about) == ("ksm", "stable node 0x5000")
    frame.put("mapping", 3)  # not yet in the tree, or taken out of it
    assert (frame.read().kind, frame.read().about) == ("ksm", "")


@pytest.mark.parametrize("before_v6", [False, True])
def test_what_a_driver_can_move(before_v6):
    """PAGE_MAPPING_MOVABLE: pages of zsmalloc and of balloons, from v4.8 to v6.16."""
    frame = Frame()
    frame.memory.keys["NUMBER(PG_isolated)"] = 8
    if not before_v6:
        frame.memory.struct("movable_operations", "isolate_page", "migrate_page", "putback_page")
    frame.put("mapping", 0x7002)
    shown = "address_space 0x7000" if before_v6 else "movable_operations 0x7000"
    assert (frame.read().kind, frame.read().about) == ("movable", shown)
    frame.put("mapping", 2)  # its driver has let it go
    assert (frame.read().kind, frame.read().about) == ("movable", "")


def test_a_mapping_that_the_kernel_cannot_have():
    """Without PG_isolated a mapping moves no page, and is no file's either."""
    frame = Frame()
    frame.memory.struct("movable_operations", "isolate_page", "migrate_page", "putback_page")
    frame.put("mapping", 0x7002)
    assert (frame.read().kind, frame.read().about, frame.read().mapping) == ("", "", 0x7002)


@words
def test_tails_told_by_a_mask(word):
    """Since v7.1, with descriptions of a power of two bytes."""
    frame = Frame(word, "compound_info")
    frame.memory.keys["SIZE(page)"] = 8 * word
    size = 8 * word
    everything = (1 << 8 * word) - 1
    head = next(pfn for pfn, vaddr in frame.pages.items() if vaddr % (4 * size) == 0)
    frame.put("compound_info", everything & ~(4 * size - 1) | 1, pfn=head + 3)
    assert frame.read(head + 3).head == frame.pages[head]
    frame.put("compound_info", frame.pages[head] | 1, pfn=head + 2)
    assert frame.read(head + 2).head == frame.pages[head]
    assert frame.read(head + 1).head == frame.pages[head + 1]


def test_tails_before_there_was_a_pointer_for_all():
    frame = Frame(8, "first_page")
    frame.memory.keys["NUMBER(PG_tail)"] = 5
    frame.put("first_page", frame.pages[20], pfn=22)
    assert frame.read(22).head == frame.pages[22]
    frame.put("flags", 1 << 5, pfn=22)
    assert frame.read(22).head == frame.pages[20]


def test_heads_that_are_tails_of_a_huge_page():
    """Descriptions of a huge page share their memory: each first one in a page has PG_head (v5.18)."""
    frame = Frame()
    frame.put("flags", 1 << 6, pfn=24)
    frame.put("compound_head", frame.pages[20] + 1, pfn=25)
    assert frame.read(24).head == frame.pages[20]


def test_a_head_beyond_the_array_is_not_believed():
    frame = Frame()
    frame.put("compound_head", 0xFFFF888000000001)
    assert frame.read().head == frame.pages[20]


def test_a_frame_without_a_page():
    frame = Frame()
    assert read_page(frame.memory, find_memmap(frame.memory), 0) is None


@pytest.mark.parametrize("bit", [-1, 64, 1 << 62])
@pytest.mark.parametrize("name", ["locked", "slab", "buddy", "tail", "head"])
def test_a_flag_described_as_impossible(name, bit):
    """It names nothing, and nobody counts up to it."""
    frame = Frame(head="first_page" if name == "tail" else "compound_head")
    frame.memory.keys |= {f"NUMBER(PG_{name})": bit, "NUMBER(__NR_PAGEFLAGS)": 1 << 62}
    frame.put("flags", 2)
    assert len(frame.read().names) == 1


def test_sections_without_end_that_lead_nowhere():
    """Roots full of sections, none of whose arrays is there."""
    memory, _ = make_array("extreme", 8)
    memory.keys["NUMBER(MAX_PHYSMEM_BITS)"] = 52
    root, roots = memory.take(4096, 4096), memory.take(1 << 18, 4096)
    for at in range(0, 4096, 8):
        memory.put(root + at, 0x123450000003)
    for at in range(0, 1 << 18, 8):
        memory.put(roots + at, root)
    memory.keys["SYMBOL(mem_section)"] = roots
    reads = []
    read = memory.read
    memory.read = lambda vaddr, size: (reads.append(vaddr), read(vaddr, size))[1]
    with pytest.raises(IdentityError, match="was not found"):
        find_memmap(memory)
    assert len(reads) < 50_000


def test_roots_without_end_in_which_nothing_is(monkeypatch):
    monkeypatch.setattr("kdump_elftool.plain.memmap._MOST_LOOKED_AT", 1 << 12)
    memory, _ = make_array("extreme", 8)
    root, roots = memory.take(4096, 4096), memory.take(1 << 14, 4096)
    for at in range(0, 4096, 8):
        memory.put(root + at, 0)
    for at in range(0, 1 << 14, 8):
        memory.put(roots + at, root)
    memory.keys |= {"NUMBER(MAX_PHYSMEM_BITS)": 52, "SYMBOL(mem_section)": roots}
    reads = []
    read = memory.read
    memory.read = lambda vaddr, size: (reads.append(vaddr), read(vaddr, size))[1]
    with pytest.raises(IdentityError, match="was not found"):
        find_memmap(memory)
    # by two readings, and once for a table without roots
    assert reads.count(root) <= 2 * (1 << 12) // (4096 // 16) + 1
