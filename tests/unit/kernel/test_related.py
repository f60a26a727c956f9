"""Variables that others lead to: found where everything agrees, not found where one thing does not."""

from __future__ import annotations

from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.related import Related
from kdump_elftool.kernel.words import Words
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

IMAGE = 1 << 20
"""What lies above is not the image."""
OFFSETS: dict[str, object] = {
    "OFFSET_kmem_cache__list": 0x60,
    "OFFSET_kmem_cache__kobj.entry": 0x78,
    "OFFSET_kmem_cache__kobj.entry.prev": 0x80,
    "OFFSET_task_group__list": 0x10,
    "OFFSET_task_group__siblings": 0x20,
    "OFFSET_task_group__siblings.prev": 0x28,
    "OFFSET_clocksource__list": 0x20,
    "OFFSET_clocksource__name": 0x10,
    "OFFSET_clocksource__read": 0,
    "OFFSET_resource__start": 0,
    "OFFSET_resource__name": 0x10,
    "OFFSET_resource__parent": 0x28,
    "OFFSET_resource__sibling": 0x30,
    "OFFSET_resource__child": 0x38,
    "OFFSET_memblock__memory.name": 0x30,
    "OFFSET_memblock__memory.cnt": 0x10,
    "OFFSET_memblock__memory.max": 0x18,
    "OFFSET_memblock__reserved.name": 0x58,
    "OFFSET_memblock__reserved.cnt": 0x38,
    "OFFSET_memblock__reserved.max": 0x40,
    "OFFSET_ctl_table__procname": 0,
    "OFFSET_ctl_table__data": 8,
    "OFFSET_ctl_table__maxlen": 16,
}
SYMBOLS: dict[str, object] = {
    "SYMBOL_names_cachep": BASE + 0x100,
    "SYMBOL_root_task_group": BASE + 0x3000,
    "SYMBOL_curr_clocksource": BASE + 0x108,
    "SYMBOL_iomem_resource": BASE + 0x5000,
    "SYMBOL_linux_banner": BASE + 0x6000,
}


def find(space: KernelSpace, name: str, **keys: object) -> int | None:
    known = Knowledge((info_of(**{**OFFSETS, **SYMBOLS, **keys}),))
    fact = Related(Words(space.virtual()), known, (BASE, BASE + IMAGE)).find("SYMBOL", name)
    return None if fact is None else int(fact.value) - BASE


def ring(space: KernelSpace, *nodes: int) -> None:
    """A list of these nodes, offsets."""
    for at, node in enumerate(nodes):
        space.put(node, "QQ", BASE + nodes[(at + 1) % len(nodes)], BASE + nodes[at - 1])


CACHES = (0x200000, 0x201000, 0x202000)


def caches(head: int = 0x400) -> KernelSpace:
    space = KernelSpace()
    space.put(0x100, "Q", BASE + CACHES[1])
    ring(space, head, *(cache + 0x60 for cache in CACHES))
    ring(space, *(cache + 0x78 for cache in CACHES), 0x300000)
    return space


def test_the_head_is_the_node_in_the_image() -> None:
    assert find(caches(), "slab_caches") == 0x400


def test_a_head_outside_of_the_image_is_none() -> None:
    assert find(caches(IMAGE + 0x400), "slab_caches") is None


def test_a_second_node_in_the_image() -> None:
    space = caches()
    ring(space, 0x400, 0x800, *(cache + 0x60 for cache in CACHES))
    assert find(space, "slab_caches") is None


def test_an_element_that_its_other_list_does_not_have() -> None:
    space = caches()
    space.put(CACHES[2] + 0x80, "Q", BASE + 0x300000)
    assert find(space, "slab_caches") is None


def test_a_list_that_does_not_close() -> None:
    space = caches()
    space.put(CACHES[2] + 0x60, "Q", BASE + 0x900)
    assert find(space, "slab_caches") is None


def test_what_is_not_known() -> None:
    assert find(caches(), "slab_caches", SYMBOL_names_cachep=BASE + 0x180) is None
    assert find(caches(), "slab_caches", OFFSET_kmem_cache__list="??") is None
    assert find(caches(), "super_blocks") is None
    assert find(caches(), "jiffies") is None


def test_the_element_that_is_known_may_lie_in_the_image() -> None:
    space = KernelSpace()
    ring(space, 0x500, 0x3010, 0x200010)
    ring(space, 0x3020)
    ring(space, 0x200020, 0x300000)
    assert find(space, "task_groups") == 0x500


