"""Names of files as a task sees them: from a dentry up to the task's root, across mounts.

References: fs/d_path.c (d_path, prepend_path), fs/mount.h.  ``struct mount`` is apart from ``vfsmount``
since v3.3.  Files that only the kernel names (pipes, sockets) have a ``d_dname`` and are named after their
file system: fs/nsfs.c (ns_dname), fs/pidfs.c (since v6.9).  Until v3.18 namespaces were files of proc
(fs/proc/namespaces.c).
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.target import Target, unsigned
from kdump_elftool.plain.walking import WalkError, known_offset, number, offset, pointer, string

NEEDS = (
    *("OFFSET(path.mnt)", "OFFSET(path.dentry)", "OFFSET(task_struct.fs)", "OFFSET(fs_struct.root)"),
    *("OFFSET(dentry.d_parent)", "OFFSET(dentry.d_name)", "OFFSET(qstr.name)", "OFFSET(qstr.len)"),
    *(
        "OFFSET(dentry.d_inode)",
        "OFFSET(dentry.d_op)",
        "OFFSET(dentry.d_hash)",
        "OFFSET(hlist_bl_node.pprev)",
    ),
    *("OFFSET(dentry_operations.d_dname)", "OFFSET(inode.i_sb)", "OFFSET(super_block.s_type)"),
    *("OFFSET(file_system_type.name)", "OFFSET(inode.i_ino)", "SIZE(inode.i_ino)"),
    *("OFFSET(mount.mnt)", "OFFSET(mount.mnt_parent)", "OFFSET(mount.mnt_mountpoint)"),
    *("OFFSET(vfsmount.mnt_root)", "OFFSET(vfsmount.mnt_parent)", "OFFSET(vfsmount.mnt_mountpoint)"),
    *("OFFSET(inode.i_private)", "OFFSET(ns_common.ops)", "OFFSET(proc_ns_operations.name)"),
    *("OFFSET(proc_inode.vfs_inode)", "OFFSET(proc_inode.ns_ops)", "OFFSET(proc_inode.ns)"),
    "OFFSET(proc_ns.ns_ops)",
)
_LONGEST_NAME = 255
_MOST_STEPS = 4096
_NUMBERED = {b"pipefs": b"pipe", b"sockfs": b"socket"}
_NAMESPACES = (b"nsfs", b"proc")


class Place(NamedTuple):
    """``struct path``: a vfsmount and a dentry in it."""

    mnt: int
    dentry: int


def read_place(target: Target, vaddr: int) -> Place:
    """The ``struct path`` at ``vaddr``.  Raises FaultError, IdentityError."""
    return Place(pointer(target, vaddr, "path.mnt"), pointer(target, vaddr, "path.dentry"))


def root_of(target: Target, task: int) -> Place | None:
    """Where a task's names begin; None for one that has exited, or where it cannot be read."""
    try:
        fs = pointer(target, task, "task_struct.fs")
        return read_place(target, fs + offset(target, "fs_struct.root")) if fs else None
    except FaultError:
        return None


def path_name(target: Target, place: Place, root: Place | None) -> bytes:
    """The name as in /proc/PID/maps.  What cannot be read on the way is ``?``.  Raises IdentityError."""
    try:
        special = _special(target, place)
        return special if special is not None else _climb(target, place, root)
    except FaultError:
        return b"?"
    except WalkError:
        return b"? (a circle)"


def _climb(target: Target, place: Place, root: Place | None) -> bytes:
    names: list[bytes] = []
    deleted = b" (deleted)" if _is_unlinked(target, place.dentry) else b""
    mnt, dentry = place
    for _ in range(_MOST_STEPS):
        if (mnt, dentry) == root:
            break
        try:
            parent = pointer(target, dentry, "dentry.d_parent")
            if dentry == pointer(target, mnt, "vfsmount.mnt_root") or dentry == parent:
                above = _above(target, mnt)
                if above is None:
                    break
                mnt, dentry = above
                continue
            names.append(_name(target, dentry))
        except FaultError:
            names.append(b"?")
            break
        dentry = parent
    else:
        raise WalkError("the file's name has no end")
    return b"/" + b"/".join(reversed(names)) + deleted


