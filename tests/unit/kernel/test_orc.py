"""ORC tables of every form out of a kernel's memory, and what is wrong with some."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.module_orc import read_module_orc
from kdump_elftool.kernel.orc import (
    FORMATS,
    V4_14,
    Base,
    Kind,
    OrcTable,
    identify,
    joined,
    read_kernel_orc,
    without,
)
from tests.builders.orc import FORMS, HEADERS, OLD_REGISTERS, Row, pack, parse
from tests.unit.kernel.kernelspace import BASE, ROOM, KernelSpace, info_of

CODE = 0x10000
IP, ENTRIES, HEADER = 0x1000, 0x4000, 0x800
WINDOW = (BASE + CODE, BASE + 0x20000)
KINDS = {"undefined": 0, "end": 1, "call": 2, "regs": 3, "iret": 4}
EVERY_KIND = """
    0x00 undefined
    0x10 call sp+8
    0x11 call sp+16
    0x15 call sp+24 rbp=cfa-24
    0x18 call sp+16
    0x19 call sp+8
    0x20 call bp+16 rbp=cfa-16
    0x2c call sp+8
    0x30 call r10+0
    0x31 call (bp-8) rbp=bp-16
    0x34 call sp+8
    0x40 call (sp)+8 rbp=cfa-16
    0x44 call sp+8
    0x50 regs sp+0 signal
    0x58 regs sp+8 rbp=cfa+32 signal
    0x60 iret sp+8 signal
    0x70 call sp+8
    0x74 call sp+4104
    0x80 end
    0x90 call sp+16
    0x98 call sp+8
    0x9a undefined
