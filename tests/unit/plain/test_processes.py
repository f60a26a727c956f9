"""Files and memory areas of a process: names across mounts, what has no name, and damage."""

from __future__ import annotations

import pytest

from kdump_elftool.errors import FaultError
from kdump_elftool.plain.files import open_files
from kdump_elftool.plain.paths import Place, path_name, root_of
from kdump_elftool.plain.vmas import process_vmas
from kdump_elftool.plain.walking import collect
from tests.builders.processes import CHR, DIR, FIFO, FORMS, READ, REG, Process, World, areas

forms = pytest.mark.parametrize("form", FORMS)
words = pytest.mark.parametrize("word", [8, 4])


def name(world: World, mnt: int, dentry: int) -> bytes:
    return path_name(world.memory, Place(mnt, dentry), root_of(world.memory, world.process.task))


@words
@forms
class TestNames:
    def test_across_mounts(self, form, word):
        world = World(form, word)
        assert name(world, world.root, world.names.dentry(b"tool", world.bin)) == b"/usr/bin/tool"
        assert name(world, world.mounted, world.names.dentry(b"file", world.data)) == b"/usr/share/data/file"
        assert name(world, world.root, world.top) == b"/"
        assert name(world, world.mounted, world.inner) == b"/usr/share"

    def test_from_a_root_of_its_own(self, form, word):
        world = World(form, word)
        world.process = Process(world.names, (world.root, world.usr))
        assert name(world, world.mounted, world.names.dentry(b"file", world.data)) == b"/share/data/file"

    def test_deleted(self, form, word):
        world = World(form, word)
        gone = world.names.dentry(b"gone", world.bin, is_hashed=False)
        assert name(world, world.root, gone) == b"/usr/bin/gone (deleted)"

    def test_a_circle_has_an_end(self, form, word):
        world = World(form, word)
        one = world.names.dentry(b"one", world.top)
        two = world.names.dentry(b"two", one)
        world.memory.put(one + world.memory.keys["OFFSET(dentry.d_parent)"], two)
        assert name(world, world.root, two) == b"? (a circle)"

    def test_what_is_not_there_is_a_question_mark(self, form, word):
        world = World(form, word)
        lost = world.names.dentry(b"lost", world.bin)
        qstr = world.bin + world.memory.keys["OFFSET(dentry.d_name)"]
        world.memory.put(qstr + 8, 0x1234)
        assert name(world, world.root, lost) == b"/?/lost"
        assert name(world, world.root, 0x1234) == b"?"

    def test_no_length_is_believed(self, form, word):
        world = World(form, word)
        long = world.names.dentry(b"x" * 300, world.bin)
        world.memory.put(long + world.memory.keys["OFFSET(dentry.d_name)"] + 4, 0xFFFFFFFF, 4)
        assert name(world, world.root, long) == b"/usr/bin/" + b"x" * 255

    @pytest.mark.parametrize(
        ("kind", "called", "shown"),
        [
            (b"pipefs", b"", b"pipe:[77]"),
            (b"sockfs", b"TCP", b"socket:[77]"),
            (b"anon_inodefs", b"[eventpoll]", b"anon_inode:[eventpoll]"),
            (b"nsfs", b"/", b"ns:[77]"),  # nothing tells of which kind
            (b"pidfs", b"/", b"anon_inode:[pidfd]"),
            (b"tmpfs", b"memfd:x", b"/memfd:x (deleted)"),
        ],
    )
    def test_what_is_in_no_directory(self, form, word, kind, called, shown):
        world = World(form, word)
        dentry = world.names.dentry(called, inode=world.names.inode(FIFO, 77, kind))
        assert name(world, world.root, world.names.special(dentry)) == shown

    def test_namespaces(self, form, word):
        """ns_dname() of fs/nsfs.c."""
        world = World(form, word)
        assert name(world, world.root, world.names.namespace(b"net", 4026531840)) == b"net:[4026531840]"

    @pytest.mark.parametrize("nested", [False, True])
    def test_namespaces_before_nsfs(self, form, word, nested):
        """Files of proc, by their proc_inode: with ns_ops until v3.9, with a proc_ns until v3.18."""
        world = World(form, word)
        memory = world.memory
        memory.struct("proc_inode", "pid", "ns" if nested else "ns_ops", "_", "vfs_inode")
        if nested:
            memory.keys["OFFSET(proc_inode.ns)"] -= word
            memory.struct("proc_ns", "ns", "ns_ops")
        made = memory.take(16 * word)
        inode = world.names.inode(REG, 77, b"proc")
        moved = made + 3 * word
        for at in range(0, 4 * word, word):
            memory.put(moved + at, int.from_bytes(memory.read(inode + at, word), "little"))
        memory.put(made + word, memory.make("proc_ns_operations", name=memory.text(b"uts")))
        dentry = world.names.dentry(b"", inode=moved)
        assert name(world, world.root, world.names.special(dentry)) == b"uts:[77]"

    def test_what_is_mounted_has_the_name_of_that_place(self, form, word):
        """As d_path() has it, for what ``ip netns`` mounts."""
        world = World(form, word)
        names = world.names
        space = names.namespace(b"net", 4026532000)
        mounted = names.mount(space, (world.root, names.dentry(b"blue", world.bin)))
        assert name(world, mounted, space) == b"/usr/bin/blue"
        # the same seen through the file system's own mount
        assert name(world, world.root, space) == b"net:[4026532000]"