def _above(target: Target, mnt: int) -> Place | None:
    """Where a mount hangs; None for the topmost one."""
    inside = known_offset(target, "mount.mnt")
    if inside is None:
        parent = pointer(target, mnt, "vfsmount.mnt_parent")
        return None if parent == mnt else Place(parent, pointer(target, mnt, "vfsmount.mnt_mountpoint"))
    mount = mnt - inside
    parent = pointer(target, mount, "mount.mnt_parent")
    return None if parent == mount else Place(parent + inside, pointer(target, mount, "mount.mnt_mountpoint"))


def _name(target: Target, dentry: int) -> bytes:
    qstr = dentry + offset(target, "dentry.d_name")
    length = min(number(target, qstr, 4, "qstr.len"), _LONGEST_NAME)
    return target.read(pointer(target, qstr, "qstr.name"), length)


def _is_unlinked(target: Target, dentry: int) -> bool:
    """Taken out of the hash, and not the root of a tree."""
    pprev = offset(target, "dentry.d_hash") + (known_offset(target, "hlist_bl_node.pprev") or target.word)
    if unsigned(target, dentry + pprev, target.word):
        return False
    return pointer(target, dentry, "dentry.d_parent") != dentry


def _special(target: Target, place: Place) -> bytes | None:
    """The name of what is in no directory; None for everything else.

    What is mounted has the name of that place: ``ip netns`` mounts namespaces.
    """
    dentry = place.dentry
    operations = pointer(target, dentry, "dentry.d_op")
    if not operations or not pointer(target, operations, "dentry_operations.d_dname"):
        return None
    if _is_root_of_mount(target, place):
        return None
    inode = pointer(target, dentry, "dentry.d_inode")
    kind = file_system(target, inode)
    if kind in _NUMBERED or kind in _NAMESPACES:
        name = _NUMBERED.get(kind) or _namespace(target, inode, kind)
        return b"%s:[%d]" % (name, inode_number(target, inode))
    if kind == b"pidfs":
        return b"anon_inode:[pidfd]"
    if kind == b"anon_inodefs":
        return b"anon_inode:" + _name(target, dentry)
    return b"/" + _name(target, dentry) + b" (deleted)"


def _is_root_of_mount(target: Target, place: Place) -> bool:
    try:
        if pointer(target, place.dentry, "dentry.d_parent") != place.dentry:
            return False
        return pointer(target, place.mnt, "vfsmount.mnt_root") == place.dentry
    except FaultError:
        return False


def _namespace(target: Target, inode: int, kind: bytes) -> bytes:
    """Of which kind it is (``net``, ``mnt``); ``ns`` where nothing tells."""
    try:
        if kind == b"proc":
            ops = known_offset(target, "proc_inode.ns_ops")  # until v3.9
            if ops is None:
                ops = offset(target, "proc_inode.ns") + offset(target, "proc_ns.ns_ops")
            operations = unsigned(target, inode - offset(target, "proc_inode.vfs_inode") + ops, target.word)
        else:
            operations = pointer(target, pointer(target, inode, "inode.i_private"), "ns_common.ops")
        return string(target, pointer(target, operations, "proc_ns_operations.name"), 64) or b"ns"
    except (FaultError, IdentityError):
        return b"ns"


def file_system(target: Target, inode: int) -> bytes:
    """The name of the file system of an inode.  Raises FaultError, IdentityError."""
    kind = pointer(target, pointer(target, inode, "inode.i_sb"), "super_block.s_type")
    return string(target, pointer(target, kind, "file_system_type.name"), 64)


def inode_number(target: Target, inode: int) -> int:
    """i_ino, an unsigned long (64 bits everywhere in later kernels).  Raises FaultError, IdentityError."""
    width = target.size("inode.i_ino")
    return number(target, inode, width if width in (4, 8) else target.word, "inode.i_ino")
