"""A process in memory: files under names, memory areas, mounts; and pages, in the forms that kernels had."""

from __future__ import annotations

from dataclasses import dataclass

from tests.builders.structures import Memory, make_maple

SHARED, EXEC, WRITE, READ, MAYSHARE = 8, 4, 2, 1, 0x80
FORMS = ("maple", "list", "2.6.32")
"""Since v6.1; before; and before v3.3, when a mount was a vfsmount."""


REG, DIR, CHR, FIFO, SOCK = 0o100644, 0o40755, 0o20600, 0o10600, 0o140777


@dataclass
class Names:
    """Mounts and dentries under construction."""

    memory: Memory
    form: str

    def __post_init__(self) -> None:
        put = self.memory.struct
        put("path", "mnt", "dentry")
        put("dentry", "d_hash", "pprev", "d_parent", "d_name", "len", "name", "_", "d_inode", "d_op")
        put("hlist_bl_node", "next", "pprev")
        put("dentry_operations", "d_hash", "d_dname")
        put("inode", "i_mode", "i_sb", "i_ino", "i_private")
        put("ns_common", "stashed", "ops", "inum")
        put("proc_ns_operations", "name", "real_ns_name")
        put("super_block", "s_dev", "s_type")
        put("file_system_type", "name")
        self.memory.keys |= {"OFFSET(qstr.len)": 4, "OFFSET(qstr.name)": 8}
        if self.form == "2.6.32":
            put("vfsmount", "mnt_parent", "mnt_mountpoint", "mnt_root")
        else:
            put("vfsmount", "mnt_root", "mnt_sb")
            put("mount", "mnt_parent", "mnt_mountpoint", "mnt", "in_mnt")

    def dentry(self, name: bytes, parent: int = 0, inode: int = 0, *, is_hashed: bool = True) -> int:
        """Without ``parent`` the root of a file system, which is its own parent."""
        memory = self.memory
        at = memory.make("dentry", d_inode=inode, pprev=memory.take(8) if is_hashed else 0)
        memory.put(at + memory.offset("dentry.d_parent"), parent or at)  # type: ignore[operator]
        qstr = at + memory.offset("dentry.d_name")  # type: ignore[operator]
        memory.put(qstr + 4, len(name), 4)
        memory.put(qstr + 8, memory.text(name))
        return at

    def inode(self, mode: int, number: int = 0, kind: bytes = b"ext4") -> int:
        """On a file system of that kind."""
        memory = self.memory
        of_kind = memory.make("file_system_type", name=memory.text(kind))
        at = memory.make("inode", i_ino=number, i_sb=memory.make("super_block", s_type=of_kind))
        memory.put(at, mode, 2)
        return at

    def namespace(self, name: bytes, number: int) -> int:
        """Its file: a root without a name, as d_make_root() and d_alloc_anon() make it."""
        memory = self.memory
        inode = self.inode(REG, number, b"nsfs")
        operations = memory.make("proc_ns_operations", name=memory.text(name))
        common = memory.make("ns_common", ops=operations)
        memory.put(inode + memory.keys["OFFSET(inode.i_private)"], common)
        return self.special(self.dentry(b"/", inode=inode))

    def mount(self, root: int, at: tuple[int, int] | None = None) -> int:
        """The vfsmount; ``at`` is where it hangs: a vfsmount and a dentry."""
        memory = self.memory
        name = "vfsmount" if self.form == "2.6.32" else "mount"
        made = memory.take(memory.keys[f"SIZE({name})"] + memory.keys["SIZE(vfsmount)"])
        mnt = made if self.form == "2.6.32" else made + memory.keys["OFFSET(mount.mnt)"]
        inside = mnt - made
        parent = made if at is None else at[0] - inside
        memory.put(made + memory.keys[f"OFFSET({name}.mnt_parent)"], parent)
        memory.put(made + memory.keys[f"OFFSET({name}.mnt_mountpoint)"], root if at is None else at[1])
        memory.put(mnt + memory.keys["OFFSET(vfsmount.mnt_root)"], root)
        return mnt

    def special(self, dentry: int) -> int:
        """The same dentry, which now names itself."""
        operations = self.memory.make("dentry_operations", d_dname=0x1000)
        self.memory.put(dentry + self.memory.keys["OFFSET(dentry.d_op)"], operations)
        return dentry


