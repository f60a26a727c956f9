"""Types out of DWARF: made by hand, looked up by symbol, damaged in every way."""

from __future__ import annotations

import json
import random
import struct
import sys
import zlib

import pytest

from kdump_elftool.cache import Cache
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.dwarf_types import DwarfTypes, open_dwarf_types
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.kernel.vmlinux_source import vmlinux_types
from tests.builders import dwarf as d
from tests.builders.btf import BtfWriter

TEXT = 0xFFFFFFFF81000000
FUNCTIONS = {"schedule": TEXT + 0x10, "copy_thread": TEXT + 0x1010, "mm_alloc": TEXT + 0x2010}


def kernel_units(word: int = 8) -> list[d.UnitSpec]:
    """Three files: tasks, what switch_to() saves, and one whose types differ from the first one's."""
    integer, char, long = d.base("int", 4), d.base("char", 1), d.base("long unsigned int", word)
    u64, pointer = d.base("long long unsigned int", 8), d.pointer(size=word)
    head = d.record("list_head", 2 * word, d.member("next", pointer, 0), d.member("prev", pointer, word))
    again = d.typedef("list_t", head)
    fixed = d.Die(d.CONST, [(d.TYPE, d.REF4, again)])
    inner = d.record(None, 16, d.member("deep", integer, 4), d.member("deeper", head, 0))
    union = d.record(None, 16, d.named(d.MEMBER, "one", (d.TYPE, d.REF4, u64)),
                     d.named(d.MEMBER, None, (d.TYPE, d.REF4, inner)), tag=d.UNION)  # fmt: skip
    name = d.array(char, (d.UPPER_BOUND, d.DATA1, 15))
    grid = d.array(integer, (d.UPPER_BOUND, d.DATA1, 2), (d.COUNT, d.DATA1, 5))
    open_end = d.Die(d.ARRAY, [(d.TYPE, d.REF4, char)], [d.Die(d.SUBRANGE)])
    none = d.array(char, (d.UPPER_BOUND, d.DATA8, 2**64 - 1))
    task = d.record(
        "task_struct", 256,
        d.member("pid", integer, 8), d.member(None, union, 16), d.member("tasks", fixed, 32),
        d.member("comm", name, 48), d.member("grid", grid, 64),
        d.named(d.MEMBER, "flag", (d.TYPE, d.REF4, integer), (d.BIT_SIZE, d.DATA1, 3),
                (d.DATA_BIT_OFFSET, d.DATA2, 8 * 128 + 5)),
        d.named(d.MEMBER, "whole", (d.TYPE, d.REF4, integer), (d.BIT_SIZE, d.DATA1, 8),
                (d.DATA_BIT_OFFSET, d.DATA2, 8 * 129)),
        d.named(d.MEMBER, "old", (d.TYPE, d.REF4, integer), (d.BYTE_SIZE, d.DATA1, 4),
                (d.BIT_SIZE, d.DATA1, 8), (d.BIT_OFFSET, d.DATA1, 16), (d.LOCATION, d.DATA2, 132)),
        d.named(d.MEMBER, "placed", (d.TYPE, d.REF4, long), (d.LOCATION, d.BLOCK1, b"\x23\x88\x01")),
        d.named(d.MEMBER, "constant", (d.TYPE, d.REF4, long), (d.LOCATION, d.IMPLICIT, 144)),
        d.member("tail", open_end, 200), d.member("none", none, 200), d.member("nothing", pointer, 208),
    )  # fmt: skip
    states = d.enum("states", ("RUNNING", d.DATA1, 0), ("DEAD", d.SDATA, -2), ("MANY", d.DATA4, 0x80000000))
    function = d.named(
        d.SUBPROGRAM, "schedule", children=[d.named(d.VARIABLE, "local", (d.TYPE, d.REF4, grid))]
    )
    extern = d.named(d.VARIABLE, "slots", (d.TYPE, d.REF4, open_end), (d.DECLARATION, d.PRESENT, True))
    first = [integer, char, long, u64, pointer, head, again, fixed, function, inner, union, name, grid,
             open_end, none, d.declared("inactive_task_frame"), task, states, extern]  # fmt: skip
    long2, pointer2 = d.base("long unsigned int", word), d.pointer(size=None)
    frame = d.record("inactive_task_frame", 56, d.member("ret_addr", long2, 48), d.member("bx", pointer2, 40))
    table = d.array(long2, (d.COUNT, d.UDATA, 1024))
    slots = d.named(d.VARIABLE, "slots", (d.TYPE, d.REF4, table))
    declared = d.named(d.VARIABLE, "parts", (d.TYPE, d.REF4, table), (d.DECLARATION, d.PRESENT, True))
    defined = d.Die(d.VARIABLE, [(d.SPECIFICATION, d.REF4, declared)])
    second = [long2, pointer2, frame, table, slots, declared, defined]
    other = d.record("task_struct", 8, d.member("pid", d.base("x", 2), 6))
    third = [other, d.record("only_here", 12)]
    return [
        d.UnitSpec("kernel/sched/core.c", TEXT, 0x1000, first),
        d.UnitSpec("arch/x86/kernel/process.c", TEXT + 0x1000, 0x1000, second),
        d.UnitSpec("kernel/fork.c", TEXT + 0x2000, 0x1000, third),
    ]


