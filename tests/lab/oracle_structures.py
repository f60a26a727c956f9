"""drgn as the judge of lists, trees, files, memory areas and pages, as JSON.

usage: oracle_structures.py CORE VMLINUX ANSWER < REQUEST

REQUEST: {"seed": int, "pages": count}.  Where drgn itself cannot read the core, it says None.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drgn
from drgn.helpers.linux.fs import d_path, for_each_file
from drgn.helpers.linux.list import hlist_for_each, list_for_each
from drgn.helpers.linux.mm import (
    PageSlab,
    compound_head,
    decode_page_flags,
    follow_phys,
    for_each_valid_page_range,
    for_each_vma,
    page_flags,
    page_index,
    pfn_to_page,
    vma_name,
)
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each
from drgn.helpers.linux.xarray import xa_for_each, xa_is_value, xa_to_value
from oracle_pages import Judge, has


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    chance = random.Random(request["seed"])
    judge = Judge(prog)
    blocks = {start: end - start for start, end in judge.free}
    result = {
        "lists": dict(lists(prog)),
        "hlists": dict(hlists(prog)),
        "rbtrees": dict(rbtrees(prog)),
        "xarrays": dict(xarrays(prog)),
        "tasks": {str(task.value_()): of_task(task) for task in for_each_task(prog)},
        "pages": [
            page(prog, pfn, judge, blocks.get(pfn))
            for pfn in frames(prog, chance, request["pages"], list(blocks))
        ],
    }
    Path(answer).write_text(json.dumps(result))


def lists(prog: drgn.Program) -> Iterator[tuple[str, list[int]]]:
    heads = ["modules", "super_blocks", "cgroup_roots", "net_namespace_list", "slab_caches"]
    found = [prog[name] for name in heads if name in prog]
    found += [prog["init_task"].tasks, prog["init_task"].children]
    found += [task.children for task in for_each_task(prog)]
    for head in found:
        yield str(head.address_), [node.value_() for node in list_for_each(head.address_of_())]


def hlists(prog: drgn.Program) -> Iterator[tuple[str, list[int]]]:
    table = prog["mount_hashtable"]
    for index in range(min(int(prog["m_hash_mask"]) + 1, 1 << 14)):
        head = table + index
        nodes = [node.value_() for node in hlist_for_each(head)]
        if nodes or index < 5:
            yield str(head.value_()), nodes


def rbtrees(prog: drgn.Program) -> Iterator[tuple[str, list[int]]]:
    roots = [prog[name] for name in ("vmap_area_root", "free_vmap_area_root") if name in prog]
    for mm in {task.mm.value_() for task in for_each_task(prog) if task.mm}:
        process = drgn.Object(prog, "struct mm_struct *", mm)
        files = [vma.vm_file for vma in for_each_vma(process) if vma.vm_file]
        roots += [file.f_mapping.i_mmap.rb_root for file in files]
    for address, root in {root.address_: root for root in roots}.items():
        yield str(address), [node.value_() for node in rbtree_inorder_for_each(root.address_of_())]


def xarrays(prog: drgn.Program) -> Iterator[tuple[str, list[list[int]]]]:
    """Each index with its entry, and 1 for a value."""
    roots = [prog["init_pid_ns"].idr.idr_rt]
    for task in for_each_task(prog):
        for _, file in for_each_file(task):
            roots += [file_pages(file)] if file else []
        if task.mm:
            roots += [file_pages(vma.vm_file) for vma in for_each_vma(task.mm) if vma.vm_file]
    for root in {root.address_: root for root in roots}.values():
        entries = xa_for_each(root.address_of_())
        try:
            yield str(root.address_), [entry_of(index, entry) for index, entry in entries]
        except drgn.FaultError:
            continue


def file_pages(file: drgn.Object) -> drgn.Object:
    return file.f_mapping.i_pages


def entry_of(index: int, entry: drgn.Object) -> list[int]:
    return [index, xa_to_value(entry).value_(), 1] if xa_is_value(entry) else [index, entry.value_(), 0]


def of_task(task: drgn.Object) -> dict[str, Any]:
    files = [
        [fd, file.value_(), file.f_inode.value_(), name_of(file.f_path).hex()]
        for fd, file in for_each_file(task)
        if file
    ]
    areas = []
    physical = []
    if task.mm:
        for vma in for_each_vma(task.mm):
            start, end = vma.vm_start.value_(), vma.vm_end.value_()
            name = (name_of(vma.vm_file.f_path) if vma.vm_file else vma_name(vma)).hex()
            offset = vma.vm_pgoff.value_() * task.prog_["PAGE_SIZE"].value_()
            areas.append([vma.value_(), start, end, vma.vm_flags.value_(), offset, name])
            physical += [[at, physical_of(task.mm, at)] for at in (start + 0x123, end - 1)]
    return {"files": files, "vmas": areas, "physical": physical}


def name_of(path: drgn.Object) -> bytes:
    """As the kernel's own d_path(): drgn has the file system's name of what is in no directory."""
    dentry = path.dentry
    name, inode = dentry.d_name.name.string_(), dentry.d_inode
    found = d_path(path)
    if found in (b"[pipefs]", b"[sockfs]"):
        return b"%s:[%d]" % ({b"[pipefs]": b"pipe", b"[sockfs]": b"socket"}[found], inode.i_ino.value_())
    if found == b"[anon_inodefs]":
        return b"anon_inode:" + name
    if found.startswith(b"["):
        return b"/" + name + b" (deleted)"
    is_gone = not dentry.d_hash.pprev and dentry.d_parent != dentry
    return found + b" (deleted)" if is_gone else found


def physical_of(mm: drgn.Object, vaddr: int) -> int | None:
    try:
        return int(follow_phys(mm, vaddr))
    except (drgn.FaultError, NotImplementedError):
        return None


def frames(prog: drgn.Program, chance: random.Random, count: int, free: list[int]) -> list[int]:
    """Some at random, and some that begin a free block."""
    ranges = [(start, end) for start, end, _ in for_each_valid_page_range(prog)]
    weights = [end - start for start, end in ranges]
    chosen = chance.choices(ranges, weights, k=count)
    return sorted(
        {chance.randrange(start, end) for start, end in chosen} | set(free[:: max(len(free) // 10, 1)])
    )


def page(prog: drgn.Program, pfn: int, judge: Judge, free: int | None) -> dict[str, Any] | None:
    """None where the struct page itself is not in the core."""
    found = pfn_to_page(prog, pfn)
    try:
        flags, names = page_flags(found).value_(), decode_page_flags(found)
        head = compound_head(found)
        kind, about = use(judge, found, head, free)
        return {
            "pfn": pfn,
            "vaddr": found.value_(),
            "flags": flags,
            "names": [name[3:] for name in names.split("|") if name.startswith("PG_")],
            "nr_flags": bin(flags & (1 << prog["__NR_PAGEFLAGS"].value_()) - 1).count("1"),
            "refcount": found._refcount.counter.value_(),
            "mapcount": found._mapcount.counter.value_(),
            "index": page_index(found).value_(),
            "private": found.private.value_(),
            "head": head.value_(),
            "kind": kind,
            "about": about,
        }
    except drgn.FaultError:
        return None


def use(judge: Judge, found: drgn.Object, head: drgn.Object, free: int | None) -> tuple[str, str]:
    """What a page is used for, and something that has to be said of it."""
    if free is not None:
        return "free", f"block of {free} pages"
    if judge.is_type(found, "PGTY_offline", "offline"):
        return "offline", ""
    if has(head.prog_, "PGTY_hugetlb") and judge.is_hugetlb(head):
        return "hugetlb", ""
    if PageSlab(head):
        slab = drgn.cast("struct slab *", head) if has_type(head.prog_, "struct slab") else head
        return "slab", slab.slab_cache.name.string_().decode()
    mapping = head.mapping.value_()
    if mapping & 3 == 3:
        return "ksm", f"stable node {mapping & ~3:#x}" if mapping & ~3 else ""
    if mapping & 1:
        return "anon", f"anon_vma {mapping & ~3:#x}"
    if mapping & 2:
        return ("movable" if has(head.prog_, "PG_isolated") else ""), ""
    return ("file", f"number {head.mapping.host.i_ino.value_()}") if mapping else ("", "")


def has_type(prog: drgn.Program, name: str) -> bool:
    try:
        return prog.type(name) is not None
    except LookupError:
        return False


if __name__ == "__main__":
    main()
