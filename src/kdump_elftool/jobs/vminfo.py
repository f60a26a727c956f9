"""The vminfo file: what the original tool had its users fetch with gdb, all of it, from dump or vmlinux.

Keys as its gdb macros name them (vminfo_qemu_base, vminfo_qemu_all, thread_vminfo_*); those that a
kernel does not have are left out, and none is left to be filled in by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.arch.base import Architecture
from kdump_elftool.kernel.facts import Fact, Knowledge

BASE = (
    "SYMBOL(vmcoreinfo_data)",
    "SIZE(list_head)",
    "OFFSET(list_head.next)",
    "OFFSET(list_head.prev)",
    "SYMBOL(_stext)",
    "SYMBOL(idt_table)",
    "SYMBOL(per_cpu__current_task)",
    "NUMBER(NR_FREE_PAGES)",
    "SYMBOL(swapper_pg_dir)",
    "SYMBOL(init_level4_pgt)",
    "SYMBOL(init_top_pgt)",
)
PAGES = (
    "SYMBOL(mem_section)",
    "SIZE(mem_section)",
    "LENGTH(mem_section)",
    "OFFSET(mem_section.section_mem_map)",
    "SYMBOL(mem_map)",
    "SYMBOL(contig_page_data)",
    "SYMBOL(node_data)",
    "LENGTH(node_data)",
    "NUMBER(PG_lru)",
    "NUMBER(PG_private)",
    "NUMBER(PG_swapcache)",
    "NUMBER(PG_swapbacked)",
    "NUMBER(PG_slab)",
    "NUMBER(PG_hwpoison)",
    "NUMBER(PG_head_mask)",
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
    "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)",
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)",
    "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)",
    "NUMBER(SECTION_SIZE_BITS)",
    "NUMBER(MAX_PHYSMEM_BITS)",
    "SIZE(page)",
    "OFFSET(page.flags)",
    "OFFSET(page._refcount)",
    "OFFSET(page._count)",
    "OFFSET(page.mapping)",
    "OFFSET(page.lru)",
    "OFFSET(page._mapcount)",
    "OFFSET(page.private)",
    "OFFSET(page.compound_head)",
    "OFFSET(page.compound_info)",
    "OFFSET(page.compound_dtor)",
    "OFFSET(page.compound_order)",
    "SIZE(pglist_data)",
    "OFFSET(pglist_data.node_zones)",
    "OFFSET(pglist_data.nr_zones)",
    "OFFSET(pglist_data.node_mem_map)",
    "OFFSET(pglist_data.node_start_pfn)",
    "OFFSET(pglist_data.node_spanned_pages)",
    "OFFSET(pglist_data.node_id)",
    "SIZE(zone)",
    "OFFSET(zone.free_area)",
    "LENGTH(zone.free_area)",
    "OFFSET(zone.vm_stat)",
    "OFFSET(zone.spanned_pages)",
    "SIZE(free_area)",
    "OFFSET(free_area.free_list)",
    "LENGTH(free_area.free_list)",
)
THREADS = (
    "SYMBOL(init_task)",
    "OFFSET(task_struct.stack)",
    "OFFSET(task_struct.tasks)",
    "OFFSET(task_struct.thread_group)",
    "OFFSET(task_struct.thread_node)",
    "OFFSET(signal_struct.thread_head)",
    "OFFSET(task_struct.signal)",
    "OFFSET(task_struct.pid)",
    "OFFSET(task_struct.tgid)",
    "OFFSET(task_struct.comm)",
    "OFFSET(task_struct.thread)",
    "SIZE(pt_regs)",
)
GROUPS = {"base": BASE, "qemu": PAGES, "thread": THREADS}


@dataclass(frozen=True)
class VmInfo:
    """Lines in the order of the macros, and the facts behind them."""

    lines: tuple[str, ...]
    facts: tuple[Fact, ...]


def vminfo(
    known: Knowledge, arch: Architecture, release: str | None, page: int, groups: tuple[str, ...]
) -> VmInfo:
    """The lines that can be given, ``page`` being its page size.  ``groups`` are names of :data:`GROUPS`."""
    lines: list[str] = []
    facts: list[Fact] = []
    if "base" in groups:
        lines += [f"OSRELEASE={release}"] if release else []
        lines.append(f"PAGESIZE={page}")
    keys = [key for group in groups for key in GROUPS[group]]
    if "thread" in groups:
        keys += arch.thread_keys
    for key in dict.fromkeys(keys):
        kind, _, rest = key.partition("(")
        fact = known.find(kind, rest.removesuffix(")"))
        if fact is not None:
            value = int(fact.value)
            lines.append(f"{key}={value:x}" if kind == "SYMBOL" else f"{key}={value}")
            facts.append(fact)
    return VmInfo(tuple(lines), tuple(facts))
