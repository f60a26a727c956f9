"""Call frames made of ORC tables: every address unwinds as the kernel itself unwinds it."""

from __future__ import annotations

import random
import subprocess
import tempfile
from bisect import bisect_right
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.addr import u64
from kdump_elftool.dwarf.orc_to_frames import orc_to_frames
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, symbol_file
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.orc import OrcTable, read_kernel_orc
from tests.builders.orc import FORMS, Row, pack
from tests.builders.unwind import RIP, RSP, CallFrames, by_orc
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

IP, ENTRIES, CODE, END = 0x1000, 0x8000, 0x10000, 0x7F0000
OFFSETS = st.one_of(
    st.integers(-64, 600).map(lambda words: words * 8),
    st.integers(-32768, 32767),
    st.sampled_from([8, 16, 0]),
)
CALLS = st.builds(
    Row,
    ip=st.just(0),
    kind=st.just("call"),
    sp=st.sampled_from(["sp", "sp", "sp", "bp", "r10", "r13", "di", "dx", "(bp)", "(sp)"]),
    sp_offset=OFFSETS,
    rbp=st.sampled_from(["", "cfa", "bp"]),
    rbp_offset=OFFSETS,
    signal=st.booleans(),
)
ENTRY = st.just(Row(0, "call", "sp", 8))
FRAMES = st.builds(
    Row,
    ip=st.just(0),
    kind=st.sampled_from(["regs", "iret"]),
    sp=st.sampled_from(["sp", "sp", "bp", "di", "(sp)"]),
    sp_offset=OFFSETS,
    rbp=st.sampled_from(["", "", "cfa"]),
    rbp_offset=OFFSETS,
    signal=st.booleans(),
)
NONE = st.sampled_from([Row(0, "undefined"), Row(0, "end")])
DISTANCES = st.sampled_from([1, 2, 5, 15, 63, 64, 255, 256, 1000, 65535, 65536, 70000])


class Memory(dict):
    """Any word, decided by its address."""

    def __missing__(self, address: int) -> int:
        return random.Random(address).getrandbits(64)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    rows = draw(st.lists(st.one_of(ENTRY, CALLS, CALLS, FRAMES, NONE), min_size=1, max_size=24))
    ip, placed = BASE + CODE, []
    for row in rows:
        placed.append(replace(row, ip=ip))
        ip += draw(DISTANCES)
    # a kernel is mostly calls: by them its form is recognised
    placed += [Row(ip + 16 * number, "call", "sp", 8 * (1 + number % 3)) for number in range(len(rows) + 2)]
    placed += [
        Row(ip + 16 * len(placed), "end"),
        Row(ip + 16 * len(placed) + 4, "regs", "sp", 0, "", 0, True),
    ]
    return [*placed, Row(ip + 16 * len(placed) + 40, "undefined")]


def read(ip: bytes, entries: bytes) -> OrcTable | None:
    """Out of a kernel that has these tables."""
    space = KernelSpace()
    space.data[IP : IP + len(ip)] = ip
    space.data[ENTRIES : ENTRIES + len(entries)] = entries
    known = info_of(
        SYMBOL___start_orc_unwind_ip=BASE + IP,
        SYMBOL___stop_orc_unwind_ip=BASE + IP + len(ip),
        SYMBOL___start_orc_unwind=BASE + ENTRIES,
        SYMBOL___stop_orc_unwind=BASE + ENTRIES + len(entries),
    )
    return read_kernel_orc(space.virtual(), Knowledge((known,)), (BASE + CODE, BASE + END))


def frame_file(
    table: OrcTable,
    *,
    switch_is_signal: bool = False,
    functions: list[int] | None = None,
    entry_text: tuple[int, int] | None = None,
) -> bytes:
    starts = None if functions is None else u64(functions)
    data = orc_to_frames(table, functions=starts, entry_text=entry_text, switch_is_signal=switch_is_signal)
    return symbol_file(ElfKind(64, "<"), 62, [Section(".debug_frame", data=data, align=8)])


def made(
    rows: list[Row],
    form: str,
    *,
    switch_is_signal: bool = False,
    functions: list[int] | None = None,
    entry_text: tuple[int, int] | None = None,
) -> bytes:
    table = read(*pack(rows, form, BASE + IP))
    assert table is not None
    assert (table.format.name, table.damage) == (form, ())
    return frame_file(table, switch_is_signal=switch_is_signal, functions=functions, entry_text=entry_text)