class Process:
    """A task with its root at ``root``."""

    def __init__(self, names: Names, root: tuple[int, int]) -> None:
        memory = self.memory = names.memory
        self.names = names
        memory.struct("task_struct", "fs", "files", "mm", "pid", "tgid", "comm", *(f"_{n}" for n in range(4)))
        memory.struct("fs_struct", "users", "root", "dentry")
        memory.struct("files_struct", "count", "fdt")
        memory.struct("fdtable", "max_fds", "fd")
        members = ("f_mode", "f_path", "dentry", "f_inode")
        memory.struct("file", *(members if names.form != "2.6.32" else members[:3]))
        fs = memory.make("fs_struct")
        self.put_path(fs + memory.keys["OFFSET(fs_struct.root)"], root)
        self.task = memory.make("task_struct", fs=fs)

    def put_path(self, at: int, place: tuple[int, int]) -> None:
        self.memory.put(at, place[0])
        self.memory.put(at + self.memory.word, place[1])

    def file(self, place: tuple[int, int], inode: int) -> int:
        memory = self.memory
        at = memory.make("file")
        self.put_path(at + memory.keys["OFFSET(file.f_path)"], place)
        if self.names.form == "2.6.32":
            memory.put(place[1] + memory.keys["OFFSET(dentry.d_inode)"], inode)
        else:
            memory.put(at + memory.keys["OFFSET(file.f_inode)"], inode)
        return at

    def open(self, files: dict[int, int], max_fds: int = 64) -> None:
        memory = self.memory
        array = memory.take(memory.word * max_fds)
        for fd, file in files.items():
            memory.put(array + fd * memory.word, file)
        table = memory.make("fdtable", fd=array)
        memory.put(table, max_fds, 4)
        memory.put(
            self.task + memory.keys["OFFSET(task_struct.files)"], memory.make("files_struct", fdt=table)
        )

    def map(self, areas: list[dict[str, int]], **mm: int) -> list[int]:
        """Areas by the members of their vm_area_struct; returns their addresses."""
        memory = self.memory
        members = ("vm_start", "vm_end", "vm_flags", "vm_pgoff", "vm_file", "vm_ops", "vm_private_data")
        is_maple = self.names.form == "maple"
        memory.struct("vm_area_struct", *members, *(("anon_name",) if is_maple else ("vm_next",)))
        first = "mm_mt" if is_maple else "mmap"
        memory.struct("mm_struct", first, "_1", "_2", "start_brk", "brk", "start_stack", "pgd")
        if is_maple:
            memory.keys["OFFSET(vm_area_struct.shared)"] = 4096
            memory.keys["OFFSET(anon_vma_name.name)"] = 4
        made = [memory.make("vm_area_struct", **area) for area in areas]
        if is_maple:
            spans = [(area["vm_start"], area["vm_end"] - 1, at) for area, at in zip(areas, made, strict=True)]
            tree = make_maple(memory, spans, 4, 5)
            at = memory.make("mm_struct", **mm)
            memory.put(at + 8, int.from_bytes(memory.read(tree + 8, memory.word), "little"))
        else:
            for before, after in zip(made, [*made[1:], 0], strict=True):
                memory.put(before + memory.keys["OFFSET(vm_area_struct.vm_next)"], after)
            at = memory.make("mm_struct", mmap=made[0], **mm)
        memory.put(self.task + memory.keys["OFFSET(task_struct.mm)"], at)
        return made


class World:
    """``/`` with ``usr/bin/tool``, another file system at ``/usr/share``, ``data/file`` there."""

    def __init__(self, form: str, word: int) -> None:
        self.names = Names(Memory("<", word), form)
        names = self.names
        self.top = names.dentry(b"/")
        self.root = names.mount(self.top)
        self.usr = names.dentry(b"usr", self.top)
        self.bin = names.dentry(b"bin", self.usr)
        self.share = names.dentry(b"share", self.usr)
        self.inner = names.dentry(b"/")
        self.mounted = names.mount(self.inner, (self.root, self.share))
        self.data = names.dentry(b"data", self.inner)
        self.process = Process(names, (self.root, self.top))

    @property
    def memory(self) -> Memory:
        """All of it."""
        return self.names.memory


def areas(world: World) -> list[dict[str, int]]:
    file = world.process.file((world.root, world.names.dentry(b"tool", world.bin)), world.names.inode(REG))
    return [
        {"vm_start": 0x1000, "vm_end": 0x3000, "vm_flags": READ | EXEC, "vm_file": file},
        {"vm_start": 0x3000, "vm_end": 0x4000, "vm_flags": READ | WRITE, "vm_file": file, "vm_pgoff": 2},
        {"vm_start": 0x8000, "vm_end": 0xA000, "vm_flags": READ | WRITE},
        {"vm_start": 0xB000, "vm_end": 0xC000, "vm_flags": READ | WRITE | MAYSHARE},
        {"vm_start": 0x10000, "vm_end": 0x20000, "vm_flags": WRITE},
    ]


def make_process(form: str) -> Memory:
    """A process that uses all of it, as ``init_task``."""
    world = World(form, 8)
    names, process = world.names, world.process
    kinds = {b"pipefs": FIFO, b"sockfs": SOCK, b"anon_inodefs": 0, b"nsfs": REG, b"tmpfs": REG}
    inodes = [names.inode(mode, 7, kind) for kind, mode in kinds.items()]
    dentries = [names.special(names.dentry(b"x", inode=inode)) for inode in inodes]
    files = [
        process.file((world.root, dentry), inode) for dentry, inode in zip(dentries, inodes, strict=True)
    ]
    files.append(process.file((world.mounted, names.dentry(b"file", world.data)), names.inode(REG)))
    process.open(dict(enumerate(files)))
    process.map(areas(world), start_brk=0x8000, brk=0x9000)
    world.memory.keys["SYMBOL(init_task)"] = process.task
    return world.memory
