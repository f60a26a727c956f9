"""What a variable holds: the right one, and such that differ in one thing."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.proofs import Proofs
from kdump_elftool.kernel.words import Words
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

AT = 0x1000
KNOWN: dict[str, object] = {
    "OFFSET_clocksource__read": 0,
    "OFFSET_clocksource__name": 8,
    "OFFSET_clocksource__list": 16,
    "OFFSET_hstate__name": 0x40,
    "OFFSET_hstate__order": 8,
    "OFFSET_task_struct__tasks": 0x40,
    "OFFSET_task_struct__signal": 0x60,
    "OFFSET_signal_struct__nr_threads": 4,
    "SYMBOL_init_task": BASE + 0x2000,
    "SYMBOL_iomem_resource": BASE + 0x5000,
    "SIZE_resource__start": 8,
    "SIZE_resource__end": 8,
    **{
        f"OFFSET_resource__{name}": 8 * at
        for at, name in enumerate(("start", "end", "name", "parent", "sibling", "child"))
    },
}


def holds(space: KernelSpace, name: str, **keys: object) -> bool:
    proof = Proofs(Words(space.virtual()), Knowledge((info_of(**{**KNOWN, **keys}),))).of(name)
    assert proof is not None
    return proof(BASE + AT)


def test_what_has_no_proof() -> None:
    assert Proofs(Words(KernelSpace().virtual()), Knowledge(())).of("tainted_mask") is None


@pytest.mark.parametrize(
    ("text", "read", "back", "good"),
    [
        (b"arch_sys_counter\0", 1, 0x3010, True),
        (b"\x01\x02\0", 1, 0x3010, False),
        (b"arch_sys_counter\0", 0, 0x3010, False),
        (b"arch_sys_counter\0", 1, 0x3018, False),
    ],
)
def test_a_clock(text: bytes, read: int, back: int, good: bool) -> None:
    space = KernelSpace()
    space.put(AT, "Q", BASE + 0x3000)
    space.put(0x3000, "QQQQ", read, BASE + 0x3800, BASE + 0x3900, BASE + 0x3900)
    space.put(0x3900, "QQ", BASE + 0x3010, BASE + back)
    space.data[0x3800 : 0x3800 + len(text)] = text
    assert holds(space, "curr_clocksource") is good
    assert not holds(space, "curr_clocksource", OFFSET_clocksource__list="??")


@pytest.mark.parametrize(
    ("text", "order", "good"),
    [
        (b"hugepages-2048kB\0", 9, True),
        (b"hugepages-65536kB\0", 10, True),
        (b"hugepages-2048kB\0", 10, False),
        (b"hugepages-kB\0", 9, False),
        (b"hugepages-2048kB\0", 1 << 31, False),
    ],
)
def test_huge_pages(text: bytes, order: int, good: bool) -> None:
    space = KernelSpace()
    space.put(AT + 8, "I", order)
    space.data[AT + 0x40 : AT + 0x40 + len(text)] = text
    assert holds(space, "hstates") is good


def buckets(used: int) -> KernelSpace:
    space = KernelSpace()
    space.put(AT, "Q", BASE + 0x100000)
    for at in range(used):
        bucket, node = 0x100000 + 0x100 * at, 0x200000 + 0x40 * at
        space.put(bucket, "Q", BASE + node | at & 1)
        space.put(node + 8, "Q", BASE + bucket)
    return space


def test_buckets() -> None:
    assert holds(buckets(50), "dentry_hashtable")
    assert holds(buckets(50), "inode_hashtable")
    assert not holds(buckets(7), "dentry_hashtable")
    assert not holds(KernelSpace(), "dentry_hashtable")
    wrong = buckets(50)
    wrong.put(0x200000 + 0x40 * 30 + 8, "Q", BASE + 0x100000)
    assert not holds(wrong, "dentry_hashtable")
    wrong = buckets(50)
    wrong.put(AT, "Q", BASE - 0x100000)
    assert not holds(wrong, "dentry_hashtable")


@pytest.mark.parametrize(("frames", "good"), [(0x48000, True), (0x12000, True), (0x47FFF, False), (0, False)])
def test_the_end_of_ram(frames: int, good: bool) -> None:
    """In pages of 4 or 16 KB."""
    space = KernelSpace()
    space.put(AT, "Q", frames)
    space.data[0x6000:0x600B] = b"System RAM\0"
    space.put(0x5000, "6Q", 0, 0, 0, 0, 0, BASE + 0x5100)
    space.put(0x5100, "6Q", 0x40000000, 0x47FFFFFF, BASE + 0x6000, BASE + 0x5000, 0, 0)
    assert holds(space, "max_pfn") is good


@pytest.mark.parametrize(("count", "good"), [(5, True), (4, False), (6, False)])
def test_the_number_of_threads(count: int, good: bool) -> None:
    space = KernelSpace()
    space.put(AT, "i", count)
    tasks = (0x2000, 0x10000, 0x11000)
    for at, task in enumerate(tasks):
        space.put(task + 0x40, "QQ", BASE + tasks[(at + 1) % 3] + 0x40, BASE + tasks[at - 1] + 0x40)
        space.put(task + 0x60, "Q", BASE + 0x20000 + 0x100 * at)
        space.put(0x20000 + 0x100 * at + 4, "i", at + 1)
    assert holds(space, "nr_threads") is good
    space.put(0x11000 + 0x48, "Q", 0)
    assert not holds(space, "nr_threads")
