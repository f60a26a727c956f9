"""The memory areas of a process, as in /proc/PID/maps (fs/proc/task_mmu.c).

They are in a maple tree since v6.1, in a list before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain import maple, paths
from kdump_elftool.plain.maple import maple_entries
from kdump_elftool.plain.paths import Place, path_name, read_place, root_of
from kdump_elftool.plain.target import Target
from kdump_elftool.plain.walking import WalkError, known_offset, offset, pointer, string

NEEDS = (
    *maple.NEEDS,
    *paths.NEEDS,
    *("OFFSET(task_struct.mm)", "OFFSET(mm_struct.mm_mt)", "OFFSET(mm_struct.mmap)", "OFFSET(mm_struct.pgd)"),
    *(
        f"OFFSET(vm_area_struct.{member})"
        for member in (
            *("vm_start", "vm_end", "vm_next", "vm_flags", "vm_pgoff", "vm_file", "vm_ops"),
            *("vm_private_data", "anon_name", "shared"),
        )
    ),
    *("OFFSET(file.f_path)", "OFFSET(vm_operations_struct.name)", "OFFSET(vm_special_mapping.name)"),
    *("OFFSET(mm_struct.start_brk)", "OFFSET(mm_struct.brk)", "OFFSET(mm_struct.start_stack)"),
    *("OFFSET(mm_struct.context.vdso)", "OFFSET(anon_vma_name.name)"),
    *("SYMBOL(special_mapping_name)", "SYMBOL(special_mapping_vmops)"),
)
MOST_VMAS = 1 << 20
_READ, _WRITE, _EXEC, _MAYSHARE = 1, 2, 4, 0x80


class Vma(NamedTuple):
    """An area; ``flags`` as the kernel has them, ``pgoff`` in pages, ``name`` empty for plain memory."""

    vma: int
    start: int
    end: int
    flags: int
    pgoff: int
    file: int
    name: bytes

    @property
    def permissions(self) -> str:
        """``rwxp`` or ``s``."""
        letters = ((_READ, "r"), (_WRITE, "w"), (_EXEC, "x"))
        shared = "s" if self.flags & _MAYSHARE else "p"
        return "".join(letter if self.flags & bit else "-" for bit, letter in letters) + shared


class _Process(NamedTuple):
    mm: int
    root: Place | None
    brk: tuple[int, int]
    stack: int
    vdso: int


def process_vmas(target: Target, task: int) -> Iterator[Vma]:
    """The areas of a task in order; none for a kernel thread.

    Raises FaultError, IdentityError, WalkError.
    """
    mm = pointer(target, task, "task_struct.mm")
    if not mm:
        return
    brk = pointer(target, mm, "mm_struct.start_brk"), pointer(target, mm, "mm_struct.brk")
    stack = pointer(target, mm, "mm_struct.start_stack")
    has_vdso = known_offset(target, "mm_struct.context.vdso") is not None
    vdso = pointer(target, mm, "mm_struct.context.vdso") if has_vdso else 0
    process = _Process(mm, root_of(target, task), brk, stack, vdso)
    reached = 0
    for vma in _areas(target, mm):
        found = _read(target, vma, process)
        if not reached <= found.start < found.end:
            raise WalkError(f"the area at {vma:#x} begins or ends where it cannot")
        yield found
        reached = found.end


def page_table(target: Target, task: int) -> int:
    """Virtual address of the top table of a task's memory.  Raises FaultError, IdentityError, WalkError."""
    mm = pointer(target, task, "task_struct.mm")
    if not mm:
        raise WalkError("a kernel thread has no memory of its own")
    return pointer(target, mm, "mm_struct.pgd")


def _areas(target: Target, mm: int) -> Iterator[int]:
    tree = known_offset(target, "mm_struct.mm_mt")
    if tree is not None:
        for span in maple_entries(target, mm + tree, MOST_VMAS):
            yield span.entry
        return
    vma = pointer(target, mm, "mm_struct.mmap")
    for _ in range(MOST_VMAS):
        if not vma:
            return
        yield vma  # a circle ends with an area that begins too low
        vma = pointer(target, vma, "vm_area_struct.vm_next")


def _read(target: Target, vma: int, process: _Process) -> Vma:
    """Raises FaultError where the area itself is not there."""
    start, end, flags, pgoff, file = (
        pointer(target, vma, f"vm_area_struct.{name}")
        for name in ("vm_start", "vm_end", "vm_flags", "vm_pgoff", "vm_file")
    )
    try:
        name = _name(target, vma, start, end, file, process)
    except FaultError:
        name = b"?"
    return Vma(vma, start, end, flags, pgoff, file, name)


def _name(target: Target, vma: int, start: int, end: int, file: int, process: _Process) -> bytes:
    if file:
        given = b"" if _shares_name(target) else _given(target, vma)
        if given:
            return b"[anon_shmem:" + given + b"]"
        return path_name(target, read_place(target, file + offset(target, "file.f_path")), process.root)
    special = _special(target, vma)
    if special is not None:
        return special
    if process.vdso and start == process.vdso:
        return b"[vdso]"
    if start <= process.brk[1] and end >= process.brk[0] and all(process.brk):
        return b"[heap]"
    if start <= process.stack <= end and process.stack:
        return b"[stack]"
    given = _given(target, vma)
    return b"[anon:" + given + b"]" if given else b""


def _shares_name(target: Target) -> bool:
    """Until v6.1 the place of the name held something else in areas of files."""
    places = (known_offset(target, f"vm_area_struct.{member}") for member in ("anon_name", "shared"))
    return len(set(places)) == 1


def _given(target: Target, vma: int) -> bytes:
    """What prctl(PR_SET_VMA_ANON_NAME) said (v5.17 on)."""
    if known_offset(target, "vm_area_struct.anon_name") is None:
        return b""
    name = pointer(target, vma, "vm_area_struct.anon_name")
    return string(target, name + offset(target, "anon_vma_name.name"), 80) if name else b""


def _special(target: Target, vma: int) -> bytes | None:
    """Of an area that the kernel maps by itself; recognised by its operations."""
    operations = pointer(target, vma, "vm_area_struct.vm_ops")
    if not operations or known_offset(target, "vm_special_mapping.name") is None:
        return None
    known = target.symbol("special_mapping_vmops")
    if known is None or operations != known:
        function = target.symbol("special_mapping_name")
        if function is None or known_offset(target, "vm_operations_struct.name") is None:
            return None
        if pointer(target, operations, "vm_operations_struct.name") != function:
            return None
    mapping = pointer(target, vma, "vm_area_struct.vm_private_data")
    return string(target, pointer(target, mapping, "vm_special_mapping.name"), 64)
