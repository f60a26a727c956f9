"""What VMCOREINFO would say, said by the vmlinux: for kernels that were built without it.

The keys are those of the kernel's own text, as far as this tool and others ask for them.  Where the
kernel prints a macro, which no debugging information has, the value follows from what the macro is made
of, or from the form of struct page.

References: kernel/vmcore_info.c, kernel/printk/printk.c (log_buf_vmcoreinfo_setup()),
include/linux/page-flags.h.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdump_elftool.kernel.facts import Fact, Source

MEMORY = (
    "SYMBOL(init_uts_ns)",
    "OFFSET(uts_namespace.name)",
    "SYMBOL(_stext)",
    "SYMBOL(mem_map)",
    "SYMBOL(contig_page_data)",
    "SYMBOL(mem_section)",
    "LENGTH(mem_section)",
    "SIZE(mem_section)",
    "OFFSET(mem_section.section_mem_map)",
    "SYMBOL(node_data)",
    "LENGTH(node_data)",
    "SIZE(page)",
    "SIZE(pglist_data)",
    "SIZE(zone)",
    "SIZE(free_area)",
    "SIZE(list_head)",
    "SIZE(nodemask_t)",
    "OFFSET(page.flags)",
    "OFFSET(page._refcount)",
    "OFFSET(page._count)",
    "OFFSET(page.mapping)",
    "OFFSET(page.lru)",
    "OFFSET(page._mapcount)",
    "OFFSET(page.private)",
    "OFFSET(page.compound_dtor)",
    "OFFSET(page.compound_order)",
    "OFFSET(page.compound_head)",
    "OFFSET(page.compound_info)",
    "OFFSET(folio._folio_dtor)",
    "OFFSET(folio._folio_order)",
    "OFFSET(pglist_data.node_zones)",
    "OFFSET(pglist_data.nr_zones)",
    "OFFSET(pglist_data.node_mem_map)",
    "OFFSET(pglist_data.node_start_pfn)",
    "OFFSET(pglist_data.node_spanned_pages)",
    "OFFSET(pglist_data.node_id)",
    "OFFSET(zone.free_area)",
    "OFFSET(zone.vm_stat)",
    "OFFSET(zone.spanned_pages)",
    "OFFSET(free_area.free_list)",
    "OFFSET(list_head.next)",
    "OFFSET(list_head.prev)",
    "LENGTH(zone.free_area)",
    "LENGTH(free_area.free_list)",
    "NUMBER(NR_FREE_PAGES)",
    "NUMBER(PG_lru)",
    "NUMBER(PG_private)",
    "NUMBER(PG_swapcache)",
    "NUMBER(PG_swapbacked)",
    "NUMBER(PG_hwpoison)",
    "NUMBER(HUGETLB_PAGE_DTOR)",
)
LOG = (
    "SYMBOL(prb)",
    "SYMBOL(printk_rb_static)",
    "SYMBOL(clear_seq)",
    "SIZE(printk_ringbuffer)",
    "OFFSET(printk_ringbuffer.desc_ring)",
    "OFFSET(printk_ringbuffer.text_data_ring)",
    "OFFSET(printk_ringbuffer.fail)",
    "SIZE(prb_desc_ring)",
    "OFFSET(prb_desc_ring.count_bits)",
    "OFFSET(prb_desc_ring.descs)",
    "OFFSET(prb_desc_ring.infos)",
    "OFFSET(prb_desc_ring.head_id)",
    "OFFSET(prb_desc_ring.tail_id)",
    "SIZE(prb_desc)",
    "OFFSET(prb_desc.state_var)",
    "OFFSET(prb_desc.text_blk_lpos)",
    "SIZE(prb_data_blk_lpos)",
    "OFFSET(prb_data_blk_lpos.begin)",
    "OFFSET(prb_data_blk_lpos.next)",
    "SIZE(printk_info)",
    "OFFSET(printk_info.seq)",
    "OFFSET(printk_info.ts_nsec)",
    "OFFSET(printk_info.text_len)",
    "OFFSET(printk_info.caller_id)",
    "OFFSET(printk_info.dev_info)",
    "SIZE(dev_printk_info)",
    "OFFSET(dev_printk_info.subsystem)",
    "OFFSET(dev_printk_info.device)",
    "SIZE(prb_data_ring)",
    "OFFSET(prb_data_ring.size_bits)",
    "OFFSET(prb_data_ring.data)",
    "OFFSET(prb_data_ring.head_lpos)",
    "OFFSET(prb_data_ring.tail_lpos)",
    "SIZE(latched_seq)",
    "OFFSET(latched_seq.val)",
    "SIZE(atomic_long_t)",
    "OFFSET(atomic_long_t.counter)",
    "SYMBOL(log_buf)",
    "SYMBOL(log_buf_len)",
    "SYMBOL(log_first_idx)",
    "SYMBOL(clear_idx)",
    "SYMBOL(log_next_idx)",
    "SIZE(printk_log)",
    "OFFSET(printk_log.ts_nsec)",
    "OFFSET(printk_log.len)",
    "OFFSET(printk_log.text_len)",
    "OFFSET(printk_log.dict_len)",
)
TABLES = (
    "SYMBOL(kallsyms_names)",
    "SYMBOL(kallsyms_num_syms)",
    "SYMBOL(kallsyms_token_table)",
    "SYMBOL(kallsyms_token_index)",
    "SYMBOL(kallsyms_offsets)",
    "SYMBOL(kallsyms_relative_base)",
)
_TYPES = {
    "buddy": "BUDDY", "slab": "SLAB", "offline": "OFFLINE", "hugetlb": "HUGETLB", "unaccepted": "UNACCEPTED",
}  # fmt: skip
_BUDDY, _SLAB, _BUDDY_BEFORE = ~0x80, ~0x1000, -128
_BY_FORM = "struct page of this form"


def said_by(known: Source, keys: tuple[str, ...]) -> Iterator[Fact]:
    """Those of the lines that ``known`` can answer."""
    for key in keys:
        kind, _, rest = key.partition("(")
        fact = known.find(kind, rest.removesuffix(")"))
        if fact is not None:
            yield fact


def image_facts(known: Source) -> Iterator[Fact]:
    """Every line that ``known`` can answer; addresses are those at run time if its symbols are."""
    yield from said_by(known, (*MEMORY, *LOG, *TABLES))
    head = known.find("NUMBER", "PG_head")
    if head is not None and 0 <= int(head.value) < 64:
        yield Fact("NUMBER(PG_head_mask)", 1 << int(head.value), head.source)
    yield from _huge_pages(known)
    yield from _page_types(known)


def _huge_pages(known: Source) -> Iterator[Fact]:
    """A flag of the second page (v6.6), a number of a destructor (v4.4) or its address."""
    flag = known.find("NUMBER", "PG_hugetlb")
    if flag is not None and 0 <= int(flag.value) < 64:
        yield flag
    elif flag is None and known.find("NUMBER", "HUGETLB_PAGE_DTOR") is None:
        freed_by = known.find("SYMBOL", "free_huge_page")
        if freed_by is not None:
            yield freed_by


def _page_types(known: Source) -> Iterator[Fact]:
    """How kinds of pages are marked in page._mapcount, newest form first.

    v6.12: enum pagetype counts, and the number is in the top byte (commit 4ffca5a96678, "mm: support only one
    page_type per page").  v6.11: the enum has bits, which are cleared.  Before that they were macros:
    page.page_type exists from v4.18 on, PG_buddy was 0x80, and PG_slab 0x1000 once it was no flag any more.
    """
    if known.find("NUMBER", "PGTY_buddy") is not None:
        for name, printed in _TYPES.items():
            fact = known.find("NUMBER", f"PGTY_{name}")
            if fact is not None and 0 <= int(fact.value) < 256:
                yield _of_type(printed, _signed(int(fact.value) << 24), fact.source)
        return
    slab = known.find("NUMBER", "PG_slab")
    if known.find("NUMBER", "PG_buddy") is not None:
        for name, printed in _TYPES.items():
            fact = known.find("NUMBER", f"PG_{name}")
            if fact is not None and int(fact.value) >= 1 << 7:  # a mask; others are numbers of flags
                yield _of_type(printed, _signed(~int(fact.value)), fact.source)
    elif known.find("OFFSET", "page._mapcount") is not None:
        split = known.find("OFFSET", "page.page_type")
        yield _of_type("BUDDY", _BUDDY if split else _BUDDY_BEFORE, _BY_FORM)
        if split and slab is None:
            yield _of_type("SLAB", _SLAB, _BY_FORM)
    if slab is not None and int(slab.value) < 64:
        yield Fact("NUMBER(PG_slab)", slab.value, slab.source)


def _of_type(printed: str, value: int, source: str) -> Fact:
    return Fact(f"NUMBER(PAGE_{printed}_MAPCOUNT_VALUE)", value, source)


def _signed(value: int) -> int:
    """A 32-bit number, as the kernel prints it."""
    value &= (1 << 32) - 1
    return value - (1 << 32) if value >> 31 else value
