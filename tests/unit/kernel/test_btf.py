"""BTF of every kind in both byte orders; what is damaged is refused or gives no answer, never harm."""

from __future__ import annotations

import struct
import tracemalloc
from random import Random

import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel import btf
from kdump_elftool.kernel.btf import Btf, Kind, open_btf
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory
from tests.builders import btf as b

SEED = 20261123
BASE = 0xFFFFFFFF81000000
orders = pytest.mark.parametrize("order", ["<", ">"])


def written(order: str = "<") -> bytes:
    """One of each kind, and structs inside of structs."""
    w = b.BtfWriter(order)
    char, integer, long = w.integer("char", 1), w.integer("int", 4), w.integer("unsigned long", 8)
    comm = w.array(char, 16)
    matrix = w.array(w.array(integer, 3), 5)
    node = w.struct("list_head", 16, [("next", 0, 0), ("prev", 0, 8)])
    const = w.add(b.CONST, "", w.add(b.VOLATILE, "", integer))
    pid_t = w.add(b.TYPEDEF, "pid_t", w.add(b.TYPEDEF, "__kernel_pid_t", integer))
    inner = w.struct("", 8, [("low", integer, 0), ("high", integer, 4)])
    either = w.struct("", 8, [("whole", long, 0), ("", inner, 0)], kind=b.UNION)
    w.struct(
        "task",
        96,
        [
            ("state", const, 0),
            ("pid", pid_t, 4),
            ("tasks", node, 8),
            ("comm", comm, 24),
            ("", either, 40),
            ("matrix", matrix, 48),
        ],
    )
    w.bitfields("flags", 4, [("one", integer, 0, 1), ("rest", integer, 8, 24), ("", inner, 64, 0)])
    w.enum("zone_type", [("ZONE_DMA", 0), ("MAX_NR_ZONES", 5)])
    w.enum("sign", [("MINUS", -3)], signed=True)
    w.enum64("big", [("BIG", 1 << 40), ("MINUS_BIG", -(1 << 40))], signed=True)
    w.add(b.FWD, "later", 0)
    w.add(b.RESTRICT, "", w.pointer(char))
    proto = w.add(b.FUNC_PROTO, "", integer, [w.string("arg"), integer], vlen=1)
    w.add(b.FUNC, "schedule", proto)
    table = w.add(b.VAR, "table", w.array(long, 7), [1])
    w.add(b.DATASEC, ".data", 0, [table, 0, 56], vlen=1)
    w.add(b.FLOAT, "double", 8)
    w.add(b.DECL_TAG, "tag", proto, [0])
    w.add(b.TYPE_TAG, "percpu", integer)
    return w.finish()


def opened(data: bytes, order: str = "<") -> Btf:
    found = Btf.parse(data, order, 8, "BTF in the dump")
    assert found is not None
    return found


@orders
def test_every_kind(order):
    found = opened(written(order), order)
    assert set(found.kind.tolist()) == set(Kind)
    answers = {
        ("SIZE", "task"): 96,
        ("SIZE", "pid_t"): 4,
        ("SIZE", "double"): 8,
        ("SIZE", "zone_type"): 4,
        ("SIZE", "task.comm"): 16,
        ("SIZE", "task.matrix"): 60,
        ("SIZE", "task.pid"): 4,
        ("SIZE", "big"): 8,
        ("OFFSET", "task.state"): 0,
        ("OFFSET", "task.tasks"): 8,
        ("OFFSET", "task.tasks.prev"): 16,
        ("OFFSET", "task.whole"): 40,
        ("OFFSET", "task.high"): 44,
        ("OFFSET", "flags.rest"): 1,
        ("OFFSET", "flags.high"): 12,
        ("LENGTH", "task.comm"): 16,
        ("LENGTH", "task.matrix"): 5,
        ("LENGTH", "table"): 7,
        ("NUMBER", "MAX_NR_ZONES"): 5,
        ("NUMBER", "MINUS"): -3,
        ("NUMBER", "BIG"): 1 << 40,
        ("NUMBER", "MINUS_BIG"): -(1 << 40),
    }
    for (kind, name), value in answers.items():
        fact = found.find(kind, name)
        assert fact is not None, name
        assert (fact.value, fact.source, fact.name) == (value, "BTF in the dump", f"{kind}({name})")