def clocks(*names: int) -> KernelSpace:
    space = KernelSpace()
    space.data[0x700:0x704] = b"pit\0"
    space.put(0x108, "Q", BASE + 0x2000)
    ring(space, 0x600, 0x2020, 0x2120)
    for at, name in zip((0x2000, 0x2100), names, strict=True):
        space.put(at, "QQQ", BASE + 0x10000, 0, BASE + name)
    return space


def test_the_node_that_is_no_clock() -> None:
    assert find(clocks(0x700, 0x700), "clocksource_list") == 0x600
    assert find(clocks(0x700, 0x740), "clocksource_list") is None


def resources(*starts: int, name: bytes = b"Crash kernel\0") -> KernelSpace:
    """Below one of System RAM, at 0x5100; the last one is the parent's of nobody."""
    space = KernelSpace()
    space.data[0x780 : 0x780 + len(name)] = name
    space.put(0x5000, "6QQQ", 0, 0, 0, 0, 0, 0, 0, BASE + 0x5100)
    space.put(0x5100, "6QQQ", 0, 0, 0, 0, 0, BASE + 0x5000, 0, BASE + 0x5200)
    for at, start in enumerate(starts):
        here, following = 0x5200 + 0x100 * at, BASE + 0x5300 + 0x100 * at
        space.put(here, "6QQQ", start, 0, BASE + 0x780, 0, 0, BASE + 0x5100, following, 0)
    return space


def test_reserved_memory() -> None:
    both = resources(0x10000000, 0x200000000)
    assert (find(both, "crashk_res"), find(both, "crashk_low_res")) == (0x5300, 0x5200)
    one = resources(0x10000000)
    assert (find(one, "crashk_res"), find(one, "crashk_low_res")) == (0x5200, None)
    assert find(resources(1, 2, 3), "crashk_res") is None
    assert find(resources(0x10000000, name=b"Crash kernels\0"), "crashk_res") is None


def test_resources_in_a_circle_end() -> None:
    space = resources(0x10000000)
    space.put(0x5230, "Q", BASE + 0x5200)
    assert find(space, "crashk_res") == 0x5200


def memblock(used: int, second: bytes) -> KernelSpace:
    space = KernelSpace()
    space.data[0x8000:0x8007] = b"memory\0"
    space.data[0x8010 : 0x8010 + len(second)] = second
    for at in (0x9000, 0x9100):
        space.put(at + 0x30, "Q", BASE + 0x8000)
    space.put(0x9010, "QQ", used, 128)
    space.put(0x9038, "QQ", 3, 128)
    space.put(0x9058, "Q", BASE + 0x8010)
    return space


def test_memblock_has_two_names() -> None:
    assert find(memblock(5, b"reserved\0"), "memblock") == 0x9000
    assert find(memblock(5, b"preserved\0"), "memblock") is None
    assert find(memblock(129, b"reserved\0"), "memblock") is None


def test_the_banner_of_proc() -> None:
    space = KernelSpace()
    text = b"Linux version 6.1 (a@b) (gcc (D) 12, ld) #1 SMP (2026)\n\0"
    space.data[0x6000 : 0x6000 + len(text)] = text
    assert find(space, "linux_proc_banner") is None
    other = b"%s version %s (a@c) (gcc (D) 12, ld) %s\n\0"
    space.data[0x6100 : 0x6100 + len(other)] = other
    assert find(space, "linux_proc_banner") is None
    other = b"%s version %s (a@b) (gcc (D) 12, ld) %s\n\0"
    space.data[0x6200 : 0x6200 + len(other)] = other
    assert find(space, "linux_proc_banner") == 0x6200


def test_a_sysctl_by_its_name() -> None:
    space = KernelSpace()
    space.data[0x6000:0x600F] = b"\0panic_on_oops\0"
    space.put(0x7000, "QQI", BASE + 0x6001, BASE + 0x7800, 4)
    assert find(space, "panic_on_oops") == 0x7800
    space.put(0x7100, "QQI", BASE + 0x6001, BASE + 0x7900, 4)
    assert find(space, "panic_on_oops") is None
    space.put(0x7100, "QQI", BASE + 0x6001, BASE + IMAGE, 4)
    assert find(space, "panic_on_oops") == 0x7800
    space.put(0x7010, "I", 8)
    assert find(space, "panic_on_oops") is None