ANSWERS = {
    "OFFSET(task_struct.pid)": 8,
    "OFFSET(task_struct.one)": 16,
    "OFFSET(task_struct.deep)": 20,
    "OFFSET(task_struct.deeper.prev)": 24,
    "OFFSET(task_struct.tasks.prev)": 40,
    "OFFSET(task_struct.comm)": 48,
    "OFFSET(task_struct.flag)": None,
    "OFFSET(task_struct.whole)": 129,
    "OFFSET(task_struct.old)": 133,
    "OFFSET(task_struct.placed)": 136,
    "OFFSET(task_struct.constant)": 144,
    "OFFSET(task_struct.absent)": None,
    "OFFSET(task_struct.pid.x)": None,
    "OFFSET(task_struct.tasks.)": None,
    "OFFSET(task_struct)": None,
    "OFFSET(.pid)": None,
    "OFFSET(list_t.prev)": 8,
    "SIZE(task_struct)": 256,
    "SIZE(list_t)": 16,
    "SIZE(int)": 4,
    "SIZE(states)": 4,
    "SIZE(task_struct.tasks)": 16,
    "SIZE(task_struct.comm)": 16,
    "SIZE(task_struct.grid)": 60,
    "SIZE(task_struct.tail)": 0,
    "SIZE(task_struct.flag)": None,
    "SIZE(task_struct.nothing)": 8,
    "SIZE(only_here)": 12,
    "SIZE(nowhere)": None,
    "LENGTH(task_struct.comm)": 16,
    "LENGTH(task_struct.grid)": 3,
    "LENGTH(task_struct.tail)": 0,
    "LENGTH(task_struct.none)": 0,
    "LENGTH(task_struct.pid)": None,
    "LENGTH(slots)": 1024,
    "LENGTH(parts)": 1024,
    "LENGTH(local)": None,
    "NUMBER(RUNNING)": 0,
    "NUMBER(DEAD)": -2,
    "NUMBER(MANY)": 0x80000000,
    "NUMBER(states)": None,
    "OFFSET(inactive_task_frame.ret_addr)": 48,
    "SIZE(inactive_task_frame.bx)": 8,
    "SYMBOL(schedule)": None,
}


def write(units: list[d.UnitSpec], **options) -> dict[str, bytes]:
    writer = d.DwarfWriter(**options)
    for unit in units:
        writer.add(unit)
    return writer.sections()


def types(tmp_path, image: bytes) -> DwarfTypes | None:
    path = tmp_path / "vmlinux"
    path.write_bytes(image)
    return open_dwarf_types(read_vmlinux(InputFile.open(str(path))))


def ask(source: DwarfTypes) -> dict[str, int | None]:
    found = {}
    for question in ANSWERS:
        kind, _, rest = question.partition("(")
        found[question] = source.ask(kind, rest[:-1])
    return found


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("siblings", [True, False])
@pytest.mark.parametrize("aranges", [True, False])
def test_answers(tmp_path, version, siblings, aranges):
    sections = write(kernel_units(), version=version, siblings=siblings, aranges=aranges)
    source = types(tmp_path, d.elf_file(sections, FUNCTIONS))
    assert ask(source) == ANSWERS
    assert source.find("SIZE", "task_struct").source == "vmlinux DWARF"
    assert {unit.name for unit in source.units.values()} == {unit.name for unit in kernel_units()}