@orders
def test_what_is_not_known(order):
    found = opened(written(order), order)
    for kind, name in (
        ("SIZE", "nothing"),
        ("SIZE", "later"),
        ("SIZE", "flags.one"),
        ("OFFSET", "task.nothing"),
        ("OFFSET", "task"),
        ("OFFSET", "task."),
        ("OFFSET", ".comm"),
        ("OFFSET", "task.comm.x"),
        ("OFFSET", "pid_t.x"),
        ("LENGTH", "task.pid"),
        ("LENGTH", "task"),
        ("NUMBER", "task"),
        ("NUMBER", "schedule"),
        ("SYMBOL", "task"),
        ("NUMBER", "arg"),
    ):
        assert found.find(kind, name) is None, (kind, name)


@orders
def test_names_are_found_however_many_were_asked_for(order):
    """The first ones are searched for, all others are in a table."""
    questions = [
        ("OFFSET", "task.comm"),
        ("OFFSET", "task.high"),
        ("SIZE", "list_head"),
        ("OFFSET", "task.x"),
    ]
    fresh, asked = opened(written(order), order), opened(written(order), order)
    for number in range(100):
        assert asked.find("SIZE", f"no_such_type_{number}") is None
    found = [asked.find(*question) for question in questions]
    assert found == [fresh.find(*question) for question in questions]
    assert [fact and fact.value for fact in found] == [24, 44, 16, None]


def test_cycles_end():
    w = b.BtfWriter()
    w.add(b.TYPEDEF, "a", 2)
    w.add(b.TYPEDEF, "b", 1)
    w.struct("", 8, [("", 3, 0)])
    w.struct("outer", 8, [("", 3, 0)])
    w.add(b.ARRAY, "", 0, [5, 1, 1000])
    w.struct("holder", 8, [("loop", 5, 0), ("far", 99, 0)])
    found = opened(w.finish())
    assert found.find("SIZE", "a") is None
    assert found.find("OFFSET", "outer.x") is None
    assert found.find("SIZE", "holder.loop") is None
    assert found.find("SIZE", "holder.far") is None


def test_anonymous_structs_are_gone_through_once(monkeypatch):
    """Each twice in the one around it: 2**30 ways lead to the innermost."""
    w = b.BtfWriter()
    inner = w.struct("", 8, [("x", w.integer("int", 4), 0), ("y", 1, 4)])
    for _ in range(29):
        inner = w.struct("", 8, [("", inner, 0), ("", inner, 0)])
    w.struct("outer", 8, [("", inner, 0), ("", inner, 4)])
    w.struct("other", 4, [("z", 1, 0)])
    btf = Btf.parse(w.finish(), "<", 8, "BTF")
    assert btf is not None
    reads = []
    read = Btf._read_member

    def counted(self, row, entry):
        reads.append(row)
        assert len(reads) < 1000
        return read(self, row, entry)

    monkeypatch.setattr(Btf, "_read_member", counted)
    assert btf.find("OFFSET", "outer.z") is None
    fact = btf.find("OFFSET", "outer.y")
    assert fact is not None
    assert fact.value == 4


def test_damage_never_does_harm():
    random = Random(SEED)
    whole = written()
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(random.choice((1, 3, 30))):
            data[random.randrange(len(data))] = random.choice((0, 0xFF, random.randrange(256)))
        cut = bytes(data[: random.choice((len(data), random.randrange(len(data))))])
        found = Btf.parse(cut, "<", 8, "x")
        if found is None:
            refused += 1
            continue
        for kind in ("OFFSET", "SIZE", "LENGTH", "NUMBER"):
            for name in ("task.high", "task", "flags.high", "table", "BIG", "task.matrix"):
                found.find(kind, name)
    assert 50 < refused < 350


def memory_of(data: bytes, at: int) -> VirtualMemory:
    class Store:
        def read_into(self, offset: int, view: memoryview) -> None:
            view[:] = image[offset : offset + len(view)]

    image = (Random(SEED).randbytes(at) + data).ljust(1 << 20, b"\0")
    extents = normalise(u64([0]), u64([len(image)]), u64([0]))
    physical = PhysicalMemory(Store(), extents, extents.ranges())
    return VirtualMemory.of(physical, u64([BASE]), u64([0]), u64([len(image)]))


