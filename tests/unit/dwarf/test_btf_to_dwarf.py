"""BTF becomes DWARF that pyelftools reads as the same types, in both byte orders and word sizes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.addr import u64
from kdump_elftool.dwarf.btf_entries import Room
from kdump_elftool.dwarf.btf_to_dwarf import BtfToDwarf, DebugSections
from kdump_elftool.dwarf.btf_variables import Symbols
from kdump_elftool.dwarf.source_entries import Sources
from kdump_elftool.dwarf.source_units import SourceUnit
from kdump_elftool.dwarf.strings import Names
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.kernel.btf import Btf
from tests.builders import btf as b
from tests.builders.dwarf_text import debug_file, described, units, value

KINDS = [ElfKind(bits, order) for bits in (32, 64) for order in "<>"]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
BASE = 0x81000000


def symbols(*rows: tuple[str, int, int, str]) -> Symbols:
    """Rows of name, address, size and nm's letter."""
    return Symbols(
        Names.of([name.encode() for name, *_ in rows]),
        u64([row[1] for row in rows]),
        u64([row[2] for row in rows]),
        np.array([ord(row[3]) for row in rows], dtype=np.uint8),
    )


NONE = symbols()


def parsed(writer: b.BtfWriter, kind: ElfKind, base: Btf | None = None) -> Btf:
    found = Btf.parse(writer.finish(), kind.order, kind.bits // 8, "BTF", base)
    assert found is not None
    return found


def converted(writer: b.BtfWriter, kind: ElfKind, have: Symbols = NONE, wanted=()) -> DebugSections:
    debug = BtfToDwarf(kind.order, kind.bits // 8)
    debug.add("vmlinux", parsed(writer, kind), have, wanted)
    return debug.finish()


def shown(writer: b.BtfWriter, kind: ElfKind = KINDS[2], have: Symbols = NONE, wanted=()) -> dict[str, str]:
    (top,) = units(converted(writer, kind, have, wanted), kind)
    return described(top)


@kinds
def test_types(kind):
    w = b.BtfWriter(kind.order)
    word = kind.bits // 8
    char, integer = w.integer("char", 1, 1), w.integer("int", 4, 1)
    w.integer("unsigned char", 1), w.integer("_Bool", 1, 4), w.integer("unsigned int", 4)
    w.add(b.FLOAT, "double", 8)
    node = len(w.records) + 2
    w.struct("list_head", 2 * word, [("next", node - 1 + 1, 0), ("prev", node, word)])
    assert w.pointer(node - 1) == node
    comm = w.array(char, 16)
    w.add(b.TYPEDEF, "pid_t", integer)
    w.add(b.TYPEDEF, "nothing", 0)
    const = w.add(b.CONST, "", w.add(b.VOLATILE, "", integer))
    flexible = w.array(w.array(integer, 3), 0)
    user = w.pointer(w.add(b.TYPE_TAG, "user", w.add(b.TYPE_TAG, "rcu", char)))
    inner = w.struct("", 8, [("low", integer, 0), ("high", integer, 4)])
    callback = w.pointer(w.proto(0, [("", w.pointer(0)), ("", integer), ("", 0)]))
    hidden = w.add(b.FWD, "hidden", 0)
    w.add(b.FWD, "either", 0, flag=True)
    w.struct("u", 8, [("whole", w.integer("long", word, 1), 0), ("", inner, 0)], kind=b.UNION)
    w.struct("empty", 0, [])
    members = [("state", const, 0), ("comm", comm, 4), ("text", user, 24), ("call", callback, 32)]
    members += [("", inner, 40), ("more", w.pointer(hidden), 48), ("alias", w.add(b.RESTRICT, "", user), 56)]
    w.struct("task", 64, [*members, ("rest", flexible, 64)])
    w.add(b.DECL_TAG, "tag", 1, [0])
    types = shown(w, kind)
    assert types["char"] == "char size 1 encoding 6"
    assert types["unsigned char"] == "unsigned char size 1 encoding 8"
    assert types["_Bool"] == "_Bool size 1 encoding 2"
    assert types["int"] == "int size 4 encoding 5"
    assert types["unsigned int"] == "unsigned int size 4 encoding 7"
    assert types["double"] == "double size 8 encoding 4"
    assert types["pid_t"] == "typedef int"
    assert types["nothing"] == "typedef void"
    pair = f"*{word} struct list_head"
    assert types["struct list_head"] == f"struct {2 * word} {{{pair} next @0; {pair} prev @{word}}}"
    assert types["struct hidden"] == "struct;"
    assert types["union either"] == "union;"
    assert types["struct empty"] == "struct 0 {}"
    low_high = "struct 8 {int low @0; int high @4}"
    assert types["union u"] == f"union 8 {{long whole @0; {low_high} @0}}"
    assert types["struct task"] == (
        "struct 64 {const volatile int state @0; char[16] comm @4; "
        f"*{word} char text @24; *{word} void (*{word} void, int, ...) call @32; {low_high} @40; "
        f"*{word} struct hidden more @48; restrict *{word} char alias @56; int[3][] rest @64}}"
    )


@kinds
def test_bit_fields(kind):
    w = b.BtfWriter(kind.order)
    integer = w.integer("int", 4, 1)
    w.bitfields("flags", 8, [("one", integer, 0, 1), ("rest", integer, 33, 24), ("plain", integer, 32, 0)])
    # as before v4.20: the width is that of an integer made for it
    narrow = w.add(b.INT, "unsigned int", 4, [2 << 16 | 5])
    w.struct("old", 8, [("first", integer, 0), ("field", narrow, 4)])
    types = shown(w, kind)
    assert types["struct flags"] == "struct 8 {int one :1 @bit 0; int rest :24 @bit 33; int plain @4}"
    assert types["struct old"] == "struct 8 {int first @0; unsigned int field :5 @bit 34}"


@kinds
def test_enumerations(kind):
    w = b.BtfWriter(kind.order)
    w.integer("unsigned int", 4), w.integer("int", 4, 1)
    w.enum("small", [("A", 0), ("B", 0x7F), ("C", 0x80), ("D", 0x8000), ("E", 0x7FFFFFFF), ("F", 0xFFFFFFFF)])
    w.enum("sign", [("MINUS", -3), ("LEAST", -(1 << 31)), ("PLUS", 200)], signed=True)
    w.enum64("big", [("BIG", 1 << 40), ("LOWEST", -(1 << 63))], signed=True)
    w.enum64("top", [("TOP", (1 << 64) - 1)])
    w.enum("later", [])
    types = shown(w, kind)
    assert types["enum small"] == (
        "enum of unsigned int 4 {A = 0; B = 127; C = 128; D = 32768; E = 2147483647; F = 4294967295}"
    )
    assert types["enum sign"] == "enum of int 4 {MINUS = -3; LEAST = -2147483648; PLUS = 200}"
    assert types["enum big"] == f"enum 8 {{BIG = {1 << 40}; LOWEST = {-(1 << 63)}}}"
    assert types["enum top"] == f"enum 8 {{TOP = {(1 << 64) - 1}}}"
    assert types["enum later"] == "enum;"


def test_enumerations_that_nobody_marked():
    """As before v6.0: a value with its top bit set is negative."""
    w = b.BtfWriter()
    w.enum("old", [("MINUS", -1), ("PLUS", 1)])
    assert shown(w)["enum old"] == "enum 4 {MINUS = -1; PLUS = 1}"


@kinds
def test_functions(kind):
    w = b.BtfWriter(kind.order)
    integer = w.integer("int", 4, 1)
    proto = w.proto(integer, [("fd", integer), ("format", w.pointer(integer)), ("", 0)])
    w.add(b.FUNC, "open", proto, vlen=1)
    w.add(b.FUNC, "inlined", proto)
    w.add(b.FUNC, "none", w.proto(0, []))
    w.add(b.FUNC, "wrong", integer)
    have = symbols(
        ("open", BASE, 0x20, "T"),
        ("__alias", BASE, 0x20, "T"),
        ("none", BASE + 0x20, 0x10, "t"),
        ("none", BASE + 0x40, 0x10, "t"),
        ("none", BASE + 0x900000, 0x10, "t"),
        ("none", BASE + 0x60, 0, "t"),
        ("wrong", BASE + 0x70, 1, "t"),
        ("inlined", BASE + 0x80, 8, "D"),
    )
    sections = converted(w, kind, have)
    (top,) = units(sections, kind)
    assert value(top, "name") == "vmlinux"
    found = [die for die in top.iter_children() if die.tag == "DW_TAG_subprogram"]
    assert [(value(die, "name"), value(die, "low_pc")) for die in found] == [
        ("open", BASE),
        ("none", BASE + 0x20),
        ("none", BASE + 0x40),
        ("none", BASE + 0x900000),
    ]
    word = kind.bits // 8
    texts = described(top)
    assert texts["open"] == f"int (int fd, *{word} int format, ...) at {BASE:#x} size 0x20"
    assert texts["none"] == f"static void () at {BASE + 0x900000:#x} size 0x10"
    ranges = top.dwarfinfo.range_lists().get_range_list_at_offset(value(top, "ranges"), top.cu)
    assert [(r.begin_offset, r.end_offset) for r in ranges] == [
        (BASE, BASE + 0x50),
        (BASE + 0x900000, BASE + 0x900010),
    ]
    (unit,) = sections.units
    assert (unit.functions, unit.unplaced) == (4, 1)
    # nothing refers to these prototypes but functions
    assert not [die for die in top.iter_children() if die.tag == "DW_TAG_subroutine_type"]


@kinds
def test_parts_of_functions(kind):
    """What the compiler split off has the parameters of the function that it was."""
    w = b.BtfWriter(kind.order)
    integer = w.integer("int", 4, 1)
    w.add(b.FUNC, "open", w.proto(integer, [("fd", integer)]), vlen=1)
    w.add(b.FUNC, "only", w.proto(0, []))
    have = symbols(
        ("open", BASE, 0x20, "T"),
        ("open.alias", BASE, 0x20, "T"),
        ("open.cold", BASE + 0x20, 0x10, "t"),
        ("open.isra.0.cold", BASE + 0x30, 0x10, "t"),
        ("only.constprop.0", BASE + 0x40, 0x10, "t"),
        ("unknown.cold", BASE + 0x50, 0x10, "t"),
        (".open", BASE + 0x60, 0x10, "t"),
        ("ope.n", BASE + 0x70, 0x10, "t"),
        ("open.data", BASE + 0x80, 0x10, "d"),
    )
    sections = converted(w, kind, have)
    (top,) = units(sections, kind)
    found = {value(die, "name"): die for die in top.iter_children() if die.tag == "DW_TAG_subprogram"}
    assert {name: value(die, "low_pc") - BASE for name, die in found.items()} == {
        "open": 0,
        "open.cold": 0x20,
        "open.isra.0.cold": 0x30,
        "only.constprop.0": 0x40,
    }
    texts = described(top)
    assert texts["open.cold"] == f"static int (int fd) at {BASE + 0x20:#x} size 0x10"
    assert texts["only.constprop.0"] == f"static void () at {BASE + 0x40:#x} size 0x10"
    assert (sections.units[0].functions, sections.units[0].unplaced) == (4, 0)


@kinds
def test_variables(kind):
    w = b.BtfWriter(kind.order)
    integer = w.integer("int", 4, 1)
    w.struct("list_head", 8, [("next", integer, 0)])
    names = ("runqueues", "twice", "unnamed", "moved", "elsewhere")
    numbers = {name: w.add(b.VAR, name, integer, [0]) for name in names}
    w.section(".data..percpu", [(numbers[name], 0x10 * at, 4) for at, name in enumerate(names[:4])])
    have = symbols(
        ("runqueues", 0x1000, 4, "A"),
        ("twice", 0x1010, 4, "d"),
        ("twice", 0x9999, 4, "d"),
        ("moved", 0x1030, 4, "d"),
        ("elsewhere", 0x5000, 4, "b"),
        ("modules", 0x6000, 8, "d"),
        ("jiffies", 0x6010, 8, "D"),
        ("node_data", 0x6020, 8, "D"),
        ("linux_banner", 0x6030, 8, "D"),
        ("code", 0x6040, 8, "T"),
    )
    wanted = (
        ("runqueues", "struct list_head"),
        ("modules", "struct list_head"),
        ("jiffies", "volatile int"),
        ("node_data", "struct list_head *[]"),
        ("linux_banner", "const char []"),
        ("code", "int"),
        ("absent", "int"),
    )
    found = shown(w, kind, have, wanted)
    word = kind.bits // 8
    place = {
        name: int.from_bytes(bytes.fromhex(text.split(" at 03")[1]), "little" if kind.order == "<" else "big")
        for name, text in found.items()
        if " at 03" in text
    }
    assert place == {
        "runqueues": 0x1000,
        "twice": 0x1010,
        "unnamed": 0x1020,
        "moved": 0x1030,
        "elsewhere": 0x5000,
        "modules": 0x6000,
        "jiffies": 0x6010,
        "node_data": 0x6020,
    }
    assert found["runqueues"].startswith("int at ")
    assert found["modules"].startswith("struct list_head at ")
    assert found["jiffies"].startswith("volatile int at ")
    assert found["node_data"].startswith(f"*{word} struct list_head[] at ")


@kinds
def test_modules(kind):
    w = b.BtfWriter(kind.order)
    integer = w.integer("int", 4, 1)
    page = w.struct("page", 8, [("flags", integer, 0)])
    proto = w.proto(integer, [("", integer)])
    w.add(b.FUNC, "kernel_function", proto)
    module = b.BtfWriter(kind.order, w)
    own = module.struct("own", 16, [("page", page, 0), ("flags", integer, 8)])
    module.struct("operations", 8, [("call", module.pointer(proto), 0), ("own", module.pointer(own), 4)])
    module.add(b.FUNC, "module_function", module.proto(0, [("own", module.pointer(own))]))
    module.add(b.FUNC, "borrowed", proto)
    base = parsed(w, kind)
    debug = BtfToDwarf(kind.order, kind.bits // 8)
    debug.add("vmlinux", base, symbols(("kernel_function", BASE, 8, "T")))
    for name, at in (("one", 0x1000000), ("two", 0x2000000)):
        have = symbols(("module_function", BASE + at, 16, "t"), ("borrowed", BASE + at + 16, 16, "t"))
        debug.add(name, parsed(module, kind, base), have)
    tops = units(debug.finish(), kind)
    assert [value(top, "name") for top in tops] == ["vmlinux", "one", "two"]
    word = kind.bits // 8
    for top, at in zip(tops[1:], (0x1000000, 0x2000000), strict=True):
        found = described(top)
        assert found["struct own"] == "struct 16 {struct page page @0; int flags @8}"
        # the kernel's unit has no entry for a prototype that only its functions have
        assert found["struct operations"] == (
            f"struct 8 {{*{word} int (int) call @0; *{word} struct own own @4}}"
        )
        assert found["module_function"] == f"static void (*{word} struct own own) at {BASE + at:#x} size 0x10"
        assert found["borrowed"] == f"static int (int) at {BASE + at + 16:#x} size 0x10"
        assert "struct page" not in found


def test_a_module_refers_to_a_type_that_the_kernel_did_not_need():
    """The last of its records have no entries: a prototype that only a function has, and the function."""
    w = b.BtfWriter()
    integer = w.integer("int", 4, 1)
    w.add(b.FUNC, "f", w.proto(integer, [("", integer)]))
    proto = len(w.records) - 1
    module = b.BtfWriter("<", w)
    module.struct("own", 8, [("call", module.pointer(proto), 0)])
    kind = KINDS[2]
    base = parsed(w, kind)
    debug = BtfToDwarf(kind.order, 8)
    debug.add("vmlinux", base, NONE)
    debug.add("one", parsed(module, kind, base), NONE)
    _, top = units(debug.finish(), kind)
    assert described(top)["struct own"] == "struct 8 {*8 int (int) call @0}"


def test_more_parameters_than_any_kernel_has(monkeypatch):
    monkeypatch.setattr("kdump_elftool.dwarf.btf_to_dwarf.Room", lambda: Room(left=5))
    w = b.BtfWriter()
    integer = w.integer("int", 4, 1)
    proto = w.proto(integer, [("a", integer), ("b", integer)])
    w.add(b.FUNC, "f", proto)
    w.add(b.FUNC, "none", w.proto(0, []))
    have = symbols(
        *(("f", BASE + at, 16, "t") for at in range(0, 0x40, 0x10)), ("none", BASE + 0x40, 16, "t")
    )
    sections = converted(w, KINDS[2], have)
    (top,) = units(sections, KINDS[2])
    found = [die for die in top.iter_children() if die.tag == "DW_TAG_subprogram"]
    assert [len(list(die.iter_children())) for die in found] == [2, 2, 0, 0, 0]
    assert (sections.units[0].functions, sections.units[0].bare) == (5, 2)


def test_names_are_harmless():
    """They end up on a debugger's terminal."""
    w = b.BtfWriter()
    w.integer("in\x1b[31mt\x7f", 4)
    assert set(shown(w)) == {"in?[31mt?"}


@kinds
def test_functions_in_units_of_their_sources(kind):
    """What is in a source file's code is in its unit, up to the end of that; types stay where they are."""
    w = b.BtfWriter(kind.order)
    integer = w.integer("int", 4, 1)
    proto = w.proto(integer, [("fd", w.pointer(w.struct("file", 4, [("f", integer, 0)])))])
    names = ("read", "write", "seek", "entry", "init", "padded")
    for name in names:
        w.add(b.FUNC, name, proto, vlen=1)
    places = (0x1000, 0x100, 0x110, 0x40, 0x5000, 0x120)
    have = symbols(*((name, BASE + at, 0x10, "T") for name, at in zip(names, places, strict=True)))
    read_write = SourceUnit(
        b"fs/rw.c", b"/build", 29, 0x50, ((0x9E00, 0xA020), (0x9100, 0x9110), (0, 0x20), (0x9120, 0x9128))
    )
    rest = SourceUnit(b"", b"", 0x8001, 0, ((0x9110, 0x9120),))
    nothing = SourceUnit(b"empty.S", b"/build", 0x8001, 0x90, ((0x20000, 0x20040),))
    sources = Sources.of([read_write, rest, nothing], 0x8000, BASE - 0x9000, kind.bits // 8)
    debug = BtfToDwarf(kind.order, kind.bits // 8)
    debug.add("vmlinux", parsed(w, kind), have, (("entry", "struct file"),), sources)
    sections = debug.finish()
    kernel, *files = units(sections, kind)
    attributes = [
        [value(top, what) for what in ("name", "comp_dir", "language", "stmt_list")] for top in files
    ]
    assert attributes == [
        ["fs/rw.c", "/build", 29, 0x50], ["?", "", 0x8001, 0], ["empty.S", "/build", 0x8001, 0x90]
    ]  # fmt: skip
    found = [[name for name in described(top) if name in names] for top in (kernel, *files)]
    assert found == [["entry", "init"], ["write", "padded", "read"], ["seek"], []]
    arguments = f"int (*{kind.bits // 8} struct file fd)"
    assert described(files[0])["read"] == f"{arguments} at {BASE + 0x1000:#x} size 0x10"
    # a symbol ends where the next one begins, the code before that
    assert described(files[0])["padded"] == f"{arguments} at {BASE + 0x120:#x} size 0x8"
    assert described(kernel)["struct file"] == "struct 4 {int f @0}"
    assert ranges_of(kernel) == [(BASE + 0x40, BASE + 0x50), (BASE + 0x5000, BASE + 0x5010)]
    assert ranges_of(files[0]) == [
        (BASE + 0x100, BASE + 0x110), (BASE + 0x120, BASE + 0x128), (BASE + 0xE00, BASE + 0x1020)
    ]  # fmt: skip
    assert ranges_of(files[1]) == [(BASE + 0x110, BASE + 0x120)]
    info = ELFFile(io.BytesIO(debug_file(sections, kind))).get_dwarf_info()
    for name, at in zip(names, places, strict=True):
        unit = info.get_aranges().cu_offset_at_addr(BASE + at)
        holder = next((top for top in files if name in described(top)), None)
        assert unit == (None if holder is None else holder.cu.cu_offset), name


def ranges_of(top) -> list[tuple[int, int]]:
    """As pyelftools reads them."""
    found = top.dwarfinfo.range_lists().get_range_list_at_offset(value(top, "ranges"), top.cu)
    return [(entry.begin_offset, entry.end_offset) for entry in found]
