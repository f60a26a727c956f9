"""The heads of lists of modules by their content: the right ones among others that look alike."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.content import ContentSource
from kdump_elftool.kernel.facts import Fact
from tests.unit.kernel.kernelspace import BASE, ROOM, KernelSpace, info_of

OFFSETS = {
    "OFFSET_module__list": 8,
    "OFFSET_module__name": 24,
    "OFFSET_module__mkobj": 0x50,
    "OFFSET_module_kobject__mod": 0x40,
    "OFFSET_btf_module__list": 0,
    "OFFSET_btf_module__module": 0x10,
    "OFFSET_btf_module__btf": 0x18,
    "OFFSET_btf__data": 0,
}
HEAD, BTF_HEAD, TRACEPOINTS = 0x5010, 0x7000, 0x9000
FIRST, APART = 0x100000, 0x1000


def link(space: KernelSpace, *nodes: int) -> None:
    """A circular list of these offsets."""
    for index, node in enumerate(nodes):
        space.put(node, "QQ", BASE + nodes[(index + 1) % len(nodes)], BASE + nodes[index - 1])


def put_modules(space: KernelSpace, *names: bytes, head: int = HEAD) -> list[int]:
    """Modules on a list; returns their offsets."""
    places = [FIRST + number * APART for number in range(len(names))]
    link(space, head, *(place + 8 for place in places))
    for place, name in zip(places, names, strict=True):
        space.data[place + 24 : place + 24 + len(name)] = name
        space.put(place + 0x90, "Q", BASE + place)
    return places


def put_entries(space: KernelSpace, head: int, at: int, modules: list[int], content: bytes) -> None:
    """Entries that point to modules, and to an object whose data is that."""
    entries = [at + 0x40 * number for number in range(len(modules))]
    link(space, head, *entries)
    for entry, module in zip(entries, modules, strict=True):
        space.put(entry + 0x10, "QQ", BASE + module, BASE + entry + 0x20)
        space.put(entry + 0x20, "Q", BASE + at + 0x800)
    space.data[at + 0x800 : at + 0x800 + len(content)] = content


def find(space: KernelSpace, name: str, **keys: object) -> Fact | None:
    known = info_of(**{**OFFSETS, **keys})
    return ContentSource(space.virtual(), known, (BASE, BASE + ROOM), "<", 8).find("SYMBOL", name)


@pytest.mark.parametrize("names", [(b"loop",), (b"nbd", b"dm_mod", b"virtio-net"), (b"x" * 55,)])
@pytest.mark.parametrize("head", [HEAD, 8, (4 << 20) - 8, ROOM - 16])
def test_modules(names, head):
    space = KernelSpace()
    put_modules(space, *names, head=head)
    assert find(space, "modules") == Fact("SYMBOL(modules)", BASE + head, "found by its content")


def test_entries_that_point_to_modules():
    """The list of BTF objects, not that of tracepoints."""
    space = KernelSpace()
    modules = put_modules(space, b"nbd", b"dm_mod")
    put_entries(space, TRACEPOINTS, 0x20000, modules, b"\0\0 no types")
    assert find(space, "btf_modules") is None
    put_entries(space, BTF_HEAD, 0x30000, modules, b"\x9f\xeb\1\0")
    assert find(space, "btf_modules") == Fact("SYMBOL(btf_modules)", BASE + BTF_HEAD, "found by its content")
    found = find(space, "modules")
    assert found is not None
    assert found.value == BASE + HEAD


def test_what_only_looks_like_it():
    space = KernelSpace()
    link(space, 0x5000, 0x6000, 0x7000)  # of something else
    space.put(0x8000, "QQ", BASE + 0x8000, BASE + 0x8000)  # empty
    space.put(0x9000, "QQ", BASE + ROOM, 1)
    assert find(space, "modules") is None
    (place,) = put_modules(space, b"\x1b[2J")
    assert find(space, "modules") is None, "no name of a module"
    space.data[place + 24 : place + 40] = b"harmless".ljust(16, b"\0")
    assert find(space, "modules") is not None
    space.put(place + 0x90, "Q", BASE)
    assert find(space, "modules") is None, "its object is another's"


def test_two_lists_are_none():
    """Nobody can say which; neither of them is believed."""
    space = KernelSpace()
    (place,) = put_modules(space, b"loop")
    other = FIRST + 0x8000
    space.data[other + 24 : other + 29] = b"loop2"
    space.put(other + 0x90, "Q", BASE + other)
    link(space, 0x6000, other + 8)
    assert place
    assert find(space, "modules") is None


def test_without_types():
    space = KernelSpace()
    put_modules(space, b"loop")
    known = info_of(OFFSET_module__list=8)
    assert (
        ContentSource(space.virtual(), known, (BASE, BASE + ROOM), "<", 8).find("SYMBOL", "modules") is None
    )


@pytest.mark.parametrize("name", [key for key in OFFSETS if key.startswith("OFFSET_module")])
@pytest.mark.parametrize("value", [-8, 1 << 63])
def test_offsets_that_no_struct_has(name, value):
    space = KernelSpace()
    put_modules(space, b"loop")
    assert find(space, "modules", **{name: value}) is None


@pytest.mark.parametrize("name", ["modules", "btf_modules"])
def test_a_memory_full_of_pointers(name):
    space = KernelSpace()
    space.data[:] = (BASE + 0x7000).to_bytes(8, "little") * (ROOM // 8)
    assert find(space, name) is None
