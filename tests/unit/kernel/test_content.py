"""Variables by their content: the right one among others that look alike, none among the wrong."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import pytest

from kdump_elftool.addr import U64
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


def test_what_is_not_looked_for():
    space = KernelSpace()
    put_ring(space, (0x40000, 0, b"swapper/0"), (0x41000, 1, b"init"))
    source = ContentSource(space.virtual(), info_of(**OFFSETS), (BASE, BASE + ROOM), "<", 8)
    assert source.find("SYMBOL", "init_mm") is None
    assert source.find("SYMBOL", "jiffies") is None
    assert source.find("OFFSET", "init_task") is None


def test_a_memory_full_of_the_name_ends_soon():
    space = KernelSpace()
    space.data[:] = b"swapper/0".ljust(16, b"\0") * (ROOM // 16)
    assert find(space) is None


IMAGE = (BASE, BASE + ROOM // 2)
"""What lies behind is other memory of the kernel: modules."""
MORE = OFFSETS | {
    "SYMBOL__stext": BASE,
    "SYMBOL_swapper_pg_dir": BASE + 0x7000,
    "SYMBOL_special_mapping_name": BASE + 0x500,
    "OFFSET_task_struct__cred": 0x90,
    "OFFSET_task_struct__nsproxy": 0x98,
    "OFFSET_nsproxy__uts_ns": 8,
    "OFFSET_mm_struct__pgd": 0x48,
    "OFFSET_mm_struct__start_code": 0xF0,
    "OFFSET_vm_operations_struct__name": 0x30,
}
BANNER = b"Linux version 6.1.0 (builder@host) (gcc) # SMP\n\0"


def symbol(space: KernelSpace, name: str, **keys: object) -> int | None:
    source = ContentSource(space.virtual(), info_of(**{**MORE, **keys}), IMAGE, "<", 8)
    fact = source.find("SYMBOL", name)
    return None if fact is None else int(fact.value) - BASE


def test_what_init_task_uses():
    space = KernelSpace()
    put_ring(space, (0x40000, 0, b"swapper/0"), (0x41000, 1, b"init"))
    space.put(0x40090, "QQ", BASE + 0x50000, BASE + 0x51000)
    space.put(0x51008, "Q", BASE + 0x52000)
    assert symbol(space, "init_cred") == 0x50000
    assert symbol(space, "init_nsproxy") == 0x51000
    assert symbol(space, "init_uts_ns") == 0x52000
    assert symbol(space, "init_cred", OFFSET_task_struct__cred="??") is None
    space.put(0x40090, "Q", BASE + ROOM - 0x1000)  # allocated: not the kernel's own
    assert symbol(space, "init_cred") is None


def test_init_mm_has_the_table_and_the_code_of_the_kernel():
    space = KernelSpace()
    space.put(0x60048, "Q", BASE + 0x7000)
    space.put(0x600F0, "Q", 0x400000)
    assert symbol(space, "init_mm") is None
    space.put(0x61048, "Q", BASE + 0x7000)
    space.put(0x610F0, "Q", BASE)
    assert symbol(space, "init_mm") == 0x61000


def test_the_banner_with_the_number_of_the_build():
    space = KernelSpace()
    assert symbol(space, "linux_banner") is None
    space.data[0x10000 : 0x10000 + len(BANNER)] = BANNER
    assert symbol(space, "linux_banner") == 0x10000
    numbered = BANNER.replace(b"# SMP", b"#1 SMP")
    space.data[0x200000 : 0x200000 + len(numbered)] = numbered
    assert symbol(space, "linux_banner") == 0x200000
    at_rest = ContentSource(space.virtual(), info_of(**MORE), IMAGE, "<", 8, at_rest=True)
    assert at_rest.find("SYMBOL", "linux_banner") is None, "image_content takes one or none"


def test_states_of_tasks_by_their_texts():
    space = KernelSpace()
    space.data[0x20000:0x2000D] = space.data[0x20100:0x2010D] = b"R (running)\0\0"
    space.data[0x20040:0x2004D] = b"S (sleeping)\0"
    space.put(0x30000, "QQ", BASE + 0x20000, BASE + 0x20000)
    assert symbol(space, "task_state_array") is None
    space.put(0x31000, "QQ", BASE + 0x20100, BASE + 0x20040)
    assert symbol(space, "task_state_array") == 0x31000


def test_the_mapping_of_the_kernel():
    space = KernelSpace()
    assert symbol(space, "special_mapping_vmops") is None
    space.put(0x20030, "Q", BASE + 0x500)
    assert symbol(space, "special_mapping_vmops") == 0x20000


@pytest.mark.parametrize("name", ["task_state_array", "linux_banner"])
def test_a_memory_full_of_pointers_ends_soon(name: str):
    space = KernelSpace()
    space.data[:] = (BASE + 0x7000).to_bytes(8, "little") * (ROOM // 8)
    assert symbol(space, name) is None


def test_texts_of_states_all_over_memory():
    """The image is gone through once for all of them, not once for each."""
    space = KernelSpace()
    text = b"R (running)\0".ljust(16, b"\0")
    space.data[: ROOM // 4] = text * (ROOM // 4 // 16)
    space.data[0x300000:0x30000D] = b"S (sleeping)\0"
    space.put(0x310000, "QQ", BASE + 16 * 900, BASE + 0x300000)
    assert symbol(space, "task_state_array") == 0x310000
    source = Counting(space.virtual(), info_of(**MORE), IMAGE, "<", 8)
    assert source.find("SYMBOL", "task_state_array") is not None
    assert source.passes == [1]


class Counting(ContentSource):
    """Counts how often the words of the image are read."""

    @cached_property
    def passes(self) -> list[int]:
        return [0]

    def _words(self) -> Iterator[tuple[U64, U64]]:
        self.passes[0] += 1
        return super()._words()