def test_big_endian_of_32_bits(tmp_path):
    functions = {name: value & 0xFFFFFFFF for name, value in FUNCTIONS.items()}
    writer = d.DwarfWriter(4, ">", 4)
    for unit in kernel_units(4):
        writer.add(d.UnitSpec(unit.name, unit.low & 0xFFFFFFFF, unit.size, unit.dies))
    sections = writer.sections()
    source = types(tmp_path, d.elf_file(sections, functions, order=">", bits=32, machine=8))
    different = {
        "OFFSET(task_struct.deeper.prev)": 20,
        "OFFSET(task_struct.tasks.prev)": 36,
        "OFFSET(list_t.prev)": 4,
        "SIZE(list_t)": 8,
        "SIZE(task_struct.tasks)": 8,
        "SIZE(task_struct.nothing)": 4,
        "SIZE(inactive_task_frame.bx)": 4,
        # counted from the most significant bit, which comes first
        "OFFSET(task_struct.old)": 134,
    }
    assert ask(source) == ANSWERS | different


def test_ranges_of_a_unit(tmp_path):
    """DWARF 4: a unit in two pieces, .debug_ranges with a base address."""
    units = kernel_units()
    ranges = struct.pack("<6Q", 2**64 - 1, TEXT, 0x800000, 0x800100, 0, 0x1000) + bytes(16)
    top = ((d.LOW_PC, d.ADDR, 0), (d.RANGES, d.SEC_OFFSET, 0))
    units[0] = d.UnitSpec(units[0].name, 0, 0, units[0].dies, top)
    sections = write(units, version=4, aranges=False) | {".debug_ranges": ranges}
    assert ask(types(tmp_path, d.elf_file(sections, FUNCTIONS))) == ANSWERS


@pytest.mark.parametrize("bits", [64])
def test_compressed_sections(tmp_path, bits):
    sections, flags = {}, {}
    for name, data in write(kernel_units()).items():
        sections[name] = struct.pack("<IIQQ", 1, 0, len(data), 1) + zlib.compress(data)
        flags[name] = 0x800
    assert ask(types(tmp_path, d.elf_file(sections, FUNCTIONS, flags=flags))) == ANSWERS


@pytest.mark.parametrize("head", [(2, 0, 100, 1), (1, 0, 1 << 40, 1), (0, 0, 0, 0)])
def test_compressed_in_another_way(tmp_path, head):
    sections = write(kernel_units())
    sections[".debug_info"] = struct.pack("<IIQQ", *head) + zlib.compress(sections[".debug_info"])
    image = d.elf_file(sections, FUNCTIONS, flags={".debug_info": 0x800})
    assert types(tmp_path, image) is None


@pytest.mark.parametrize("cut", [0, 4, 23, 24, 25, 40])
def test_compressed_and_cut_off(tmp_path, cut, caplog):
    sections = write(kernel_units())
    for name in (".debug_info", ".debug_abbrev", ".debug_str"):
        packed = struct.pack("<IIQQ", 1, 0, len(sections[name]), 1) + zlib.compress(sections[name])
        image = d.elf_file(sections | {name: packed[:cut]}, FUNCTIONS, flags={name: 0x800})
        caplog.clear()
        source = types(tmp_path, image)
        assert source is None or source.ask("SIZE", "task_struct") is None
        said = [record.message for record in caplog.records if record.levelname == "WARNING"]
        # shorter than its header it is none, and 40 bytes are enough of a stream to begin with
        ends = f"{tmp_path}/vmlinux: {name} is compressed and ends early: "
        assert [text.startswith(ends) for text in said] == ([True] if cut >= 24 else [])


def test_no_room_to_unpack(tmp_path, monkeypatch):
    sections = write(kernel_units())
    data = sections[".debug_str"]
    sections[".debug_str"] = struct.pack("<IIQQ", 1, 0, len(data), 1) + zlib.compress(data)

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert types(tmp_path, d.elf_file(sections, FUNCTIONS, flags={".debug_str": 0x800})) is None