"""


def rows_of(text: str) -> list[Row]:
    return [replace(row, ip=BASE + CODE + row.ip) for row in parse(text)]


def kernel(
    rows: list[Row], form: str, header: str | None = None, **symbols: int
) -> tuple[KernelSpace, Knowledge]:
    space = KernelSpace()
    ip, entries = pack(rows, form, BASE + IP)
    space.data[IP : IP + len(ip)] = ip
    space.data[ENTRIES : ENTRIES + len(entries)] = entries
    places = {
        "__start_orc_unwind_ip": BASE + IP,
        "__stop_orc_unwind_ip": BASE + IP + len(ip),
        "__start_orc_unwind": BASE + ENTRIES,
        "__stop_orc_unwind": BASE + ENTRIES + len(entries),
    }
    if header is not None:
        space.data[HEADER : HEADER + 20] = bytes.fromhex(header)
        places |= {"__start_orc_header": BASE + HEADER, "__stop_orc_header": BASE + HEADER + 20}
    return space, Knowledge(
        (info_of(**{f"SYMBOL_{name}": at for name, at in {**places, **symbols}.items()}),)
    )


def read(rows: list[Row], form: str, header: str | None = None, **symbols: int) -> OrcTable | None:
    space, known = kernel(rows, form, header, **symbols)
    return read_kernel_orc(space.virtual(), known, WINDOW)


def shown(table: OrcTable) -> list[tuple[int, ...]]:
    names = ("ip", "kind", "sp_base", "sp_offset", "bp_base", "bp_offset", "signal")
    return list(zip(*(getattr(table, name).tolist() for name in names), strict=True))


def expected(rows: list[Row], form: str) -> list[tuple[int, ...]]:
    """Straight from the text; a table counts registers as kernels before v7.1 do.  Before v6.3 only a frame
    of registers can be interrupted."""
    return [
        (
            row.ip,
            KINDS[row.kind],
            OLD_REGISTERS[row.sp],
            row.sp_offset,
            OLD_REGISTERS[row.rbp],
            row.rbp_offset,
            row.kind in ("regs", "iret") if form == "v4.14" else row.signal,
        )
        for row in rows
    ]


@pytest.mark.parametrize("with_header", [False, True], ids=["entries", "header"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, with_header: bool) -> None:
    rows = rows_of(EVERY_KIND)
    table = read(rows, form, HEADERS.get(form) if with_header else None)
    assert table is not None
    assert (table.format.name, table.damage, table.end) == (form, (), WINDOW[1])
    assert shown(table) == expected(rows, form)


@pytest.mark.parametrize("form", FORMS)
def test_calls_alone_are_told_apart_as_far_as_it_matters(form: str) -> None:
    """Without interrupts v4.14 and v6.3 are the same but for the end of the stack."""
    rows = [row for row in rows_of(EVERY_KIND) if row.kind in ("call", "undefined")]
    table = read(rows, form)
    assert table is not None
    assert shown(table) == expected(rows, form)


def test_a_header_is_believed_before_the_entries_and_not_against_them() -> None:
    calls = [row for row in rows_of(EVERY_KIND) if row.kind == "call" and not row.rbp]
    flags = np.array([row.flags("v6.3") for row in calls], dtype=np.uint16)
    assert identify(flags, bytes.fromhex(HEADERS["v6.3"])).name == "v6.3"
    assert identify(flags).name == "v4.14"
    assert identify(flags, bytes.fromhex(HEADERS["v6.4"])).name == "v4.14"
    assert identify(flags, b"x" * 20).name == "v4.14"


def test_the_kernel_that_has_ax_by_the_old_numbers() -> None:
    rows = rows_of("0x0 call sp+8\n0x1 call sp+16 rbp=cfa-16\n0x4 call ax+0\n0x8 call sp+8")
    table = read(rows, "v6.4")
    assert table is not None
    assert table.sp_base.tolist() == [Base.SP, Base.SP, Base.AX, Base.SP]


def test_noise_has_no_form() -> None:
    chance = np.random.default_rng(1)
    assert identify(chance.integers(0, 1 << 16, 5000).astype(np.uint16)) is None
    assert identify(np.zeros(100, dtype=np.uint16)) is None
    assert identify(np.zeros(0, dtype=np.uint16)) is None


def test_a_few_bad_entries_describe_nothing() -> None:
    rows = rows_of(EVERY_KIND)
    space, known = kernel(rows, "v6.4")
    space.put(ENTRIES + 6 * 4 + 4, "H", 0xF2F5)
    table = read_kernel_orc(space.virtual(), known, WINDOW)
    assert table is not None
    assert table.damage == ("1 entries make no sense",)
    wanted = expected(rows, "v6.4")
    assert [row for row in shown(table) if row[0] != rows[4].ip] == [*wanted[:4], *wanted[5:]]
    assert table.kind[4] == Kind.UNDEFINED


@pytest.mark.parametrize(
    "symbols",
    [
        {"__stop_orc_unwind_ip": BASE + IP},
        {"__stop_orc_unwind_ip": BASE + IP - 4},
        {"__stop_orc_unwind_ip": BASE + IP + 7},
        {"__stop_orc_unwind_ip": BASE + IP + 8},
        {"__stop_orc_unwind": BASE + ENTRIES + 6},
        {"__stop_orc_unwind": BASE},
        {
            "__stop_orc_unwind_ip": BASE + IP + (1 << 40),
            "__stop_orc_unwind": BASE + ENTRIES + (1 << 40) // 4 * 6,
        },
    ],
    ids=str,
)
def test_sizes_that_lie(symbols: dict[str, int]) -> None:
    assert read(rows_of(EVERY_KIND), "v6.4", None, **symbols) is None


def test_no_symbols() -> None:
    assert read_kernel_orc(KernelSpace().virtual(), Knowledge((info_of(),)), WINDOW) is None


def test_entries_out_of_order_and_out_of_the_kernel() -> None:
    rows = rows_of(EVERY_KIND)
    moved = [*rows[:3], rows[5], rows[3], rows[4], *rows[6:]]
    outside = [replace(rows[1], ip=BASE + CODE - 0x100), *moved, replace(rows[1], ip=WINDOW[1])]
    table = read(outside, "v6.4")
    assert table is not None
    assert table.damage == ("1 entries are out of order", "2 entries are of no code of the kernel")
    assert shown(table) == expected(rows, "v6.4")


def test_of_two_entries_for_an_address_the_frame_counts() -> None:
    """The other one ends the code of the object file before (kernel: orc_sort_cmp())."""
    rows = rows_of("0x0 call sp+8\n0x4 undefined\n0x4 call sp+8\n0x8 call sp+16\n0x8 undefined")
    table = read(rows, "v6.4")
    assert table is not None
    assert shown(table) == expected([rows[0], rows[2], rows[3]], "v6.4")


@dataclass(frozen=True)
class Holes:
    """A kernel's memory of which some bytes are not there."""

    space: KernelSpace
    low: int
    high: int

    def read_present(self, vaddr: int, view: memoryview) -> list[tuple[int, int]]:
        at = vaddr - BASE
        view[:] = self.space.data[at : at + len(view)]
        low, high = max(self.low - at, 0), min(self.high - at, len(view))
        if low >= high:
            return []
        view[low:high] = bytes(high - low)
        return [(low, high)]


