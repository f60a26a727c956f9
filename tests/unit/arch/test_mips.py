"""MIPS: windows without tables, software tables of all builds and both byte orders, register notes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kdump_elftool.arch import find_architecture
from kdump_elftool.arch.mips import ARCH32, ARCH64
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.elf.constants import EM_MIPS
from kdump_elftool.errors import NotMappedError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.vmcoreinfo import parse
from tests.builders.dumps import columns, ram_memory
from tests.builders.kernel import Ram
from tests.builders.mips_tables import MipsTables, Shape, plain_fixed, plain_translate

SIZE = 64 << 20
SHAPES = [
    Shape(4, order, page, bits, pfn)
    for order in "<>"
    for page, bits, pfn in ((12, (10, 10), 12), (12, (10, 10), 11), (14, (6, 12), 14))
] + [
    Shape(8, order, page, bits, pfn, huge)
    for order in "<>"
    for page, bits, pfn, huge in (
        (12, (10, 9, 9), 14, 16),
        (12, (9, 9, 9, 9), 13, 32),
        (14, (11, 11, 11), 16, 16),
        (16, (13, 13), 18, 0),
    )
]
NAMES = ("swapper_pg_dir", "invalid_pud_table", "invalid_pmd_table", "invalid_pte_table")


def said(shape: Shape) -> str:
    """What the debugging information of such a build says."""
    names = {2: (NAMES[0], NAMES[3]), 3: (NAMES[0], *NAMES[2:]), 4: NAMES}[len(shape.bits)]
    lines = [f"LENGTH({name})={1 << bits}" for name, bits in zip(names, shape.bits, strict=True)]
    cache = shape.pfn_shift - 3 - (shape.page_shift - 12)
    lines += [f"NUMBER(_CACHE_SHIFT)={cache}", "NUMBER(_PAGE_PRESENT_SHIFT)=0"]
    if shape.huge:
        lines.append(f"NUMBER(_PAGE_HUGE_SHIFT)={shape.huge.bit_length() - 1}")
    return "\n".join(lines)


def tables(shape: Shape) -> tuple[Ram, MipsTables]:
    ram, place = Ram([(0, SIZE)]), [0x100000]

    def allocate(size: int) -> int:
        page = 1 << shape.page_shift
        at = -(-place[0] // page) * page
        place[0] = at + size
        return at

    return ram, MipsTables(ram, allocate, shape)


def form_of(shape: Shape, text: str | None = None):
    arch = ARCH32 if shape.word == 4 else ARCH64
    return arch.forms(parse((said(shape) if text is None else text).encode()), shape.order)


def kernel_addresses(shape: Shape) -> tuple[int, int]:
    """Raw addresses in the space for vmalloc and, 64-bit, in that for modules."""
    if shape.word == 4:
        return 0xC0000000, 0xF0000000
    top = 1 << shape.page_shift + sum(shape.bits)
    return 0, top - 0x40000000


def full(shape: Shape, raw: int) -> int:
    if shape.word == 4:
        return raw
    top = 1 << shape.page_shift + sum(shape.bits)
    return raw + ((1 << 64) - top if raw >= top - 0x40000000 else 0xC000000000000000)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tables(shape):
    """Every page of a random set, by the walk, one by one and by the plain reader."""
    ram, made = tables(shape)
    choice, page = random.Random(1), 1 << shape.page_shift
    mapped = {}
    for start in kernel_addresses(shape):
        for number in choice.sample(range(1000), 200):
            raw, paddr = start + number * page, choice.randrange(SIZE // page) * page
            made.map(raw, paddr)
            mapped[full(shape, raw)] = paddr
    (form,) = form_of(shape)
    memory = ram_memory(ram)
    found = walk(memory, replace(form, fixed=()), made.root, Window(*form.kernel_span))
    assert found.lost == ()
    pages = {
        vaddr + done: paddr + done
        for vaddr, paddr, size in columns(found.mappings.vaddr, found.mappings.paddr, found.mappings.size)
        for done in range(0, size, page)
    }
    assert pages == mapped
    for _ in range(1000):
        vaddr = full(shape, choice.choice(kernel_addresses(shape)) + choice.randrange(1000 * page))
        expected = plain_translate(ram.read, shape, made.root, vaddr)
        try:
            ours = translate(memory, form, made.root, vaddr).paddr
        except NotMappedError:
            ours = None
        assert ours == expected


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.huge], ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_huge_pages(shape, known):
    ram, made = tables(shape)
    span = 1 << shape.shift(len(shape.bits) - 2)
    made.map_huge(3 * span, 7 * span)
    text = said(shape) if known else said(shape).replace("_PAGE_HUGE_SHIFT", "nothing")
    (form,) = form_of(shape, text)
    vaddr = 0xC000000000000000 + 3 * span + 0x1234
    memory = ram_memory(ram)
    assert translate(memory, form, made.root, vaddr).paddr == 7 * span + 0x1234
    found = walk(memory, replace(form, fixed=()), made.root, Window(*form.kernel_span)).mappings
    assert columns(found.vaddr, found.paddr, found.size) == [(vaddr - 0x1234, 7 * span, span)]


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-4]], ids=str)
def test_windows(shape):
    """No table is asked for addresses in a window; what is mapped there is RAM alone."""
    ram, made = tables(shape)
    (form,) = form_of(shape)
    memory = ram_memory(ram)
    windows = [0x80000000, 0xA0000000]
    if shape.word == 8:
        windows = [0xFFFFFFFF00000000 + low for low in windows]
        windows += [0x9000000000000000, 0x9800000000000000, 0xA800000000000000]
    for window in windows:
        vaddr = window + 0x123456
        assert translate(memory, form, made.root, vaddr).paddr == 0x123456 == plain_fixed(shape.word, vaddr)
        assert form.is_kernel(vaddr)
    found = walk(memory, form, made.root, Window(*form.kernel_span)).mappings
    assert columns(found.vaddr, found.paddr, found.size) == [(at, 0, SIZE) for at in sorted(windows)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_entries_one_by_one(shape):
    """Both decoders agree on any entry, sense or nonsense."""
    import numpy as np

    (form,) = form_of(shape)
    choice = random.Random(2)
    entries = [choice.getrandbits(8 * shape.word) for _ in range(300)]
    entries += [base + choice.getrandbits(29) for base in (0x80000000, 0xC0000000) for _ in range(50)]
    entries += [entry & -0x10000 for entry in entries]
    for level in form.levels:
        column = np.array(entries, dtype=np.uint64)
        decoded = form.decode(column, level, column)
        for at, entry in enumerate(entries):
            one = form.decode_one(entry, level, 0)
            kind = "table" if decoded.table[at] else "leaf" if decoded.leaf[at] else "none"
            assert kind == one.kind
            assert one.kind == "none" or one.paddr == decoded.paddr[at]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_form_that_nobody_named(shape):
    """Without any word on it the entries themselves show which form they have."""
    ram, made = tables(shape)
    choice, page = random.Random(3), 1 << shape.page_shift
    for number in range(100):
        made.map(kernel_addresses(shape)[0] + number * page, choice.randrange(SIZE // page) * page)
    memory = ram_memory(ram)
    forms = form_of(shape, f"PAGESIZE={page}\n")
    assert len(forms) > 1
    best = max(forms, key=lambda form: (form.fits(form, memory, made.root), len(form.levels)))
    (right,) = form_of(shape)
    assert best.fits(best, memory, made.root) == 100
    assert (best.name, best.levels) == (right.name, right.levels)


def test_patched_kernels_say_it():
    text = "NUMBER(PAGE_SHIFT)=14\nNUMBER(_PFN_SHIFT)=15\nNUMBER(_PAGE_PRESENT)=1\n"
    for form in ARCH64.forms(parse(text.encode()), ">"):
        assert form.levels[-1].span == 16384
        assert form.name.endswith("page number at bit 15")
        assert form.byte_order == ">"


@pytest.mark.parametrize(
    "bad", ["LENGTH(invalid_pte_table)=7\n", "NUMBER(_CACHE_SHIFT)=-4\n", "PAGESIZE=1\n"]
)
def test_lies_are_not_taken(bad):
    found, all_of_them = (ARCH64.forms(parse(text), "<") for text in (bad.encode(), b""))
    assert [form.name for form in found] == [form.name for form in all_of_them]


def test_entries_of_64_bits_in_32_bit_kernels():
    """They are not read, and nothing is made up."""
    form, *_ = ARCH32.forms(parse(b"NUMBER(_PAGE_PRESENT_SHIFT)=24\nNUMBER(_CACHE_SHIFT)=5\n"), "<")
    assert form.decode_one(0x12345FFF, form.levels[-1], 0).kind == "none"


def test_widths_and_notes():
    assert find_architecture(EM_MIPS, 32) is ARCH32
    assert find_architecture(EM_MIPS, 64) is ARCH64
    # EF_R0, EF_LO, EF_CP0_EPC, EF_CP0_CAUSE of arch/mips/include/uapi/asm/reg.h
    for arch, places in ((ARCH32, (6, 38, 40, 43)), (ARCH64, (0, 32, 34, 37))):
        layout = arch.prstatus
        assert len(layout.registers) == 45
        assert tuple(map(layout.registers.index, ("r0", "lo", "epc", "cause"))) == places
    assert (ARCH32.prstatus.register_offset("r29"), ARCH32.prstatus.size) == (72 + 4 * 35, 256)
    assert (ARCH64.prstatus.register_offset("r29"), ARCH64.prstatus.size) == (112 + 8 * 29, 480)


def test_sleeping_tasks():
    lines = ["OFFSET(task_struct.thread)=2752"]
    lines += [f"OFFSET(thread_struct.reg{n})={8 * at}" for at, n in enumerate((*range(16, 24), 29, 30, 31))]
    found = ARCH64.saved_context(Knowledge((parse("\n".join(lines).encode()),)), lambda _at, _size: b"")
    assert (found.pointer, found.inside, found.stack_pointer) == (2752, True, "r29")
    registers = dict(found.registers)
    assert (registers["r16"], registers["r29"], registers["r31"], registers["epc"]) == (0, 64, 80, 80)
    assert ARCH64.saved_context(Knowledge((parse(b""),)), lambda _at, _size: b"") is None


def test_the_image():
    stext = parse(b"SYMBOL(_stext)=ffffffff81b00400\n")
    assert ARCH64.image_window(stext) == (0xFFFFFFFF80000000, 0xFFFFFFFFA0000000)
    assert ARCH64.image_paddrs(stext, 0xFFFFFFFF81B00400, None) == (0x1B00400,)
    assert ARCH64.image_paddrs(stext, 0xA800000001B00400, None) == (0x1B00400,)
    assert ARCH64.image_paddrs(stext, 0xFFFFFFFFC1B00400, None) == ()  # tables map it
    assert ARCH32.image_window(parse(b"")) == (0x80000000, 0xE0000000)
