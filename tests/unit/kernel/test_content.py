"""init_task by its content: the right one among others that look alike, none among the wrong."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.content import ContentSource
from kdump_elftool.kernel.facts import Fact
from tests.unit.kernel.kernelspace import BASE, ROOM, KernelSpace, info_of

OFFSETS = {
    "OFFSET_task_struct__tasks": 0x40,
    "OFFSET_task_struct__pid": 0x60,
    "OFFSET_task_struct__tgid": 0x64,
    "OFFSET_task_struct__comm": 0x80,
}
PIECE = 4 << 20


def put_task(space: KernelSpace, at: int, pid: int, comm: bytes, following: int, preceding: int) -> None:
    space.put(at + 0x40, "QQ", BASE + following + 0x40, BASE + preceding + 0x40)
    space.put(at + 0x60, "ii", pid, pid)
    space.data[at + 0x80 : at + 0x90] = comm.ljust(16, b"\0")


def put_ring(space: KernelSpace, *tasks: tuple[int, int, bytes]) -> None:
    """Tasks (offset, pid, name) on one list."""
    for index, (at, pid, comm) in enumerate(tasks):
        put_task(space, at, pid, comm, tasks[(index + 1) % len(tasks)][0], tasks[index - 1][0])


def find(space: KernelSpace, **keys: object) -> Fact | None:
    known = info_of(**{**OFFSETS, **keys})
    return ContentSource(space.virtual(), known, (BASE, BASE + ROOM), "<", 8).find("SYMBOL", "init_task")


@pytest.mark.parametrize("at", [0x1000, PIECE - 0x88, PIECE - 0x40, ROOM - 0x1000])
@pytest.mark.parametrize("name", [b"swapper/0", b"swapper"])
def test_found_wherever_it_lies(at, name):
    space = KernelSpace()
    put_ring(space, (at, 0, name), (0x200000, 1, b"init"), (0x300000, 2, b"kthreadd"))
    assert find(space) == Fact("SYMBOL(init_task)", BASE + at, "found by its content")


def test_what_only_looks_like_it_is_passed_over():
    space = KernelSpace()
    put_task(space, 0x10000, 0, b"swapper/0", 0x10000, 0x10000)  # an idle task: on a list of its own
    put_ring(space, (0x20000, 77, b"swapper/0"), (0x21000, 78, b"x"))  # a program with that name
    put_task(space, 0x30000, 0, b"swapper/0", 0x31000, 0x31000)  # a stale copy: nobody points back
    put_task(space, 0x32000, 0, b"swapper/0", ROOM, ROOM)  # pointers out of memory
    space.data[0x38080:0x38090] = b"swapper/01".ljust(16, b"\0")
    put_ring(space, (0x40000, 0, b"swapper/0"), (0x41000, 1, b"init"))
    found = find(space)
    assert found is not None
    assert found.value == BASE + 0x40000


def test_not_found():
    space = KernelSpace()
    assert find(space) is None
    put_ring(space, (0x40000, 0, b"swapper/0"), (0x41000, 1, b"init"))
    assert find(space, OFFSET_task_struct__pid="??") is None
    assert find(space, OFFSET_task_struct__tasks=1 << 62) is None


def test_only_init_task_is_looked_for():
    space = KernelSpace()
    put_ring(space, (0x40000, 0, b"swapper/0"), (0x41000, 1, b"init"))
    source = ContentSource(space.virtual(), info_of(**OFFSETS), (BASE, BASE + ROOM), "<", 8)
    assert source.find("SYMBOL", "init_mm") is None
    assert source.find("OFFSET", "init_task") is None


def test_a_memory_full_of_the_name_ends_soon():
    space = KernelSpace()
    space.data[:] = b"swapper/0".ljust(16, b"\0") * (ROOM // 16)
    assert find(space) is None
