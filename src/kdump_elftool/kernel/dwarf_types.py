"""Types out of the DWARF of a vmlinux: each question is put to a unit that must know the answer.

A compilation unit holds every type that its code uses.  So instead of searching hundreds of megabytes,
the unit of a function is looked up that cannot do without the struct.  The names are those of functions
that have been in these files since 3.x; where a kernel lacks one the next is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import KdumpError
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.vmlinux import Vmlinux, section_headers

if TYPE_CHECKING:
    from kdump_elftool.kernel.dwarf_file import DwarfFile
    from kdump_elftool.kernel.dwarf_unit import DwarfUnit

log = logging.getLogger(__name__)

KINDS = ("OFFSET", "SIZE", "LENGTH", "NUMBER")
LABEL = "vmlinux DWARF"
INSTALL = "pip install 'kdump-elftool[dwarf]'"

_FUNCTIONS = (
    "schedule",  # kernel/sched/core.c: tasks, run queues, lists
    "crash_save_vmcoreinfo",  # kernel/vmcore_info.c, crash_core.c, kexec.c: all of VMCOREINFO
    "copy_thread",  # arch/*/kernel/process*.c: what switch_to() saves
    "copy_thread_tls",  # the same on x86 from v4.2 to v5.13
    "mm_alloc",  # kernel/fork.c: processes
    "vprintk_emit",  # kernel/printk/printk.c: the log
    "module_put",  # kernel/module/main.c, kernel/module.c
    "mod_sysfs_setup",  # kernel/module/sysfs.c; kernel/module.c before v5.18
    "__free_pages",  # mm/page_alloc.c: pages, zones
    "sparse_init",  # mm/sparse.c: sections
    "free_uts_ns",  # kernel/utsname.c
)
"""Asked in this order where nothing better is known."""
_BETTER = {
    "inactive_task_frame": ("copy_thread",),
    "thread_struct": ("copy_thread",),
    "page": ("crash_save_vmcoreinfo",),
    "pglist_data": ("crash_save_vmcoreinfo",),
    "zone": ("crash_save_vmcoreinfo",),
    "free_area": ("crash_save_vmcoreinfo",),
    "mem_section": ("sparse_init",),
    "printk_info": ("vprintk_emit",),
    "printk_ringbuffer": ("vprintk_emit",),
    "printk_log": ("vprintk_emit",),
    "log": ("vprintk_emit",),
    "module": ("module_put",),
    **dict.fromkeys(
        ("module_sect_attrs", "module_sect_attr", "module_notes_attrs", "bin_attribute", "attribute_group"),
        ("mod_sysfs_setup", "module_put"),
    ),
    "uts_namespace": ("free_uts_ns",),
    # what the gdb side asks for: kernel/fork.c has nearly all of it, in old kernels not
    **dict.fromkeys(("mm_struct", "vm_area_struct", "vm_operations_struct", "fs_struct"), ("mm_alloc",)),
    **dict.fromkeys(("files_struct", "fdtable", "file", "path"), ("mm_alloc", "put_files_struct")),
    **dict.fromkeys(("dentry", "qstr", "dentry_operations", "hlist_bl_node"), ("mm_alloc", "d_path")),
    **dict.fromkeys(("super_block", "file_system_type"), ("mm_alloc", "deactivate_super")),  # fs/super.c
    **dict.fromkeys(("inode", "address_space"), ("mm_alloc", "inode_init_once")),  # fs/inode.c
    **dict.fromkeys(("mount", "vfsmount"), ("d_path",)),  # fs/d_path.c, fs/dcache.c
    **dict.fromkeys(("xarray", "xa_node"), ("xa_load",)),  # lib/xarray.c
    **dict.fromkeys(("radix_tree_root", "radix_tree_node"), ("radix_tree_lookup",)),  # lib/radix-tree.c
    **dict.fromkeys(("maple_range_64", "maple_arange_64"), ("mas_find",)),  # lib/maple_tree.c
    **dict.fromkeys(("kmem_cache", "slab"), ("kmem_cache_alloc",)),  # mm/slub.c, mm/slab.c
    "vm_special_mapping": ("_install_special_mapping",),  # mm/mmap.c
    "resource": ("request_resource",),  # kernel/resource.c
    # arch/*/mm/numa.c; mm/numa.c from v6.12 on
    "node_data": ("alloc_node_data", "numa_set_node"),
    # arch/*/mm/init.c, where they are arrays
    "swapper_pg_dir": ("paging_init",),
    "invalid_pte_table": ("paging_init",),
    "invalid_pmd_table": ("paging_init",),
    "invalid_pud_table": ("paging_init",),
}
"""Whom to ask first about a struct or array."""


class NoReaderError(KdumpError):
    """pyelftools, which reads DWARF, is not installed."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} has no .BTF, and its DWARF cannot be read without pyelftools", hint=INSTALL)


@dataclass
class DwarfTypes:
    """The types of one vmlinux.  Units stay indexed once they were asked, and functions found."""

    vmlinux: Vmlinux
    file: DwarfFile
    units: dict[int, DwarfUnit] = field(default_factory=dict)
    places: dict[str, int | None] = field(default_factory=dict)

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        value = self.ask(kind, name)
        return None if value is None else Fact(f"{kind}({name})", value, LABEL)

    def ask(self, kind: str, name: str) -> int | None:
        """The answer to ``KIND(name)``, from the first unit that knows the type."""
        from kdump_elftool.kernel.dwarf_file import DAMAGED

        if kind not in KINDS:
            return None
        for function in self._functions(name.partition(".")[0]):
            try:
                unit = self._unit(function)
                found = None if unit is None else unit.answer(kind, name)
            except (*DAMAGED, KdumpError, OSError) as error:
                log.info("DWARF: the unit of %s: %s: %s", function, type(error).__name__, error)
                continue
            if found is not None:
                return found.value
        return None

    def _functions(self, name: str) -> Iterator[str]:
        first = _BETTER.get(name, ())
        yield from first
        yield from (function for function in _FUNCTIONS if function not in first)

    def _unit(self, function: str) -> DwarfUnit | None:
        from kdump_elftool.kernel.dwarf_unit import DwarfUnit

        if function not in self.places:
            self.places[function] = self.vmlinux.table.find(function)
        vaddr = self.places[function]
        cu = None if vaddr is None else self.file.unit_at(vaddr)
        if cu is None:
            return None
        if cu.cu_offset not in self.units:
            self.units[cu.cu_offset] = DwarfUnit.read(self.file, cu)
            log.info("DWARF: %s by %s", self.units[cu.cu_offset].name, function)
        return self.units[cu.cu_offset]


def open_dwarf_types(vmlinux: Vmlinux) -> DwarfTypes | None:
    """The types of a vmlinux that has DWARF; None when it has none.  Raises NoReaderError."""
    elf = ElfFile.read(vmlinux.file)
    if b".debug_info" not in section_headers(elf):
        log.info("%s has no DWARF", vmlinux.path)
        return None
    try:
        from kdump_elftool.kernel.dwarf_file import DAMAGED, open_dwarf
    except ImportError:
        raise NoReaderError(vmlinux.path) from None
    try:
        found = open_dwarf(elf)
    except (*DAMAGED, OSError) as error:
        log.info("DWARF: %s: %s: %s", vmlinux.path, type(error).__name__, error)
        return None
    return None if found is None else DwarfTypes(vmlinux, found)