@orders
@pytest.mark.parametrize("at", [0x1000, 0x12345])
def test_found_in_memory(order, at):
    data = written(order)
    memory, window = memory_of(data, at), (BASE, BASE + (1 << 20))
    named = parse(
        f"SYMBOL(__start_BTF)={BASE + at:x}\nSYMBOL(__stop_BTF)={BASE + at + len(data):x}\n".encode()
    )
    for known in (named, VmcoreInfo({})):
        found = open_btf(memory, known, window, order, 8)
        assert found is not None
        assert found.find("SIZE", "task") is not None
    beyond = parse(f"SYMBOL(__start_BTF)={BASE:x}\nSYMBOL(__stop_BTF)={BASE + (1 << 29):x}\n".encode())
    assert open_btf(memory, beyond, window, order, 8) is None
    absent = parse(b"SYMBOL(__start_BTF)=1000\nSYMBOL(__stop_BTF)=2000\n")
    assert open_btf(memory, absent, window, order, 8) is None


def test_what_only_begins_like_one_is_not_tried_for_ever(monkeypatch):
    data = written("<")
    header = data[:16] + (60 << 20).to_bytes(4, "little") + bytes(4)
    window = (BASE, BASE + (1 << 20))
    assert open_btf(memory_of(header * 10 + data, 0x1000), VmcoreInfo({}), window, "<", 8) is not None
    monkeypatch.setattr("kdump_elftool.kernel.btf._MOST_CANDIDATES", 10)
    assert open_btf(memory_of(header * 10 + data, 0x1000), VmcoreInfo({}), window, "<", 8) is None


def test_a_memory_full_of_first_bytes_ends_soon():
    data = written()
    for count, is_found in ((1000, True), (1 << 20, False)):
        memory = memory_of(b"\x9f\xeb\1" * count + data, 0x1000)
        window = (BASE, BASE + 3 * count + len(data) + 0x2000)
        found = open_btf(memory, VmcoreInfo({}), window, "<", 8)
        assert (found is not None) is is_found


@pytest.mark.parametrize(
    "behind", [[("PG_lru", 777)], [("x", 1), ("PG_lru", 777)]], ids=["last word", "inside"]
)
def test_no_number_out_of_what_is_damaged(behind):
    """Words behind the last good record look like enumerators of it."""
    w = b.BtfWriter()
    w.enum("pageflags", [("PG_locked", 3)])
    words = [word for label, value in behind for word in (w.string(label), value)]
    w.records.append(struct.pack(f"<{len(words)}I", *words))
    for end in (None, -1):
        data = w.finish() if end is None else without_last_word(w)
        found = Btf.parse(data, "<", 8, "BTF", partial=True)
        assert found is not None
        assert found.damage == "type 2 makes no sense: all from it on are left out"
        assert found.find("NUMBER", "PG_locked").value == 3
        assert found.find("NUMBER", "PG_lru") is None


def without_last_word(writer: b.BtfWriter) -> bytes:
    """The types end in the middle of what they were to have."""
    *records, last = writer.records
    cut = b.BtfWriter()
    cut.strings, cut.records = writer.strings, [*records, last[:-4]]
    return cut.finish()


@pytest.mark.parametrize("order", ["<", ">"])
def test_records_on_both_sides_of_a_border(order, monkeypatch):
    """However few words are looked at at once, they are the same records."""
    whole = Btf.parse(written(order), order, 8, "BTF")
    for count in (1, 2, 3, 7, 64):
        monkeypatch.setattr(btf, "_WORDS_AT_ONCE", count)
        found = Btf.parse(written(order), order, 8, "BTF")
        assert found is not None
        assert found.start.tolist() == whole.start.tolist()
        assert len(found) == 29


def test_memory_for_many_types():
    """Of a forged object as large as is read at all; here a few MB of it."""
    w = b.BtfWriter()
    w.pointer(0)
    w.records *= 400_000
    data = w.finish()
    tracemalloc.start()
    found = Btf.parse(data, "<", 8, "BTF")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert len(found) == 400_000
    assert peak < 10 * len(data)
