"""ARM descriptors of both formats, where the kernel is, and where registers of sleeping tasks are."""

from __future__ import annotations

import random

import pytest

from kdump_elftool.addr import NO_RANGES, Ranges, u64
from kdump_elftool.arch import find_architecture
from kdump_elftool.arch.arm import ARCH
from kdump_elftool.arch.base import Entry, Level, PagingForm
from kdump_elftool.arch.walker import Window, walk
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from tests.builders.arm_tables import SIZE_1G, SIZE_1M, SIZE_2M, SIZE_16M, LongTables, ShortTables
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import Ram

PLACED = "SYMBOL(swapper_pg_dir)=c0204000\nSYMBOL(_stext)=c0300000\n"


def info(text: str = "") -> VmcoreInfo:
    return parse(f"OSRELEASE=6.1.0\n{text}".encode())


SHORT, LONG = ARCH.forms(info(), "<")
LEVELS = {f"{form.name[4:]} {level.name}": (form, level) for form in (SHORT, LONG) for level in form.levels}


def test_registry():
    assert find_architecture(40, 32) is ARCH
    assert (ARCH.bits, ARCH.byte_orders) == (32, {"<": "arm", ">": "armeb"})


def both(form: PagingForm, level: Level, entry: int, raw: int) -> Entry:
    """What the two decoders agree on."""
    single = form.decode_one(entry, level, raw)
    column = form.decode(u64([entry]), level, u64([raw]))
    kinds = (bool(column.table[0]), bool(column.leaf[0]))
    assert kinds == (single.kind == "table", single.kind == "leaf")
    if single.kind != "none":
        assert int(column.paddr[0]) == single.paddr
    return single


@pytest.mark.parametrize(
    ("level", "entry", "raw", "kind", "paddr"),
    [
        ("short pgd", 0, 0, "none", 0),
        ("short pgd", 0xFFFFFFFC, 0, "none", 0),
        ("short pgd", 0x412345E1, 0, "table", 0x41234400),
        ("short pgd", 0x4121941E, 0xC1200000, "leaf", 0x41200000),
        ("short pgd", 0x4121941F, 0xC1200000, "leaf", 0x41200000),  # PXN
        ("short pgd", 0x4125941E, 0xC1200000, "leaf", 0x241200000),  # supersection: bits 35:32
        ("short pgd", 0x4104041E, 0xCF300000, "leaf", 0x41300000),
        ("short pgd", 0x41F5D5FE | 1 << 18, 0xCFF00000, "leaf", 0xFF41F00000),  # and 39:36
        ("short pte", 0, 0, "none", 0),
        ("short pte", 0x4123445C, 0, "none", 0),
        ("short pte", 0x4123445E, 0xC1234000, "leaf", 0x41234000),
        ("short pte", 0x4123445F, 0xC1234000, "leaf", 0x41234000),  # never executed
        ("short pte", 0x4123FFFD, 0xC1235000, "leaf", 0x41235000),  # large page
        ("LPAE pgd", 0x42, 0, "none", 0),
        ("LPAE pgd", 0xF800FF41234003, 0, "table", 0xFF41234000),
        ("LPAE pgd", 0x71140000721, 0x40000000, "leaf", 0x1140000000),
        ("LPAE pmd", 0x60000041200711, 0, "leaf", 0x41200000),
        ("LPAE pmd", 0x41234003, 0, "table", 0x41234000),
        ("LPAE pte", 0x60000041234713, 0, "leaf", 0x41234000),
        ("LPAE pte", 0x41234711, 0, "none", 0),  # no block in the last level
        ("LPAE pte", 0x41234712, 0, "none", 0),
    ],
)
def test_entry(level, entry, raw, kind, paddr):
    decoded = both(*LEVELS[level], entry, raw)
    assert (decoded.kind, decoded.paddr if kind != "none" else 0) == (kind, paddr)


@pytest.mark.parametrize("name", LEVELS)
def test_column_equals_single_on_random_entries(name):
    form, level = LEVELS[name]
    chance = random.Random(name)
    for _ in range(3000):
        raw = chance.getrandbits(32) >> level.shift << level.shift
        decoded = both(form, level, chance.getrandbits(8 * level.entry), raw)
        assert decoded.kind == "none" or decoded.paddr < 1 << 40
        assert decoded.kind != "leaf" or decoded.paddr % min(level.span, 4096) == 0
        assert decoded.kind != "table" or level is not form.levels[-1]


def test_tables_have_the_sizes_of_the_hardware():
    assert [level.table_size for level in SHORT.levels] == [16384, 1024]
    assert [level.table_size for level in LONG.levels] == [32, 4096, 4096]
    assert (SHORT.va_bits, LONG.va_bits) == (32, 32)
    assert (SHORT.physmem_bits, LONG.physmem_bits) == (36, 36)


@pytest.mark.parametrize("size", [SIZE_1M, SIZE_16M])
def test_sections(size):
    ram = Ram([(0, 0x40000)])
    tables = ShortTables(ram, lambda _size: 0x4000)
    tables.map(0xC0000000, 0x41000000, size)
    found = walk(ram_memory(ram), SHORT, tables.root, Window(0, 1 << 32)).mappings
    assert columns(found.vaddr, found.paddr, found.size) == [(0xC0000000, 0x41000000, size)]


def test_blocks():
    ram, free = Ram([(0, 0x40000)]), iter(range(0x4000, 0x40000, 0x1000))
    tables = LongTables(ram, lambda _size: next(free))
    tables.map(0x40000000, 0xFF80000000, SIZE_1G)
    tables.map(0xC0200000, 0x41200000, SIZE_2M)
    found = walk(ram_memory(ram), LONG, tables.root, Window(0, 1 << 32)).mappings
    assert columns(found.vaddr, found.paddr, found.size) == [
        (0x40000000, 0xFF80000000, SIZE_1G),
        (0xC0200000, 0x41200000, SIZE_2M),
    ]