def test_a_length_that_lies_bounds_what_is_unpacked(tmp_path):
    sections = write(kernel_units())
    packed = zlib.compress(sections[".debug_str"] + bytes(50 << 20))
    sections[".debug_str"] = struct.pack("<IIQQ", 1, 0, len(sections[".debug_str"]), 1) + packed
    source = types(tmp_path, d.elf_file(sections, FUNCTIONS, flags={".debug_str": 0x800}))
    assert source.file.info.debug_str_sec.size < 1 << 16
    assert ask(source) == ANSWERS


def test_no_dwarf(tmp_path):
    assert types(tmp_path, d.elf_file({}, FUNCTIONS)) is None
    assert types(tmp_path, d.elf_file({".debug_info": b"x"}, FUNCTIONS)) is None


def test_no_symbol_leads_to_a_unit(tmp_path):
    sections = write(kernel_units())
    for symbols in ({}, {"schedule": TEXT - 1}, {"schedule": TEXT + 0x3000}, {"schedule": 0}):
        assert set(ask(types(tmp_path, d.elf_file(sections, symbols))).values()) == {None}


def test_types_that_lead_in_circles(tmp_path):
    loop = d.Die(d.TYPEDEF, [(d.NAME, d.STRP, "loop")])
    loop.attrs.append((d.TYPE, d.REF4, loop))
    inside = d.record(None, 8)
    inside.children.append(d.member(None, inside, 0))
    outer = d.record("outer", 8, d.member(None, inside, 0), d.member("loop", loop, 0))
    ring = d.Die(d.ARRAY, [(d.NAME, d.STRP, "ring")], [d.Die(d.SUBRANGE, [(d.COUNT, d.DATA1, 9)])])
    ring.attrs.append((d.TYPE, d.REF4, ring))
    ringed = d.record("ringed", 8, d.member("ring", ring, 0))
    sections = write([d.UnitSpec("a.c", TEXT, 0x100, [loop, inside, outer, ring, ringed])])
    source = types(tmp_path, d.elf_file(sections, FUNCTIONS))
    for name in ("outer.x", "loop.x", "outer.loop.x"):
        assert source.ask("OFFSET", name) is None, name
    for name in ("loop", "outer.loop", "ringed.ring"):
        assert source.ask("SIZE", name) is None, name
    assert source.ask("LENGTH", "outer.loop") is None
    assert source.ask("LENGTH", "ringed.ring") == 9


def test_siblings_that_lead_back(tmp_path):
    sections = write(kernel_units())
    info = bytearray(sections[".debug_info"])
    for at in range(12, len(info) - 4):
        damaged = bytes(info[:at]) + b"\x0c\0\0\0" + bytes(info[at + 4 :])
        if at % 37:
            continue
        source = types(tmp_path, d.elf_file(sections | {".debug_info": damaged}, FUNCTIONS))
        ask(source)


def test_damage_is_never_more_than_a_missing_answer(tmp_path):
    """Random bytes in every section: no exception, and no more work than the budget allows."""
    rng = random.Random(20240229)
    sections = write(kernel_units())
    for turn in range(300):
        name = rng.choice(list(sections))
        data = bytearray(sections[name])
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        if turn % 5 == 0:
            del data[rng.randrange(len(data)) :]
        source = types(tmp_path, d.elf_file(sections | {name: bytes(data)}, FUNCTIONS))
        if source is not None:
            source.file.budget.entries = 20_000
            ask(source)


def test_budget(tmp_path):
    source = types(tmp_path, d.elf_file(write(kernel_units()), FUNCTIONS))
    source.file.budget.entries = 3
    assert source.ask("SIZE", "task_struct") is None


def test_a_name_without_end(tmp_path):
    sections = write(kernel_units())
    sections[".debug_str"] = b"x" * (1 << 20)
    source = types(tmp_path, d.elf_file(sections, FUNCTIONS))
    assert source.ask("SIZE", "task_struct") is None
    assert source.file.budget.bytes > -(1 << 20)


# what is remembered


@pytest.fixture
def cache(tmp_path):
    with Cache.open({"XDG_CACHE_HOME": str(tmp_path / "cache")}) as opened:
        yield opened