def test_what_is_not_in_the_dump_is_not_made_up() -> None:
    rows = rows_of(EVERY_KIND)
    space, known = kernel(rows, "v6.4")
    wanted = expected(rows, "v6.4")
    # entries 3 to 5, in part
    table = read_kernel_orc(Holes(space, ENTRIES + 20, ENTRIES + 31), known, WINDOW)
    assert table is not None
    assert table.damage == ("3 entries are not in the dump",)
    assert table.kind[3:6].tolist() == [Kind.UNDEFINED] * 3
    assert shown(table)[:3] + shown(table)[6:] == wanted[:3] + wanted[6:]
    # addresses of entries 3 and 4: where the second ends is not known either
    table = read_kernel_orc(Holes(space, IP + 12, IP + 19), known, WINDOW)
    assert table is not None
    assert table.damage == ("1 entries are not in the dump",)
    assert table.kind[2] == Kind.UNDEFINED
    assert shown(table)[:2] + shown(table)[3:] == wanted[:2] + wanted[5:]


# ---- parts of tables ---------------------------------------------------------------------------------


def test_described_code_is_left_out_but_where_the_stack_is_switched() -> None:
    rows = rows_of("0x0 call sp+8\n0x10 call sp+16\n0x20 call (sp)+16\n0x30 call sp+8\n0x40 undefined")
    table = read(rows, "v6.4")
    assert table is not None
    start, end = (
        np.array(column, dtype=np.uint64) + np.uint64(BASE + CODE) for column in ([8, 0x34], [0x32, 0x40])
    )
    rest = without(table, Ranges(start, end))
    assert [
        (ip - BASE - CODE, kind) for ip, kind in zip(rest.ip.tolist(), rest.kind.tolist(), strict=True)
    ] == [
        (0, 2),
        (8, 0),
        (0x20, 2),
        (0x30, 0),
        (0x32, 2),
        (0x34, 0),
    ]
    assert rest.sp_base.tolist()[2] == Base.SP_INDIRECT


def test_joined_tables_don_t_reach_into_each_other() -> None:
    low = read(rows_of("0x0 call sp+8\n0x10 call sp+16"), "v6.4")
    high = read(rows_of("0x100 call sp+8\n0x110 call sp+16"), "v6.4")
    assert low is not None
    assert high is not None
    start = BASE + CODE
    table = joined([replace(high, end=start + 0x120), replace(low, end=start + 0x20)])
    assert [(ip - start, kind) for ip, kind in zip(table.ip.tolist(), table.kind.tolist(), strict=True)] == [
        (0, 2),
        (0x10, 2),
        (0x20, 0),
        (0x100, 2),
        (0x110, 2),
        (0x120, 0),
    ]
    # the end of one at the start of the other
    touching = joined([replace(low, end=start + 0x100), high])
    assert touching.kind.tolist() == [2, 2, 2, 2, 0]
    with pytest.raises(ValueError, match="no tables"):
        joined([])


# ---- modules -----------------------------------------------------------------------------------------

MODULES, FIRST, SECOND = 0x100000, 0x110000, 0x120000
OFFSETS = {
    "OFFSET_module__list": 8,
    "OFFSET_module__name": 0x18,
    "OFFSET_module__arch": 0x100,
    "OFFSET_mod_arch_specific__num_orcs": 0,
    "OFFSET_mod_arch_specific__orc_unwind_ip": 8,
    "OFFSET_mod_arch_specific__orc_unwind": 16,
}
LAYOUTS = {
    "mem": {"OFFSET_module__mem": 0x80, "OFFSET_module_memory__base": 0, "OFFSET_module_memory__size": 8},
    "core_layout": {
        "OFFSET_module__core_layout": 0x80,
        "OFFSET_module_layout__base": 0,
        "OFFSET_module_layout__size": 8,
    },
    "module_core": {"OFFSET_module__module_core": 0x80, "OFFSET_module__core_size": 0x88},
}
OF_MODULE = "0x0 call sp+8\n0x1 call sp+16\n0x20 undefined\n0x8000 call sp+8\n0x8010 undefined"
"""What lies at 0x8000 is init code, which is gone."""