def check(rows: list[Row], elf: bytes, form: str, *, switch_is_signal: bool = False) -> int:
    """Compares the two unwinders at the first and last address of each row; returns how many had a caller."""
    frames, memory = CallFrames(elf), Memory()
    starts = [row.ip for row in rows]
    unwound = 0
    for pc in sorted({pc for start in starts for pc in (start, start - 1) if pc >= starts[0]}):
        row = rows[bisect_right(starts, pc) - 1]
        registers = {number: random.Random(number).getrandbits(47) for number in range(16)} | {RIP: pc}
        wanted, found = by_orc(row, registers, memory), frames.step(pc, registers, memory)
        if wanted is None:
            assert found is None, (hex(pc), row)
            # no caller known is not the same as no caller
            assert (frames.of(pc) is None) == (row.kind == "undefined"), (hex(pc), row)
            continue
        assert found is not None, (hex(pc), row)
        unwound += 1
        # what a call may change is not told by either
        told = {number: found.registers.get(number) for number in (*wanted.registers,)}
        assert told == wanted.registers, (hex(pc), row)
        lost = {3, 12, 13, 14, 15} - set(wanted.registers)
        assert lost.isdisjoint(found.registers), (hex(pc), row)
        always = form == "v4.14" and row.kind in ("regs", "iret")
        switches = switch_is_signal and row.kind == "call" and row.sp == "(sp)"
        assert found.signal == (always or switches or (form != "v4.14" and row.signal)), (hex(pc), row)
        assert wanted.registers[RSP] == found.registers[RSP]
    return unwound


def plausible(rows: list[Row], form: str) -> list[Row]:
    """v4.14 has no mark for calls that are interrupted."""
    if form != "v4.14":
        return rows
    return [replace(row, signal=row.kind in ("regs", "iret")) for row in rows]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(rows=tables())
def test_every_address_unwinds_as_in_the_kernel(form: str, rows: list[Row]) -> None:
    rows = plausible(rows, form)
    assert check(rows, made(rows, form), form) > 2


@settings(max_examples=15)
@given(rows=tables())
def test_a_switch_of_stacks_may_be_marked_like_an_interrupt(rows: list[Row]) -> None:
    assert check(rows, made(rows, "v6.4", switch_is_signal=True), "v6.4", switch_is_signal=True) > 2


@settings(max_examples=25)
@given(rows=tables(), seed=st.integers(0, 1 << 30))
def test_functions_have_descriptions_of_their_own(rows: list[Row], seed: int) -> None:
    """They begin anywhere; what is described is the same, but for padding between two rows of a function."""
    chance = random.Random(seed)
    chosen = [row.ip for row in rows if chance.random() < 0.3]
    functions = [*chosen, *(ip + chance.randrange(16) for ip in chosen), 0, BASE + END, BASE + CODE - 1]
    elf = made(rows, "v6.4", functions=functions)
    first, last = rows[0].ip, rows[-1].ip
    inside = {start for start in functions if first <= start < last}
    kept = [
        row
        for at, row in enumerate(rows)
        if not (
            row.kind == "undefined"
            and 0 < at < len(rows) - 1
            and "undefined" not in (rows[at - 1].kind, rows[at + 1].kind)
            and rows[at + 1].ip - row.ip < 32
            and inside.isdisjoint(range(row.ip, rows[at + 1].ip + 1))
        )
    ]
    assert check(kept, elf, "v6.4") > 2
    begun = {fde["initial_location"] for fde in CallFrames(elf).fdes}
    for start in inside:
        described = rows[bisect_right([row.ip for row in rows], start) - 1].kind != "undefined"
        assert (start in begun) == described, hex(start)


def test_a_function_that_returns_early_has_one_description() -> None:
    """lldb looks for no second one.  Behind the first return is padding without entry, then code goes on."""
    text = BASE + CODE
    body = [Row(text, "call", "sp", 8), Row(text + 1, "call", "sp", 16), Row(text + 8, "call", "sp", 8)]
    body += [Row(text + 9, "undefined"), Row(text + 16, "call", "sp", 16), Row(text + 24, "call", "sp", 8)]
    rest = [Row(text + 40, "undefined"), Row(text + 80, "regs", "sp", 0, "", 0, True)]
    rows = [*body, *rest, Row(text + 84, "undefined")]
    frames = CallFrames(made(rows, "v6.4", functions=[text, text + 32]))
    places = sorted((fde["initial_location"] - text, fde["address_range"]) for fde in frames.fdes)
    assert places == [(0, 32), (32, 8), (80, 4)]


@settings(max_examples=25)
@given(rows=tables(), seed=st.integers(0, 1 << 30))
def test_what_enters_the_kernel_unwinds_as_in_the_kernel(rows: list[Row], seed: int) -> None:
    """In the entry text frames of registers and ends of the stack share the description of their function."""
    chance = random.Random(seed)
    functions = [row.ip for row in rows if chance.random() < 0.3]
    # no padding: what is told of that is tested above
    rows = [replace(row, kind="end") if row.kind == "undefined" and row != rows[-1] else row for row in rows]
    elf = made(rows, "v6.4", functions=functions, entry_text=(rows[0].ip, rows[-1].ip))
    assert check(rows, elf, "v6.4") > 2


