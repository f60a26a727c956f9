"""addrandoff: tell gdb, in a core that exists already, how far KASLR moved the kernel.

An NT_AUXV note with the run-time address of the entry point makes gdb move a vmlinux that makedyn
has prepared.  The notes are written anew behind the file and the PT_NOTE is pointed at them; the
dump's own bytes stay as they are.
"""

from __future__ import annotations

from kdump_elftool.addr import MASK64
from kdump_elftool.elf.constants import AT_ENTRY, NT_AUXV
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.own_notes import OWNER, TYPE_UNDO, auxv_note, parse_auxv
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.rewrite import ChangedFile, append_and_switch, take_back
from kdump_elftool.elf.tail import find_remains, notes_tail, read_original
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.description import describe
from kdump_elftool.jobs.kernel import KernelRequest, architecture, check_vmlinux, named_vmlinux
from kdump_elftool.kernel.cpus import CORE


def kernel_offset(dump: Dump, request: KernelRequest) -> tuple[int, int, list[str]]:
    """How far the dump's kernel lies above its link address, its entry point there, and warnings.

    Raises IdentityError.
    """
    arch = architecture(dump)
    description = describe(dump, arch, request)
    info = description.info
    vmlinux = named_vmlinux(request, info, arch)
    linked = vmlinux.symbols.get("_stext") if vmlinux else None
    moved = info.symbol("_stext")
    warnings = list(description.warnings)
    if vmlinux is not None:
        warnings += check_vmlinux(info, vmlinux, arch, request.force)
    if moved is None:
        raise IdentityError(
            "SYMBOL(_stext)",
            "where the kernel's text lies is not known: VMCOREINFO lacks SYMBOL(_stext)",
            hint="give the line in a file with -e",
        )
    if vmlinux is None or linked is None:
        raise IdentityError(
            "_stext", "vmlinux has no symbol _stext", hint="give the vmlinux with its symbol table"
        )
    offset = (moved - linked) & MASK64
    return offset, (vmlinux.e_entry + offset) & MASK64, warnings


def add_offset(target: ChangedFile, dump: Dump, entry: int) -> bool:
    """Make ``entry`` the run-time entry point in the core's notes; False when it is so already.

    Raises OutputError, with nothing changed.
    """
    remains = find_remains(target.file)
    if remains is not None:
        take_back(target, remains)
    present = [other for other in dump.notes if _is_offset(other)]
    values = parse_auxv(dump.kind, present[0]) if present else {}
    note = auxv_note(dump.kind, {**values, AT_ENTRY: entry})
    if present == [note]:
        return False
    original = read_original(target.file)
    kept = [other for other in dump.notes if not _is_offset(other) and not _is_undo(other)]
    tail = notes_tail(original, ElfFile.read(target.file), (*kept, note))
    append_and_switch(target, original, tail)
    return True


def _is_offset(note: Note) -> bool:
    return (note.name, note.type) == (CORE, NT_AUXV)


def _is_undo(note: Note) -> bool:
    return (note.name, note.type) == (OWNER, TYPE_UNDO)
