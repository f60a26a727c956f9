"""Every form of the kernel's symbol table: named or found by shape, whole or damaged."""

from __future__ import annotations

import tracemalloc
from functools import cache
from random import Random

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel.kallsyms import Kallsyms, Tables, decode
from kdump_elftool.kernel.kallsyms_tables import open_kallsyms
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory
from tests.builders.kallsyms import FORMS, Form, Image, Symbol, build

SEED = 20261123
HOLE = 0x3000
forms = pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])


class Store:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]


def text_base(form: Form) -> int:
    return 0xFFFFFFFF81000000 if form.word == 8 else 0xC0008000


def symbols_of(form: Form, count: int = 1500) -> list[Symbol]:
    """Symbols in the order of their addresses, per-CPU ones first where the form has such."""
    random = Random(SEED)
    listed: list[Symbol] = []
    if form.values in ("absolute percpu", "addresses") and form.word == 8:
        listed += [(0, "A", "fixed_percpu_data"), (0x31980, "A", "runqueues")]
    address = text_base(form)
    listed.append((address, "T", "_stext"))
    for number in range(count):
        address += random.choice((0, 16, 64, 4096))
        stem = random.choice(("sys_", "__ksymtab_", "page_lock", "sched", "x", "init_read.cold"))
        long = "y" * random.choice((0, 0, 0, 150 if form.big else 100))
        listed.append((address, random.choice("TtDdRrB"), f"{stem}{number}{long}"))
    listed.append((address + 64, "D", "init_task"))
    return listed