@words
@forms
def test_open_files(form, word):
    world = World(form, word)
    process, names = world.process, world.names
    places = {0: (CHR, b"null"), 1: (REG, b"log"), 5: (DIR, b"dir"), 63: (0, b"odd")}
    inodes = {fd: names.inode(mode) for fd, (mode, _) in places.items()}
    dentries = {fd: names.dentry(name, world.bin) for fd, (_, name) in places.items()}
    files = {fd: process.file((world.root, dentries[fd]), inodes[fd]) for fd in places}
    process.open(files)
    found, why = collect(open_files(world.memory, process.task))
    assert why is None
    assert [(each.fd, each.file, each.dentry, each.inode) for each in found] == [
        (fd, files[fd], dentries[fd], inodes[fd]) for fd in places
    ]
    assert [each.kind for each in found] == ["CHR", "REG", "DIR", "-"]
    assert [each.path for each in found] == [b"/usr/bin/" + name for _, name in places.values()]


@forms
def test_a_file_that_is_not_there_costs_its_line(form):
    world = World(form, 8)
    good = world.process.file((world.root, world.bin), world.names.inode(REG))
    world.process.open({0: 0x1230, 1: good})
    first, second = open_files(world.memory, world.process.task)
    assert (first.fd, first.file, first.kind, first.path) == (0, 0x1230, "?", b"?")
    assert second.path == b"/usr/bin"


def test_a_table_that_claims_too_much():
    world = World("maple", 8)
    world.process.open({0: world.process.file((world.root, world.bin), world.names.inode(REG))})
    memory = world.memory
    files = int.from_bytes(memory.read(world.process.task + 8, 8), "little")
    table = int.from_bytes(memory.read(files + 8, 8), "little")
    memory.put(table, 0xFFFFFFFF, 4)
    found, why = collect(open_files(memory, world.process.task))
    assert len(found) <= 4096
    assert why is not None and "descriptors" in why


def test_no_files():
    world = World("maple", 8)
    assert collect(open_files(world.memory, world.process.task)) == ([], None)
    assert collect(process_vmas(world.memory, world.process.task)) == ([], None)


@words
@forms
def test_memory_areas(form, word):
    world = World(form, word)
    wanted = areas(world)
    made = world.process.map(wanted, start_brk=0x8000, brk=0x9000, start_stack=0x1F000)
    found, why = collect(process_vmas(world.memory, world.process.task))
    assert why is None
    assert [each.vma for each in found] == made
    assert [(each.start, each.end) for each in found] == [
        (each["vm_start"], each["vm_end"]) for each in wanted
    ]
    assert [each.permissions for each in found] == ["r-xp", "rw-p", "rw-p", "rw-s", "-w-p"]
    assert [each.pgoff for each in found] == [0, 2, 0, 0, 0]
    assert [each.name for each in found] == [b"/usr/bin/tool", b"/usr/bin/tool", b"[heap]", b"", b"[stack]"]


@forms
def test_memory_that_the_kernel_maps(form):
    world = World(form, 8)
    memory = world.memory
    memory.struct("vm_operations_struct", "open", "name")
    memory.struct("vm_special_mapping", "name")
    operations = memory.make("vm_operations_struct", name=0x4000)
    mapping = memory.make("vm_special_mapping", name=memory.text(b"[vdso]"))
    area = {
        "vm_start": 0x1000,
        "vm_end": 0x2000,
        "vm_flags": READ,
        "vm_ops": operations,
        "vm_private_data": mapping,
    }
    world.process.map([area])
    assert [each.name for each in process_vmas(memory, world.process.task)] == [b""]
    memory.keys["SYMBOL(special_mapping_vmops)"] = operations
    assert [each.name for each in process_vmas(memory, world.process.task)] == [b"[vdso]"]
    del memory.keys["SYMBOL(special_mapping_vmops)"]
    memory.keys["SYMBOL(special_mapping_name)"] = 0x4000
    assert [each.name for each in process_vmas(memory, world.process.task)] == [b"[vdso]"]


def test_names_that_a_process_gave():
    world = World("maple", 8)
    name = world.memory.take(64, 64)
    world.memory.put(name + 4, int.from_bytes(b"bigheap", "little"))
    wanted = areas(world)
    world.process.map([{**wanted[2], "anon_name": name}, {**wanted[0], "vm_start": 0xA000, "vm_end": 0xB000}])
    assert [each.name for each in process_vmas(world.memory, world.process.task)] == [
        b"[anon:bigheap]",
        b"/usr/bin/tool",
    ]


def test_areas_in_a_circle_have_an_end():
    world = World("list", 8)
    made = world.process.map(areas(world))
    world.memory.put(made[3] + world.memory.keys["OFFSET(vm_area_struct.vm_next)"], made[1])
    found, why = collect(process_vmas(world.memory, world.process.task))
    assert [each.vma for each in found] == made[:4]
    assert why is not None and "begins" in why


def test_an_area_that_is_not_there():
    world = World("list", 8)
    made = world.process.map(areas(world))
    world.memory.put(made[2] + world.memory.keys["OFFSET(vm_area_struct.vm_next)"], 0x1234)
    found, why = collect(process_vmas(world.memory, world.process.task))
    assert len(found) == 3
    assert why == "vaddr 0x1234: not mapped"


def test_a_task_that_is_not_there():
    world = World("maple", 8)
    with pytest.raises(FaultError):
        list(open_files(world.memory, 0x1234))
    assert root_of(world.memory, 0x1234) is None