def vmlinux(tmp_path, image: bytes):
    path = tmp_path / "vmlinux"
    path.write_bytes(image)
    return read_vmlinux(InputFile.open(str(path)))


def no_advice(text: str) -> None:
    raise AssertionError(text)


def test_answers_are_remembered_by_build_id(tmp_path, cache, monkeypatch):
    sections = write(kernel_units())
    first = vmlinux_types(vmlinux(tmp_path, d.elf_file(sections, FUNCTIONS)), 8, cache, no_advice)
    assert first.find("OFFSET", "task_struct.comm").value == 48
    assert first.find("OFFSET", "task_struct.absent") is None
    # the same build id, and nothing that could be read
    emptied = d.elf_file(sections | {".debug_info": bytes(10)}, FUNCTIONS)
    second = vmlinux_types(vmlinux(tmp_path, emptied), 8, cache, no_advice)
    assert second.find("OFFSET", "task_struct.comm").shown() == "0x30"
    assert second.find("OFFSET", "task_struct.absent") is None
    assert second.find("SIZE", "task_struct") is None
    other = vmlinux_types(
        vmlinux(tmp_path, d.elf_file(sections | {".debug_info": bytes(10)}, FUNCTIONS, build_id=b"y" * 20)),
        8, cache, no_advice,
    )  # fmt: skip
    assert other.find("OFFSET", "task_struct.comm") is None


@pytest.mark.parametrize(
    "left", [b"", b"{", b"[]", b"7", b'{"OFFSET(task_struct.comm)": "x"}', b'{"a": true}']
)
def test_what_the_cache_holds_is_checked(tmp_path, cache, left):
    image = d.elf_file(write(kernel_units()), FUNCTIONS)
    cache.put(f"dwarf-2-{'12' * 20}", left)
    source = vmlinux_types(vmlinux(tmp_path, image), 8, cache, no_advice)
    assert source.find("OFFSET", "task_struct.comm").value == 48
    assert json.loads(cache.get(f"dwarf-2-{'12' * 20}")) == {"OFFSET(task_struct.comm)": 48}


@pytest.mark.parametrize("build_id", [None, b"\x12" * 20])
def test_without_build_id_or_cache_nothing_is_remembered(tmp_path, cache, build_id):
    image = d.elf_file(write(kernel_units()), FUNCTIONS, build_id=build_id)
    source = vmlinux_types(vmlinux(tmp_path, image), 8, cache if build_id is None else None, no_advice)
    assert source.find("OFFSET", "task_struct.comm").value == 48
    assert not list((tmp_path / "cache" / "kdump-elftool").glob("dwarf*"))


def test_btf_comes_first(tmp_path, cache):
    btf = BtfWriter()
    btf.struct("task_struct", 9, [])
    image = d.elf_file(write(kernel_units()) | {".BTF": btf.finish()}, FUNCTIONS)
    found = vmlinux_types(vmlinux(tmp_path, image), 8, cache, no_advice).find("SIZE", "task_struct")
    assert (found.value, found.source) == (9, "vmlinux BTF")


def test_damaged_btf_is_no_btf(tmp_path, cache):
    image = d.elf_file(write(kernel_units()) | {".BTF": b"damaged"}, FUNCTIONS)
    assert (
        vmlinux_types(vmlinux(tmp_path, image), 8, cache, no_advice).find("SIZE", "task_struct").value == 256
    )


def test_without_pyelftools_the_user_is_told_what_to_install(tmp_path, cache, monkeypatch):
    image = d.elf_file(write(kernel_units()), FUNCTIONS)
    for name in [name for name in sys.modules if name.split(".")[0] == "elftools"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("dwarf_file", "dwarf_unit"):
        monkeypatch.delitem(sys.modules, f"kdump_elftool.kernel.{name}", raising=False)
    advice: list[str] = []
    source = vmlinux_types(vmlinux(tmp_path, image), 8, cache, advice.append)
    assert source.find("OFFSET", "task_struct.comm") is None
    assert source.find("OFFSET", "task_struct.pid") is None
    assert len(advice) == 1
    assert advice[0].endswith("cannot be read without pyelftools: pip install 'kdump-elftool[dwarf]'")
    assert cache.get(f"dwarf-2-{'12' * 20}") is None