def entering(text: int) -> list[Row]:
    """The stack's end, then the CPU's frame, then all registers: as of entry_SYSCALL_64, of asm_exc_*, and of
    ret_from_fork, which calls the function of a thread where the stack ends."""
    kinds = ["end", "regs", "iret", "regs", "end", "regs", "end", "undefined"]
    rows = [Row(text + 8 * at, kind) for at, kind in enumerate(kinds)]
    return [
        replace(row, sp="sp", sp_offset=8 * at, signal=True) if row.kind in ("regs", "iret") else row
        for at, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("entry_text", "wanted"),
    [
        ((0, 0x1000), [(0, 16, b"zS"), (16, 16, b"zS"), (32, 24, b"zS")]),
        ((0x1000, 0x2000), [(0, 16, b""), (16, 16, b"zS"), (32, 24, b"")]),
        (None, [(0, 8, b""), (8, 8, b"zS"), (16, 16, b"zS"), (32, 8, b""), (40, 8, b"zS"), (48, 8, b"")]),
    ],
    ids=["entry", "elsewhere", "not known"],
)
def test_a_function_that_enters_has_one_description(
    entry_text: tuple[int, int] | None, wanted: list[tuple[int, int, bytes]]
) -> None:
    """gdb prints the name of ret_from_fork as long as no mark is on its description."""
    text = BASE + CODE
    rows = entering(text)
    calls = [Row(text + 0x2000 + 4 * at, "call", "sp", 8 + 8 * (at % 2)) for at in range(16)]
    place = None if entry_text is None else (text + entry_text[0], text + entry_text[1])
    elf = made(
        [*rows, *calls], "v6.4", functions=[text, text + 16, text + 32, text + 0x2000], entry_text=place
    )
    frames, memory = CallFrames(elf), Memory()
    found = [
        (fde["initial_location"] - text, fde["address_range"], fde.cie["augmentation"]) for fde in frames.fdes
    ]
    assert sorted(found)[:-1] == wanted
    for row in rows[:-1]:
        registers = {number: random.Random(number).getrandbits(47) for number in range(16)} | {RIP: row.ip}
        should, does = by_orc(row, registers, memory), frames.step(row.ip, registers, memory)
        assert (does is None) == (should is None)
        if should is not None and does is not None:
            assert should.registers.items() <= does.registers.items(), row


@settings(max_examples=10)
@given(rows=tables())
def test_readelf_has_no_complaint(rows: list[Row]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(made(rows, "v6.4"))
        file.flush()
        for what in ("frames", "frames-interp"):
            shown = subprocess.run(
                ["readelf", f"--debug-dump={what}", file.name], capture_output=True, text=True
            )
            assert (shown.returncode, shown.stderr) == (0, ""), shown.stderr
            assert "FDE" in shown.stdout
            assert "warning" not in shown.stdout.lower()


def test_long_runs_are_cut() -> None:
    rows = [Row(BASE + CODE + 4 * number, "call", "sp", 16 + 8 * (number % 50)) for number in range(600)]
    rows += [Row(rows[-1].ip + 4, "end"), Row(rows[-1].ip + 8, "regs", "sp", 0, "", 0, True)]
    rows += [Row(rows[-1].ip + 4, "undefined")]
    elf = made(rows, "v6.4")
    assert check(rows, elf, "v6.4") == 2 * 601
    assert len(CallFrames(elf).fdes) == 3 + 2


@settings(max_examples=40)
@given(rows=tables(), seed=st.integers(0, 1 << 30), damaged=st.integers(1, 12))
def test_damaged_tables_describe_less_and_never_twice(rows: list[Row], seed: int, damaged: int) -> None:
    """Bytes of either table changed at random: descriptions stay within the kernel and don't overlap."""
    chance = random.Random(seed)
    parts = [bytearray(part) for part in pack(rows, "v6.4", BASE + IP)]
    for part in parts:
        for _ in range(damaged):
            part[chance.randrange(len(part))] = chance.randrange(256)
    table = read(*map(bytes, parts))
    if table is None:
        return
    fdes = CallFrames(frame_file(table)).fdes
    places = sorted((fde["initial_location"], fde["address_range"]) for fde in fdes)
    ends = [BASE + CODE, *(start + size for start, size in places)]
    assert all(size and start >= end for (start, size), end in zip(places, ends[:-1], strict=True))
    assert ends[-1] <= BASE + END