def test_the_config_line_decides_which_form_is_tried_first():
    assert [form.name for form in ARCH.forms(info("CONFIG_ARM_LPAE=y\n"), "<")] == ["arm LPAE", "arm short"]
    assert [form.name for form in ARCH.forms(info(), "<")] == ["arm short", "arm LPAE"]


def test_tables_are_in_the_order_of_the_dump():
    assert {form.byte_order for form in ARCH.forms(info(), ">")} == {">"}
    assert {form.byte_order for form in ARCH.forms(info(), "<")} == {"<"}


def test_what_is_the_kernels():
    placed = ARCH.forms(info(PLACED), "<")[0]
    assert 0xBF000000 in placed.kernel and 0xFFFF1000 in placed.kernel and 0xC0000000 in placed.kernel
    assert 0x10000 in placed.user and 0x10000 not in placed.kernel
    assert 0x10000 in SHORT.kernel and not range(SHORT.user.start, SHORT.user.end)
    assert not placed.is_canonical(1 << 32)


def ram(*starts: int) -> Ranges:
    return Ranges(u64(starts), u64([start + 0x800000 for start in starts]))


@pytest.mark.parametrize(
    ("swapper", "vaddr", "starts", "paddrs"),
    [
        (0xC0204000, 0xC0300000, [0x40000000], [0x40300000]),
        (0xC0004000, 0xC0008000, [0x80201000], [0x80208000, 0x80008000]),
        (0x80004000, 0x80100000, [0x10000000, 0x60000000], [0x10100000, 0x60100000]),
        (0xB0004000, 0xB0100000, [0], [0x100000]),
        (0x40004000, 0x40100000, [0x880000000], [0x880100000]),
        (0xC0204000, 0xBF000000, [0x40000000], []),
        (0xC0204000, 0xC5000000, [0x40000000], []),
        (0x20204000, 0x20300000, [0x40000000], []),
        (0x1C0204000, 0x1C0300000, [0x40000000], []),
    ],
)
def test_where_the_image_may_be(swapper, vaddr, starts, paddrs):
    known = info(f"SYMBOL(swapper_pg_dir)={swapper:x}\n")
    assert ARCH.image_paddrs(known, vaddr, ram(*starts)) == tuple(dict.fromkeys(paddrs))
    assert ARCH.image_paddrs(known, vaddr, NO_RANGES) == ()


def test_a_kernel_that_says_nothing():
    assert ARCH.image_paddrs(info(), 0xC0300000, ram(0x40000000)) == ()
    assert ARCH.image_window(info()) == (0x40000000, 0xFFFF0000)
    assert ARCH.image_window(info(PLACED)) == (0xC0000000, 0xC4000000)
    assert ARCH.running_tables(info(), {"ttbr0": 0x4000}) == ()


def test_many_pieces_of_ram_are_few_places():
    starts = u64(range(0, 1 << 30, 1 << 21))
    many = Ranges(starts, starts + u64([4096]))
    assert len(ARCH.image_paddrs(info(PLACED), 0xC0300000, many)) <= 128


CONTEXT = "OFFSET(thread_info.cpu_context)=28\n" + "".join(
    f"OFFSET(cpu_context_save.{member})={4 * at}\n"
    for at, member in enumerate("r4 r5 r6 r7 r8 r9 sl fp sp pc".split())
)
SAVED = {"r4": 0, "r5": 4, "r6": 8, "r7": 12, "r8": 16, "r9": 20, "r10": 24, "r11": 28, "sp": 32, "pc": 36}


def context(text: str):
    def nothing(vaddr: int, size: int) -> bytes:
        raise FaultError("vaddr", vaddr, "not mapped")

    return ARCH.saved_context(Knowledge((parse(text.encode()),)), nothing)


def test_registers_in_the_task():
    found = context(CONTEXT + "OFFSET(task_struct.thread_info)=0\nOFFSET(task_struct.stack)=12\n")
    assert found is not None
    assert (found.pointer, found.inside, found.stack_pointer) == (28, True, "sp")
    assert dict(found.registers) == SAVED
    assert found.constants == (("cpsr", 0x13),)


def test_registers_below_the_stack():
    found = context(CONTEXT + "OFFSET(task_struct.stack)=12\n")
    assert found is not None
    assert (found.pointer, found.inside, found.stack_pointer) == (12, False, "sp")
    assert dict(found.registers) == {name: 28 + offset for name, offset in SAVED.items()}


@pytest.mark.parametrize(
    "text", ["", CONTEXT, "OFFSET(thread_info.cpu_context)=28\nOFFSET(task_struct.stack)=4\n"]
)
def test_too_little_is_known(text):
    assert context(text) is None


def test_prstatus_layout_is_the_kernels():
    """struct elf_prstatus of 32 bits: signals, four ids, four times of 8 bytes, 18 words, pr_fpvalid."""
    layout = ARCH.prstatus
    assert (layout.size, layout.pid_offset, layout.regs_offset, layout.word) == (148, 24, 72, 4)
    assert layout.pid_offset == 12 + 4 + 2 * 4
    assert layout.regs_offset + 4 * len(layout.registers) + 4 == layout.size
    assert [layout.register_offset(name) for name in ("r0", "sp", "lr", "pc", "cpsr")] == [
        72,
        124,
        128,
        132,
        136,
    ]
