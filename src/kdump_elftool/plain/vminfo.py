"""The lines that the original tool had its users fetch with gdb: which there are, and how they look.

Keys as its gdb macros name them (vminfo_qemu_base, vminfo_qemu_all, thread_vminfo_*), and what this tool asks
besides; those that a kernel does not have are left out, and none is left to be filled in by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from kdump_elftool.plain import tasks

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
    "SYMBOL(_stext)",
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
    "SYMBOL(_stext)",
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
    "SIZE(thread_union)",
    "SYMBOL(crash_notes)",
    *tasks.NEEDS,
)
_FRAMES = {
    "x86_64": ("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"),
    "i386": ("bx", "si", "di", "bp", "ret_addr"),
    "arm64": ("x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "fp", "sp", "pc"),
    "arm": ("r4", "r5", "r6", "r7", "r8", "r9", "sl", "fp", "sp", "pc"),
    "mips": tuple(f"reg{number}" for number in (*range(16, 24), *range(29, 32))),
}


def _offsets(struct: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"OFFSET({struct}.{name})" for name in names)


THREADS_OF = {
    "x86_64": ("OFFSET(thread_struct.sp)", *_offsets("inactive_task_frame", _FRAMES["x86_64"])),
    "i386": (
        "OFFSET(thread_struct.sp)",
        "OFFSET(thread_struct.ip)",
        *_offsets("inactive_task_frame", _FRAMES["i386"]),
    ),
    "arm64": ("OFFSET(thread_struct.cpu_context)", *_offsets("cpu_context", _FRAMES["arm64"])),
    "arm": ("OFFSET(thread_info.cpu_context)", *_offsets("cpu_context_save", _FRAMES["arm"])),
    "mips": _offsets("thread_struct", _FRAMES["mips"]),
}
"""Where kernels save the registers of a task that sleeps, as ``Architecture.thread_keys`` has it."""
MACHINES = {"x86_64": 62, "i386": 3, "arm64": 183, "arm": 40, "mips": 8}
"""e_machine of each of them."""
NEEDS = (*BASE, *PAGES, *THREADS, *(key for keys in THREADS_OF.values() for key in keys))
"""What these commands ask of a kernel."""


def header_lines(release: str | None, page: int | None) -> Iterator[str]:
    """What every such file begins with, as far as it is known."""
    if release:
        yield f"OSRELEASE={release}"
    if page:
        yield f"PAGESIZE={page}"


def line(key: str, value: int) -> str:
    """As VMCOREINFO has it: addresses in hexadecimal."""
    return f"{key}={value:x}" if key.startswith("SYMBOL") else f"{key}={value}"


def known_lines(keys: Iterable[str], ask: Callable[[str, str], int | None]) -> Iterator[str]:
    """Those of ``keys`` to which ``ask(kind, name)`` has an answer, each once."""
    for key in dict.fromkeys(keys):
        kind, _, name = key[:-1].partition("(")
        value = ask(kind, name)
        if value is not None:
            yield line(key, value)
