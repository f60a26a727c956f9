"""Hostile and broken input: a clear error, or a partial result that says what is missing.

The fixture ``tovelf`` checks the manners of every run: one ``error:`` and one ``hint:`` line or a
core of the right shape, no traceback, nothing left over, the input unchanged.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from random import Random

import pytest

from tests.builders.check import check_pages, check_subset
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core, build_core_map
from tests.builders.kernel import SMALL, SyntheticKernel, build_vmlinux, make_kernel
from tests.builders.pagetables import KERNEL, SIZE_2M, SIZE_4K
from tests.cli.conftest import Result

SEED = 20261122


@pytest.fixture(scope="module")
def kernel() -> SyntheticKernel:
    return make_kernel(SMALL)


@pytest.fixture(scope="module")
def placed(kernel):
    return build_core_map(kernel.core_spec())


def partial(result: Result, kernel: SyntheticKernel) -> int:
    """A partial result: exit 0, says so, and no byte in it is wrong.  Returns its number of pages."""
    assert result.code == 0
    assert result.lines("warning"), result.err
    assert len(result.lines("coverage")) == 1, result.err
    assert "lost" in result.lines("coverage")[0]
    return check_subset(result.core, kernel)


def refused(result: Result) -> str:
    assert result.code == 1, result.err
    return result.lines("error")[0]


NO_DUMPS = {
    "empty": b"",
    "one byte": b"\x7f",
    "text": b"Linux version 6.1\n" * 1000,
    "zeros": bytes(100000),
    "random": Random(SEED).randbytes(100000),
    "gzip": b"\x1f\x8b\x08" + bytes(1000),
    "kdump": b"KDUMP   " + bytes(10000),
    "flattened": b"makedumpfile\0\0\0\0" + bytes(10000),
    "migration": b"QEVM\0\0\0\3" + bytes(10000),
    "lime": b"EMiL" + bytes(10000),
}


@pytest.mark.parametrize("image", NO_DUMPS.values(), ids=NO_DUMPS.keys())
def test_no_dump(tovelf, image):
    assert "dump" in refused(tovelf(image))


@pytest.mark.parametrize("e_type", [0, 1, 2, 3, 5, 0xFFFF])
def test_no_core(tovelf, kernel, e_type):
    refused(tovelf(build_core(replace(kernel.core_spec(), e_type=e_type))))


def test_vmlinux_as_dump(tovelf):
    assert "core" in refused(tovelf(build_vmlinux()))


@pytest.mark.parametrize("machine", [0, 20, 21, 22, 243, 258, 0xFFFF])
def test_wrong_machine(tovelf, kernel, machine):
    refused(tovelf(build_core(replace(kernel.core_spec(), machine=machine))))


def test_machine_is_named(tovelf, kernel):
    assert "riscv64" in refused(tovelf(build_core(replace(kernel.core_spec(), machine=243))))


@pytest.mark.parametrize("big_endian", [False, True])
def test_x86_64_in_an_impossible_elf(tovelf, kernel, big_endian):
    """x86_64 in a 32-bit file, or big-endian: the header is damaged."""
    small = [SegmentSpec(0x1000, b"x" * 4096)]
    refused(tovelf(build_core(CoreSpec(small, kernel.notes(), elf_class=32, big_endian=big_endian))))
    if big_endian:
        refused(tovelf(build_core(replace(kernel.core_spec(), big_endian=True))))


@pytest.mark.parametrize("at,value", [(4, 0), (4, 1), (4, 3), (5, 0), (5, 2), (5, 255)])
def test_class_or_byte_order_byte_lies(tovelf, placed, at, value):
    image = bytearray(placed.image)
    image[at] = value
    refused(tovelf(bytes(image)))


def cuts(placed) -> list[int]:
    """About 200 places: every part of the file and both sides of its borders."""
    header_end = placed.phoff + placed.phnum * placed.phentsize
    data = placed.data_offsets
    random = Random(SEED)
    chosen = {*range(0, 64, 5), *range(64, header_end, 9), *range(header_end, data[0], 61)}
    for border in (64, header_end, *placed.note_offsets, *data, len(placed.image)):
        chosen |= {border - 1, border, border + 1}
    chosen |= {random.randrange(data[0], len(placed.image)) for _ in range(40)}
    chosen |= {random.randrange(data[-1], len(placed.image)) & ~4095 for _ in range(30)}
    return sorted(cut for cut in chosen if 0 <= cut < len(placed.image))


def test_truncated_at_every_kind_of_place(tovelf, kernel, placed):
    whole = len(kernel.readable_pages())
    places = cuts(placed)
    assert 150 <= len(places) <= 300
    shares = []
    for cut in places:
        result = tovelf(placed.image[:cut])
        if result.code == 1:
            refused(result)
            shares.append(0)
        else:
            shares.append(partial(result, kernel))
            assert shares[-1] < whole + (cut % 4096 > 0)  # a page that is there in part counts
    converted = [share for share in shares if share]
    assert len(converted) > 30, "cuts behind the tables leave something"
    assert shares[0] == 0
    assert max(shares) > whole // 2


def test_truncated_with_strict_is_a_failure_that_still_delivers(tovelf, kernel, placed):
    result = tovelf(placed.image[:-4096], "--strict")
    assert result.code == 1
    assert len(result.lines("coverage")) == 1
    assert check_subset(result.core, kernel) > 1000


def test_coverage_line_says_what_and_where(tovelf, kernel, placed):
    cut = len(placed.image) - 0x5000
    (line,) = tovelf(placed.image[:cut]).lines("coverage")
    total = sum(len(data) for _, data in kernel.ram.ranges) // 4096
    assert f"of {total} pages" in line
    assert f"0xb7b000-0xb80000 truncated at file offset {cut:#x}" in line
    assert "99.6 %" in line  # 1369 of 1374


def flip(image: bytes, bit: int) -> bytes:
    damaged = bytearray(image)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_bit_flips_in_headers_and_notes(tovelf, kernel, placed):
    random = Random(SEED)
    end = placed.data_offsets[0]
    bits = [random.randrange(64 * 8) for _ in range(50)]
    bits += [random.randrange(64 * 8, placed.note_offsets[0] * 8) for _ in range(40)]
    bits += [random.randrange(placed.note_offsets[0] * 8, end * 8) for _ in range(30)]
    codes = [tovelf(flip(placed.image, bit)).code for bit in bits]
    assert {0, 1} <= set(codes)


def test_bit_flips_in_page_tables(tovelf):
    """Only manners can be asked for here: a flipped frame number looks like a true one."""
    random = Random(SEED)
    kernel = make_kernel(SMALL)
    for _ in range(20):
        at = random.choice(kernel.tables.table_pages) + 8 * random.randrange(512)
        entry = kernel.tables.get(at)
        kernel.tables.put(at, entry ^ 1 << random.randrange(64))
        tovelf(kernel.dump())
        kernel.tables.put(at, entry)


def test_random_bytes_over_page_tables(tovelf, kernel):
    for seed in range(8):
        damaged = make_kernel(SMALL)
        random = Random(seed)
        page = random.choice(damaged.tables.table_pages[1:])
        damaged.ram.write(page, random.randbytes(4096))
        tovelf(damaged.dump())


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1])
@pytest.mark.parametrize("name", ["p_offset", "p_paddr", "p_filesz", "p_memsz", "p_vaddr"])
def test_absurd_segment(tovelf, kernel, name, value):
    """One range lies: the others are converted, and no byte of the result is wrong."""
    segments = kernel.segments()
    segments[-1] = replace(segments[-1], overrides={name: value})
    result = tovelf(build_core(CoreSpec(segments, kernel.notes())))
    assert result.code == 0, result.err
    if name in ("p_offset", "p_paddr"):  # data taken from the wrong place cannot be told from right data
        assert result.core.read(kernel.text_vaddr, 0x1000) == kernel.ram.read(0x400000, 0x1000)
        return
    if name == "p_vaddr":
        check_pages(result.core, kernel)
    else:
        check_subset(result.core, kernel)
        assert result.lines("warning") or value in (0, 1)


@pytest.mark.parametrize(
    "ehdr",
    [
        {"e_phnum": 0},
        {"e_phnum": 1},
        {"e_phnum": 2},
        {"e_phnum": 0xFFFE},
        {"e_phnum": 0xFFFF},
        {"e_phoff": 0},
        {"e_phoff": 2**63},
        {"e_phoff": 2**64 - 1},
        {"e_phentsize": 0},
        {"e_phentsize": 1},
        {"e_phentsize": 32},
        {"e_phentsize": 0xFFFF},
        {"e_shoff": 2**64 - 1, "e_phnum": 0xFFFF},
        {"e_ehsize": 0},
        {"e_version": 0},
        {"e_shnum": 0xFFFF, "e_shoff": 1},
    ],
    ids=str,
)
def test_absurd_header(tovelf, kernel, ehdr):
    result = tovelf(build_core(replace(kernel.core_spec(), ehdr=ehdr)))
    if result.code == 0:
        check_subset(result.core, kernel)


def test_four_thousand_million_program_headers(tovelf, kernel):
    spec = replace(kernel.core_spec(), force_xnum=True, shdr0={"sh_info": 2**32 - 1})
    result = tovelf(build_core(spec))
    assert result.lines("warning") or result.code == 1


def test_many_empty_segments(tovelf, kernel):
    segments = [SegmentSpec(index * 4096) for index in range(30000)] + kernel.segments()
    result = tovelf(build_core(CoreSpec(segments, kernel.notes())))
    check_pages(result.core, kernel)


def test_many_overlapping_segments(tovelf, kernel):
    data = kernel.segments()
    small = [SegmentSpec(0xB00000 + index, vaddr=0, filesz=4096, offset=0) for index in range(30000)]
    result = tovelf(build_core(CoreSpec([*data, *small], kernel.notes())))
    assert result.code == 0


@pytest.mark.parametrize("level", [1, 2, 3])
def test_cyclic_tables(tovelf, level):
    kernel = make_kernel(SMALL)
    root, base = kernel.tables.root, kernel.bases["page_offset"]
    expected = kernel.readable_pages()
    where = {1: base + (200 << 30), 2: base + (300 << 30), 3: 0xFFFFD00000000000}[level]
    kernel.tables.put(kernel.tables.slot(where, level), root | KERNEL)
    kernel.tables.put(root + 8 * 300, root | KERNEL)
    result = tovelf(kernel.dump())
    assert result.code == 0
    core = result.core
    for vaddr, paddr in list(expected.items())[::37]:
        assert core.read(vaddr, 8) == kernel.ram.read(paddr, 8)


def test_every_entry_of_the_root_points_at_the_root(tovelf):
    kernel = make_kernel(SMALL)
    kernel.ram.write(kernel.tables.root, struct.pack("<Q", kernel.tables.root | KERNEL) * 512)
    tovelf(kernel.dump())


@pytest.mark.parametrize("level,name", [(0, "pte"), (1, "pmd"), (2, "pud")])
def test_a_lost_table_loses_its_range_only(tovelf, level, name):
    kernel = make_kernel(SMALL)
    base = kernel.bases["page_offset"]
    whole = kernel.readable_pages()
    span = 1 << 12 + 9 * (level + 1)
    where = {0: base, 1: base, 2: kernel.bases["vmalloc"]}[level]
    kernel.tables.put(kernel.tables.slot(where, level + 1), 1 << 45 | KERNEL)
    result = tovelf(kernel.dump())
    left = {vaddr: paddr for vaddr, paddr in whole.items() if not where <= vaddr < where + span}
    assert len(left) < len(whole)
    check_pages(result.core, kernel, left)
    assert partial(result, kernel) == len(left)
    (line,) = result.lines("coverage")
    assert f"vaddr {where:#x}-{where + span:#x} {name} table at paddr 0x200000000000 unreadable" in line
    document = json.loads(tovelf(kernel.dump(), "--strict", "--json").out)
    assert document["coverage"]["covered_pages"] == len(set(left.values()))
    assert document["coverage"]["total_pages"] == len(set(whole.values()))


def test_a_lost_table_with_strict(tovelf):
    kernel = make_kernel(SMALL)
    kernel.tables.put(kernel.tables.slot(kernel.bases["vmalloc"], 2), 1 << 45 | KERNEL)
    assert tovelf(kernel.dump(), "--strict").code == 1


def test_table_page_left_out_of_the_dump(tovelf):
    kernel = make_kernel(SMALL)
    whole = kernel.readable_pages()
    table = kernel.tables.table_of(kernel.bases["vmalloc"] + SIZE_4K, 0)
    holed = make_kernel(SMALL, absent=((table, table + 4096),))
    result = tovelf(holed.dump())
    start = kernel.bases["vmalloc"]
    left = {
        vaddr: paddr
        for vaddr, paddr in whole.items()
        if not start <= vaddr < start + SIZE_2M and paddr != table
    }
    check_pages(result.core, holed, left)
    assert len(result.lines("coverage")) == 1


def test_root_left_out_of_the_dump(tovelf):
    root = make_kernel(SMALL).tables.root
    kernel = make_kernel(SMALL, absent=((root, root + 4096),))
    assert f"{root:#x}" in refused(tovelf(kernel.dump()))


def test_absent_pages_of_the_image_are_warned_of(tovelf):
    """gdb answers from an exec file where the core has nothing."""
    kernel = make_kernel(SMALL)
    segments = kernel.segments()
    text, rest = segments[0], segments[1:]
    inside = 0x403000 - rest[1].paddr
    data = rest[1].data
    cut = [
        replace(rest[1], data=data[:inside], memsz=inside + 0x2000),
        replace(rest[1], paddr=0x405000, data=data[inside + 0x2000 :], vaddr=rest[1].vaddr + inside + 0x2000),
    ]
    result = tovelf(build_core(CoreSpec([rest[0], *cut, rest[2]], kernel.notes())))
    assert text.paddr == 0x400000
    assert any("symbol-file" in line for line in result.lines("warning"))
    assert partial(result, kernel)
    assert "excluded or zero" in result.lines("coverage")[0]
    zeros = tovelf(build_core(CoreSpec([rest[0], *cut, rest[2]], kernel.notes())), "--zero-excluded")
    assert (zeros.code, zeros.err) == (0, "")
    assert zeros.core.read(kernel.text_vaddr + 0x3000, 0x2000) == bytes(0x2000)


def test_root_that_maps_nothing(tovelf, kernel):
    assert "nothing" in refused(tovelf(kernel.dump(), "-P", "0xb7f000"))
    for root in ("0", "0xffffffffffffffff", "0x1000000000000", "0x610008"):
        tovelf(kernel.dump(), "-P", root)


def without_vmcoreinfo(kernel: SyntheticKernel, *notes: NoteSpec) -> bytes:
    kept = [note for note in kernel.notes() if note.name != "VMCOREINFO"]
    return build_core(CoreSpec(kernel.segments(), [*kept, *notes]))


def test_vmcoreinfo_missing(tovelf, kernel):
    assert "VMCOREINFO" in refused(tovelf(without_vmcoreinfo(kernel)))


def test_no_notes_at_all(tovelf, kernel):
    refused(tovelf(build_core(CoreSpec(kernel.segments()))))
    check = tovelf(build_core(CoreSpec(kernel.segments())), "-P", hex(kernel.tables.root))
    assert check.code == 0
    assert check.core.read(kernel.text_vaddr, 0x1000) == kernel.ram.read(0x400000, 0x1000)
    assert [name for name, _, _ in check.core.notes()] == ["kdump-elftool"] * 2  # layout and summary


GARBAGE = {
    "empty": b"",
    "zeros": bytes(500),
    "random": Random(SEED).randbytes(4096),
    "no lines": b"x" * 4096,
    "equal signs": b"=" * 4096,
    "half": b"OSRELEASE=6.1.0\nSYMBOL(swapp",
    "values without digits": b"SYMBOL(swapper_pg_dir)=zzz\nNUMBER(phys_base)=\nSYMBOL(_stext)=--\n",
    "huge numbers": b"SYMBOL(swapper_pg_dir)=" + b"f" * 4000 + b"\nNUMBER(phys_base)=" + b"9" * 5000 + b"\n",
    "outside": b"SYMBOL(swapper_pg_dir)=ffffffff81000000\nNUMBER(phys_base)=9223372036854775807\n",
    "negative": b"SYMBOL(swapper_pg_dir)=-1\nNUMBER(phys_base)=-9223372036854775808\n",
    "top": b"SYMBOL(swapper_pg_dir)=ffffffffffffffff\nNUMBER(phys_base)=0\n",
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE.keys())
def test_vmcoreinfo_garbage(tovelf, kernel, text):
    refused(tovelf(without_vmcoreinfo(kernel, NoteSpec("VMCOREINFO", 0, text))))


@pytest.mark.parametrize(
    "key,value",
    [
        ("KERNELOFFSET", "zz"),
        ("KERNELOFFSET", "f" * 40),
        ("NUMBER(sme_mask)", "-1"),
        ("NUMBER(sme_mask)", "x"),
        ("NUMBER(sme_mask)", str(2**52 - 1)),
        ("NUMBER(pgtable_l5_enabled)", "7"),
        ("NUMBER(pgtable_l5_enabled)", "-1"),
        ("PAGESIZE", "0"),
        ("PAGESIZE", "65536"),
        ("BUILD-ID", "xyz"),
        ("BUILD-ID", "ab" * 4000),
        ("SYMBOL(_stext)", "0"),
        ("SYMBOL(_stext)", "ffffffffffffffff"),
        ("OSRELEASE", ""),
        ("OSRELEASE", "x" * 3000),
        ("NUMBER(phys_base)", "1"),
        ("NUMBER(phys_base)", str(2**63 - 1)),
    ],
)
def test_single_wrong_values(tovelf, key, value):
    tovelf(make_kernel(SMALL, vmcoreinfo={key: value}).dump())


def test_sparse_physical_addresses_far_above_2_46(tovelf, kernel):
    """Frames at 2^50: an array up to the highest frame would need 2^38 entries."""
    far = make_kernel(SMALL, ram=(*SMALL.ram, (1 << 50, (1 << 50) + 0x10000)))
    far.tables.map(0xFFFFD00000000000, 1 << 50)
    far.tables.map(0xFFFFD00000002000, (1 << 50) + 0xF000)
    result = tovelf(far.dump())
    assert result.code == 0
    assert result.core.read(0xFFFFD00000002000, 4096) == far.ram.read((1 << 50) + 0xF000, 4096)


def test_notes_of_a_crowd(tovelf, kernel):
    """20,000 CPUs' worth of notes, all with pid 0: ids stay unique."""
    cpu = kernel.notes()[0]
    zero = NoteSpec("CORE", 1, bytes(336))
    assert cpu.type == 1
    result = tovelf(build_core(CoreSpec(kernel.segments(), [zero] * 20000 + [kernel.notes()[-1]])))
    ids = [
        struct.unpack_from("<i", desc, 32)[0]
        for name, kind, desc in result.core.notes()
        if (name, kind) == ("CORE", 1)
    ]
    assert len(set(ids)) == 20000
    assert 0 not in ids


@pytest.mark.parametrize("size", [0, 1, 32, 335, 337, 4096])
def test_prstatus_of_another_size(tovelf, kernel, size):
    notes = [NoteSpec("CORE", 1, b"\1" * size), *kernel.notes()]
    result = tovelf(build_core(CoreSpec(kernel.segments(), notes)))
    check_pages(result.core, kernel)


def test_missing_and_unreadable_files(tovelf, kernel, tmp_path):
    image = kernel.dump()
    for options in (["-m", "/nowhere"], ["-e", "/nowhere"], ["-m", str(tmp_path)], ["-e", "/dev/zero"]):
        assert tovelf(image, *options).code == 1
    (tmp_path / "text").write_text("no vmlinux")
    assert tovelf(image, "-m", str(tmp_path / "text")).code == 1
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    assert tovelf(image, "-e", str(tmp_path / "binary")).code in (0, 1)


@pytest.mark.parametrize(
    "options",
    [["-P", "zz"], ["-P", "-1"], ["-P", hex(1 << 64)], ["-l", "most"], ["-I", "cpio"], ["--no-such-option"]],
)
def test_usage_errors(tovelf, kernel, options):
    assert tovelf(kernel.dump(), *options).code == 2
