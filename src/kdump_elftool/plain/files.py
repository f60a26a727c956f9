"""The open files of a task, from its table of descriptors (include/linux/fdtable.h).

The table is an array of pointers; what is said of its length is not believed beyond the kernel's own limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import FaultError
from kdump_elftool.plain import paths
from kdump_elftool.plain.paths import Place, path_name, read_place, root_of
from kdump_elftool.plain.target import Target, read_pieces
from kdump_elftool.plain.walking import known_offset, number, offset, pointer, words

NEEDS = (
    *paths.NEEDS,
    *(
        "OFFSET(task_struct.files)",
        "OFFSET(files_struct.fdt)",
        "OFFSET(fdtable.max_fds)",
        "OFFSET(fdtable.fd)",
    ),
    *("OFFSET(file.f_path)", "OFFSET(file.f_inode)", "OFFSET(inode.i_mode)"),
)
_MOST_FILES = 1 << 20
"""sysctl_nr_open; who raises it is shown this many."""
_AT_ONCE = 1 << 12
_TYPES = {
    0o140000: "SOCK",
    0o120000: "LNK",
    0o100000: "REG",
    0o060000: "BLK",
    0o040000: "DIR",
    0o020000: "CHR",
    0o010000: "FIFO",
}


class OpenFile(NamedTuple):
    """``inode`` and ``kind`` are 0 and ``?`` where they cannot be read."""

    fd: int
    file: int
    dentry: int
    inode: int
    kind: str
    path: bytes


def open_files(target: Target, task: int) -> Iterator[OpenFile]:
    """By descriptor.  Raises FaultError, IdentityError; a file that cannot be read has a name of ``?``."""
    files = pointer(target, task, "task_struct.files")
    if not files:
        return
    root = root_of(target, task)
    for fd, file in _descriptors(target, files):
        yield read_file(target, fd, file, root)


def _descriptors(target: Target, files: int) -> Iterator[tuple[int, int]]:
    table = pointer(target, files, "files_struct.fdt")
    count = min(number(target, table, 4, "fdtable.max_fds"), _MOST_FILES)
    array = pointer(target, table, "fdtable.fd")
    for first in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - first) * target.word
        pieces = read_pieces(target, array + first * target.word, size)
        if pieces.nothing:
            raise FaultError("vaddr", array + first * target.word, "the table of descriptors is not there")
        for at, file in enumerate(words(target, pieces.data)):
            if file:
                yield first + at, file


def read_file(target: Target, fd: int, file: int, root: Place | None) -> OpenFile:
    """One file.  Raises IdentityError."""
    dentry, inode, kind, path = 0, 0, "?", b"?"
    try:
        place = read_place(target, file + offset(target, "file.f_path"))
        dentry = place.dentry
        path = path_name(target, place, root)
        inode = _inode(target, file, dentry)
        kind = _kind(number(target, inode, 2, "inode.i_mode"))
    except FaultError:
        pass
    return OpenFile(fd, file, dentry, inode, kind, path)


def _inode(target: Target, file: int, dentry: int) -> int:
    """The file's own since v3.9."""
    if known_offset(target, "file.f_inode") is not None:
        return pointer(target, file, "file.f_inode")
    return pointer(target, dentry, "dentry.d_inode")


def _kind(mode: int) -> str:
    """Anonymous inodes have no type."""
    return _TYPES.get(mode & 0o170000, "-")