def memory_of(image: Image, form: Form) -> tuple[VirtualMemory, tuple[int, int]]:
    """The tables somewhere in an image that holds other things, too."""
    random = Random(SEED)
    before = random.randbytes(HOLE) + b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00"
    low = (image.vaddr & ~0xFFF) - 0x10000
    before = before.ljust(image.vaddr - low, b"\0")
    data = before + image.data + random.randbytes(0x5000)
    data = data.ljust(-(-len(data) // 4096) * 4096, b"\0")
    extents = normalise(u64([0]), u64([len(data)]), u64([0]))
    physical = PhysicalMemory(Store(data), extents, extents.ranges())
    return VirtualMemory.of(physical, u64([low]), u64([0]), u64([len(data)])), (low, low + len(data))


def info(form: Form, image: Image | None = None) -> VmcoreInfo:
    """VMCOREINFO of that kernel: from v6.0 on it says where the tables are."""
    lines = [f"SYMBOL(_stext)={text_base(form):x}"]
    if image is not None:
        called = {"values": "addresses" if form.values == "addresses" else "offsets"}
        lines += [f"SYMBOL(kallsyms_{called.get(name, name)})={vaddr:x}" for name, vaddr in image.at.items()]
    return parse("\n".join(lines).encode())


def opened(form: Form, image: Image, *, named: bool) -> Kallsyms | None:
    memory, window = memory_of(image, form)
    return open_kallsyms(memory, info(form, image if named else None), window, form.order, form.word)


@cache
def image_of(form: Form) -> tuple[list[Symbol], Image]:
    symbols = symbols_of(form)
    vaddr = text_base(form) + 0x800000 + form.align * 5
    return symbols, build(symbols, form, vaddr, text_base(form))


@forms
@pytest.mark.parametrize("named", [True, False], ids=["named", "by shape"])
def test_every_symbol_in_every_form(form, named):
    symbols, image = image_of(form)
    found = opened(form, image, named=named)
    assert found is not None
    assert len(found) == len(symbols)
    rows = [(int(found.address[row]), chr(found.kind[row]), found.name(row)) for row in range(len(found))]
    assert rows == symbols


@forms
def test_look_ups(form):
    symbols, image = image_of(form)
    found = opened(form, image, named=True)
    assert found is not None
    by_name = {name: address for address, _, name in symbols}
    for name in ("_stext", "init_task", symbols[700][2], symbols[-1][2]):
        fact = found.find("SYMBOL", name)
        assert fact is not None
        assert fact.value == by_name[name]
        assert fact.source == "kallsyms in the dump"
    assert found.symbol("no_such_symbol") is None
    assert found.symbol("") is None
    assert found.find("OFFSET", "_stext") is None


def test_equal_names_give_the_first():
    form = FORMS[3]
    symbols = [
        (text_base(form), "T", "_stext"),
        (text_base(form) + 8, "t", "show"),
        (text_base(form) + 16, "t", "show"),
    ]
    found = opened(form, build(symbols, form, text_base(form) + 0x1000, text_base(form)), named=True)
    assert found is not None
    assert found.symbol("show") == text_base(form) + 8
    assert found.rows("show").tolist() == [1, 2]


@forms
def test_a_table_that_contradicts_a_known_address_is_refused(form):
    symbols, _ = image_of(form)
    moved = [(address + 16 if name == "_stext" else address, kind, name) for address, kind, name in symbols]
    image = build(moved, form, text_base(form) + 0x800000, text_base(form))
    assert opened(form, image, named=True) is None
    assert opened(form, image, named=False) is None


@pytest.mark.parametrize("form", FORMS[2:8:2], ids=[form.name for form in FORMS[2:8:2]])
def test_damage_never_does_harm(form):
    """Bytes changed anywhere: the table is refused or decodes; nothing is raised, nothing grows."""
    random = Random(SEED)
    _, image = image_of(form)
    refused = 0
    for _ in range(60):
        data = bytearray(image.data)
        name = random.choice(list(image.at))
        at = image.at[name] - image.vaddr
        for _ in range(random.choice((1, 4, 64))):
            data[min(at + random.randrange(600), len(data) - 1)] = random.choice(
                (0, 0xFF, random.randrange(256))
            )
        found = opened(form, Image(image.vaddr, bytes(data), image.at), named=True)
        if found is None:
            refused += 1
            continue
        assert len(found.address) == len(found.begin) == len(found.end) == len(found.kind)
        assert int(found.end.max(initial=0)) <= len(found.text)
        assert np.all(found.begin <= found.end)
    assert 0 < refused < 60


@forms
def test_one_damaged_part_costs_its_own_names(form):
    """256 symbols from one marker to the next; the addresses of all the others are theirs."""
    symbols, image = image_of(form)
    whole = opened(form, image, named=False)
    assert whole.damage == ()
    data = bytearray(image.data)
    # the first symbol there has another length
    size = form.marker_size
    markers = image.at["markers"] - image.vaddr
    order = "little" if form.order == "<" else "big"
    fourth = int.from_bytes(data[markers + 4 * size : markers + 5 * size], order)
    data[image.at["names"] - image.vaddr + fourth] ^= 0x7F
    found = opened(form, Image(image.vaddr, bytes(data), image.at), named=False)
    assert found.damage == ("256 symbols stand in parts that make no sense",)
    lost = range(4 * 256, 5 * 256)
    assert found.address.tolist() == whole.address.tolist()
    for row in range(len(symbols)):
        assert found.name(row) == ("" if row in lost else whole.name(row)), row


def test_absurd_counts_are_refused():
    form = FORMS[3]
    _, image = image_of(form)
    for count in (0, 0xFFFFFFFF, 4 << 20, 1501 + 256):
        data = bytearray(image.data)
        at = image.at["num_syms"] - image.vaddr
        data[at : at + 4] = count.to_bytes(4, "little")
        assert opened(form, Image(image.vaddr, bytes(data), image.at), named=True) is None


def test_nothing_there():
    form = FORMS[3]
    memory, window = memory_of(Image(text_base(form), bytes(4096), {}), form)
    assert open_kallsyms(memory, info(form), window, "<", 8) is None
    absent = parse(
        b"SYMBOL(kallsyms_names)=1000\nSYMBOL(kallsyms_num_syms)=2000\n"
        b"SYMBOL(kallsyms_token_table)=3000\nSYMBOL(kallsyms_token_index)=4000\n"
    )
    assert open_kallsyms(memory, absent, window, "<", 8) is None


def test_long_names_take_no_more_than_themselves() -> None:
    """A forged token of 58,000 letters in each of 512 names: room for twice their text is enough."""
    long = b"T" + b"x" * 58_000 + b"\0"
    others = b"A\0" * 255
    index = np.array([0, *range(len(long), len(long) + len(others), 2)], dtype=np.int64)
    markers = np.array([0, 512], dtype=np.intp)
    values = np.arange(512, dtype=np.int32)
    tables = Tables(b"\1\0" * 512, 512, markers, long + others, index, values, 0, 0xFFFFFFFF81000000)
    tracemalloc.start()
    try:
        found = decode(tables, lambda _: True, word=8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert len(found.text) == 512 * 58_001
    assert peak < 2.1 * len(found.text)
