"""``kd-files`` and ``kd-vmas``: what a process has open, and its memory."""

from __future__ import annotations

from kdump_elftool.gdbside.arguments import Chosen
from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.target import target
from kdump_elftool.gdbside.walk_commands import show
from kdump_elftool.plain.files import OpenFile, open_files
from kdump_elftool.plain.vmas import Vma, process_vmas
from kdump_elftool.safe_text import printable

_PAGE_SHIFTS = range(12, 21)


class KdFiles(Command):
    """Show the files that a task has open.

    kd-files PID

    PID is a task's number, or the address of its task_struct.  A line a file: descriptor, struct file,
    inode, type and name as the task sees it."""

    NAME = "kd-files"

    def run(self, words: list[str]) -> None:
        """A line a file."""
        if len(words) != 1:
            raise usage(self)
        kernel = target()
        task = Chosen(kernel, words[0])
        say(f"task {task.tid} {printable(task.comm)}")
        width = 2 + 2 * kernel.word
        say(f"{'FD':>3} {'FILE':{width}} {'INODE':{width}} TYPE NAME")
        show(open_files(kernel, task.vaddr), lambda file: _file_line(file, width), "open files", total=False)


class KdVmas(Command):
    """Show the memory areas of a process.

    kd-vmas PID

    PID is a task's number, or the address of its task_struct.  A line an area: its vm_area_struct, and what
    /proc/PID/maps has of it: addresses, permissions, offset in the file, name."""

    NAME = "kd-vmas"

    def run(self, words: list[str]) -> None:
        """A line an area."""
        if len(words) != 1:
            raise usage(self)
        kernel = target()
        task = Chosen(kernel, words[0])
        say(f"task {task.tid} {printable(task.comm)}")
        shift = kernel.number("PAGE_SHIFT")
        shift = shift if shift is not None and shift in _PAGE_SHIFTS else _PAGE_SHIFTS[0]
        show(process_vmas(kernel, task.vaddr), lambda vma: _vma_line(vma, shift), "areas", total=False)


def _file_line(file: OpenFile, width: int) -> str:
    addresses = f"{file.file:#0{width}x} {file.inode:#0{width}x}"
    return f"{file.fd:3} {addresses} {file.kind:4} {printable(file.path)}"


def _vma_line(vma: Vma, page_shift: int) -> str:
    offset = vma.pgoff << page_shift if vma.file else 0
    area = f"{vma.start:08x}-{vma.end:08x} {vma.permissions} {offset:08x}"
    return f"{vma.vma:#x} {area} {printable(vma.name)}".rstrip()