def modules(layout: str, names: tuple[bytes, ...] = (b"one", b"two")) -> tuple[KernelSpace, Knowledge]:
    space = KernelSpace()
    nodes = [MODULES, *(FIRST + number * (SECOND - FIRST) + 8 for number in range(len(names)))]
    for number, node in enumerate(nodes):
        after, before = nodes[(number + 1) % len(nodes)], nodes[number - 1]
        space.put(node, "QQ", BASE + after, BASE + before)
    for node, name in zip(nodes[1:], names, strict=True):
        at = node - 8
        space.data[at + 0x18 : at + 0x18 + len(name)] = name
        code = BASE + at + 0x8000
        rows = [replace(row, ip=code + row.ip) for row in parse(OF_MODULE)]
        ip, entries = pack(rows, "v6.4", BASE + at + 0x2000)
        space.data[at + 0x2000 : at + 0x2000 + len(ip)] = ip
        space.data[at + 0x3000 : at + 0x3000 + len(entries)] = entries
        space.put(at + 0x100, "IIQQ", len(rows), 0, BASE + at + 0x2000, BASE + at + 0x3000)
        space.put(at + 0x80, "QI", code, 0x1000)
    known = Knowledge((info_of(**OFFSETS, **LAYOUTS[layout], SYMBOL_modules=BASE + MODULES),))
    return space, known


@pytest.mark.parametrize("layout", LAYOUTS)
def test_modules(layout: str) -> None:
    space, known = modules(layout)
    found = read_module_orc(space.virtual(), known, FORMATS[2])
    assert [(module.name, module.table.damage) for module in found] == [("one", ()), ("two", ())]
    code = BASE + SECOND + 0x8000
    assert [(ip - code, kind) for ip, kind, *_ in shown(found[1].table)] == [(0, 2), (1, 2), (0x20, 0)]
    assert found[1].table.end == code + 0x1000


@pytest.mark.parametrize(
    ("at", "layout", "values"),
    [
        (0x100, "I", (0,)),
        (0x100, "I", (0xFFFFFFFF,)),
        (0x100, "I", (0x1001,)),
        (0x108, "Q", (BASE + ROOM + 1,)),
        (0x88, "I", (0,)),
        (0x88, "I", (0x7FFFFFFF,)),
        (0x80, "Q", (0x1000,)),
        (0x80, "Q", ((1 << 64) - 0x800,)),
    ],
    ids=str,
)
def test_a_module_that_lies_is_left_out(at: int, layout: str, values: tuple[int, ...]) -> None:
    space, known = modules("mem")
    space.put(FIRST + at, layout, *values)
    found = read_module_orc(space.virtual(), known, FORMATS[2])
    assert [module.name for module in found] == ["two"]


def test_entries_that_describe_nothing_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is what takes the time: a list of liars would have gone on for hours."""
    monkeypatch.setattr("kdump_elftool.kernel.module_orc.MOST_ENTRIES", 7)
    space, known = modules("mem")
    assert [module.name for module in read_module_orc(space.virtual(), known, FORMATS[2])] == ["one"]
    # none of the first one's five entries is of its code
    space.put(FIRST + 0x80, "QI", BASE, 0x1000)
    assert read_module_orc(space.virtual(), known, FORMATS[2]) == []


def test_names_of_modules_are_printable() -> None:
    space, known = modules("mem", (b"\x1b[2J\nshell",))
    found = read_module_orc(space.virtual(), known, FORMATS[2])
    assert [module.name for module in found] == [r"\x1b[2J\x0ashell"]


def test_types_that_are_not_known() -> None:
    space, _ = modules("mem")
    assert read_module_orc(space.virtual(), Knowledge((info_of(SYMBOL_modules=BASE + MODULES),)), V4_14) == []


def test_an_empty_table_has_nothing_to_leave_out() -> None:
    table = read(rows_of("0x0 call sp+8"), "v6.4")
    assert table is not None
    assert without(table, Ranges(u64([]), u64([]))) is table
