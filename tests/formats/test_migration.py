"""QEMU migration streams: what is read from them, and what damaged ones give."""

from __future__ import annotations

import struct
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from kdump_elftool.errors import CorruptDumpError, KdumpError, PageAbsentError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import migration_pages, migration_structs, open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from tests.builders import migration as mig
from tests.builders.elfcore import own_address_words

PAGE = 4096
MB = 1 << 20
GB = 1 << 30
SEED = 20261124


@pytest.fixture
def dump_of(tmp_path):
    files = []

    def build(image: bytes | mig.Stream, options: OpenOptions = OpenOptions()) -> Dump:
        path = tmp_path / "dump"
        path.write_bytes(image if isinstance(image, bytes) else image.build())
        files.append(InputFile.open(str(path)))
        return open_dump(files[-1], "auto", options)

    yield build
    for file in files:
        file.close()


def own(offset: int) -> bytes:
    return own_address_words(offset, PAGE)


def full(size: int, zero_from: int) -> mig.Stream:
    """A guest all of whose pages are sent once, those from an offset on as zeros."""
    pages = [(at, own(at) if at < zero_from else None) for at in range(0, size, PAGE)]
    return mig.Stream([mig.records("pc.ram", pages), b""], {"pc.ram": size})


def test_rows_of_pages_and_of_zeros(dump_of):
    dump = dump_of(full(2 * MB, MB))
    assert (dump.format, dump.e_machine, dump.kind.bits, dump.kind.order) == ("qemu", 62, 64, "<")
    assert dump.memory.read(0, 2 * MB) == own_address_words(0, MB) + bytes(MB)
    assert dump.memory.declared.total == 2 * MB
    assert not dump.lost
    assert not dump.warnings
    assert len(dump.memory.extents) == 257


@pytest.mark.parametrize("seed", range(8))
def test_any_order_and_the_later_wins(dump_of, monkeypatch, seed):
    """Other blocks between, pages sent up to three times, as data and as zeros, whatever the windows are."""
    random = Random(SEED + seed)
    monkeypatch.setattr(migration_structs, "_WINDOW", random.choice([300, 5000, 70000, 4 << 20]))
    monkeypatch.setattr(migration_pages, "_FULL", random.choice([1, 100, 1000, 1 << 20]))
    monkeypatch.setattr(migration_pages, "_MOST_MIXED", random.choice([1, 7, 50, 4096]))
    memory = bytearray(MB)
    parts = []
    sizes = {"pc.ram": MB, "pc.bios": 0x40000}
    at = [*range(0, MB, PAGE)]
    for _ in range(3):
        out = b""
        while len(out) < 300000:
            block = random.choice(["pc.ram", "pc.ram", "pc.bios"])
            row, data = random.randrange(1, 80), random.choice([0, 0.1, 0.5, 1])
            first = random.randrange(0, sizes[block] // PAGE)
            pages = [(n % (sizes[block] // PAGE)) * PAGE for n in range(first, first + row)]
            contents = [random.randbytes(PAGE) if random.random() < data else None for _ in pages]
            out += mig.records(block, list(zip(pages, contents, strict=True)))
            if block == "pc.ram":
                for offset, content in zip(pages, contents, strict=True):
                    memory[offset : offset + PAGE] = content or bytes(PAGE)
        parts.append(out)
    parts.insert(0, mig.records("pc.ram", [(offset, None) for offset in random.sample(at, len(at))]))
    dump = dump_of(mig.Stream(parts, sizes))
    assert dump.memory.read(0, MB) == memory
    assert not dump.lost


@pytest.mark.parametrize(
    "machine,size,low",
    [
        (mig.I440FX, 0xE0000000 - PAGE, 0xE0000000 - PAGE),
        (mig.I440FX, 0xE0000000, 0xC0000000),
        (mig.I440FX, 8 * GB, 0xC0000000),
        (mig.Q35, 0xB0000000 - PAGE, 0xB0000000 - PAGE),
        (mig.Q35, 0xB0000000, 0x80000000),
        (mig.Q35, 8 * GB, 0x80000000),
    ],
)
def test_hole_below_4_gb(dump_of, machine, size, low):
    """Zeros on both sides of the border in one row, then data on both sides."""
    row = [(at, None) for at in range(low - 8 * PAGE, min(low + 8 * PAGE, size), PAGE)]
    edge = [(at, own(at)) for at in (low - PAGE, low) if at < size]
    dump = dump_of(
        mig.Stream([mig.records("pc.ram", row) + mig.records("pc.ram", edge)], {"pc.ram": size}, machine)
    )
    declared = dump.memory.declared
    above = size - low
    assert declared.start.tolist() == [0, 4 * GB][: 1 + (above > 0)]
    assert declared.end.tolist() == [low, 4 * GB + above][: 1 + (above > 0)]
    assert dump.memory.read(low - 8 * PAGE, 8 * PAGE) == bytes(7 * PAGE) + own(low - PAGE)
    if above:
        assert dump.memory.read(4 * GB, 8 * PAGE) == own(low) + bytes(7 * PAGE)
    with pytest.raises(PageAbsentError):
        dump.memory.read(low, 1)
    assert [lost.why for lost in dump.lost] == ["never sent"]
    assert dump.lost[0].ranges.total == size - len(row) * PAGE


@pytest.mark.parametrize(
    "block,base,machine,given,result",
    [
        ("mach-virt.ram", 0x40000000, "virt-7.2", 62, 183),
        ("mach-virt.ram", 0x40000000, "virt-7.2", 40, 40),
        ("riscv_virt_board.ram", 0x80000000, "virt", 62, 243),
    ],
)
def test_other_machines(dump_of, block, base, machine, given, result):
    bits = (("configuration/target-page-bits", struct.pack(">I", 12)),)
    stream = mig.Stream([mig.records(block, [(0, own(0))])], {block: MB}, machine, bits, behind=b"")
    dump = dump_of(stream, OpenOptions(e_machine=given))
    assert dump.memory.read(base, PAGE) == own(0)
    assert dump.e_machine == result


@pytest.mark.parametrize(
    "machine,block,size,places,order",
    [
        ("microvm", "microvm.ram", 8 * GB, [(0, 0), (0xC0000000, 4 * GB)], "<"),
        ("malta", "mips_malta.ram", 128 * MB, [(0, 0)], "<"),
        ("malta", "mips_malta.ram", GB, [(0, 0), (256 * MB, 0x90000000)], "<"),
        ("pseries-7.2", "ppc_spapr.ram", 8 * GB, [(0, 0), (4 * GB, 4 * GB)], "<"),
        ("s390-ccw-virtio-7.2", "s390.ram", 8 * GB, [(0, 0), (4 * GB, 4 * GB)], ">"),
        ("versatilepb", "versatile.ram", 128 * MB, [(0, 0)], "<"),
        ("vexpress-a9", "vexpress.highmem", GB, [(0, 0x60000000)], "<"),
        ("vexpress-a15", "vexpress.highmem", GB, [(0, 0x80000000)], "<"),
        ("raspi3b", "ram", GB, [(0, 0)], "<"),
        # one backend, under either form of its name
        (mig.Q35, "/objects/mem", 8 * GB, [(0, 0), (0x80000000, 4 * GB)], "<"),
        (mig.Q35, "mem", 8 * GB, [(0, 0), (0x80000000, 4 * GB)], "<"),
    ],
)
def test_where_machines_have_their_memory(dump_of, machine, block, size, places, order):
    """By QEMU's sources; the first page and the first behind the hole are sent."""
    devices = {"/rom@etc/acpi/tables": 0x200000, "0000:00:02.0/vga.vram": GB, "virt.flash0": 256 * MB}
    pages = mig.records(block, [(offset, own(offset)) for offset, _ in places])
    dump = dump_of(mig.Stream([pages], {block: size, **devices}, machine))
    assert dump.kind.order == order
    assert not dump.warnings
    assert dump.memory.declared.total == size
    for offset, paddr in places:
        assert dump.memory.read(paddr, PAGE) == own(offset)


def test_numa_nodes_are_one_behind_the_other(dump_of):
    """QEMU lists larger blocks first, whatever node they are; the hole may be inside of any."""
    sizes = {"ram-node1": 6 * GB, "ram-node0": GB}
    second = [0, GB - PAGE, GB, 6 * GB - PAGE]
    pages = mig.records("ram-node1", [(at, own(at)) for at in second])
    dump = dump_of(mig.Stream([pages + mig.page(0, own(7), "ram-node0")], sizes, mig.Q35))
    (warning,) = dump.warnings
    assert "ram-node0, ram-node1" in warning
    assert dump.memory.declared.start.tolist() == [0, 4 * GB]
    assert dump.memory.declared.end.tolist() == [2 * GB, 9 * GB]
    assert dump.memory.read(0, PAGE) == own(7)
    for offset, paddr in zip(second, (GB, 2 * GB - PAGE, 4 * GB, 9 * GB - PAGE), strict=True):
        assert dump.memory.read(paddr, PAGE) == own(offset)


@pytest.mark.parametrize(
    "names", [("m0", "m2"), ("m1", "dimm2"), ("a", "b"), ("m2", "m3"), ("m00", "m0"), ("m0", "x" + 90 * "1")]
)
def test_backends_that_may_be_no_nodes(dump_of, names):
    with pytest.raises(UnsupportedError, match="not known"):
        dump_of(mig.Stream([b""], dict.fromkeys(names, GB), mig.Q35))


def test_a_guest_that_amd_would_move_to_1_tb(dump_of):
    for size, said in ((970 * GB, 0), (1000 * GB, 1)):
        dump = dump_of(mig.Stream([mig.page(0, own(0), "pc.ram")], {"pc.ram": size}, mig.Q35))
        assert len(dump.warnings) == said
        assert all("AMD" in warning and "0x10000000000" in warning for warning in dump.warnings)


def test_what_else_may_be_in_a_stream(dump_of):
    """Commands, subsections, words behind a block's size, no footers, no configuration."""
    stream = full(MB, MB // 2)
    capabilities = struct.pack(">I", 1) + mig.name("x-ignore-shared")
    told = (("configuration/capabilities", capabilities), ("configuration/uuid", bytes(16)))
    for changed in (
        replace(stream, commands=mig.command(3, bytes(16)) + mig.command(1, b"") + mig.command(11, b"")),
        replace(stream, subsections=told, words=(0,)),
        replace(stream, words=(0x200000,)),
        replace(stream, words=(0x200000, 0x100000000)),
        replace(stream, footers=False),
        replace(stream, machine=None, footers=False),
        replace(stream, behind=b""),
    ):
        dump = dump_of(changed)
        assert dump.memory.read(0, MB) == own_address_words(0, MB // 2) + bytes(MB // 2)
        assert not dump.lost
        assert len(dump.warnings) == (not changed.behind)


def test_memory_of_unknown_place_is_named(dump_of):
    stream = full(MB, 0)
    dump = dump_of(replace(stream, blocks={"pc.ram": MB, "dimm1": GB, "vga.vram": GB}))
    (warning,) = dump.warnings
    assert "dimm1" in warning


HEAD = struct.pack(">Q", 0x20000 | mig.DATA | mig.CONTINUE)


@pytest.mark.parametrize(
    "stream,kind,word",
    [
        (mig.Stream([b""], version=2), UnsupportedError, "version 2"),
        (mig.Stream([b""], {"pc.ram": 4 * GB}, None), UnsupportedError, "without a name"),
        (mig.Stream([b""], machine="nuvm"), UnsupportedError, "nuvm"),
        (mig.Stream([b""], {"numa0": GB, "plugged": GB}), UnsupportedError, "numa0"),
        (mig.Stream([b""], subsections=(("configuration/new", b""),)), UnsupportedError, "new"),
        (
            mig.Stream([b""], subsections=(("configuration/target-page-bits", b"\0\0\0\16"),)),
            UnsupportedError,
            "pages of 2",
        ),
        (
            mig.Stream([b""], subsections=(("configuration/capabilities", b"\xff\0\0\1"),)),
            CorruptDumpError,
            "capabilities",
        ),
        (mig.Stream([b""], commands=mig.command(7, bytes(4))), UnsupportedError, "postcopy"),
        (mig.Stream([b""], commands=mig.begin(mig.START, 1, "block", 1)), UnsupportedError, "block"),
        (mig.Stream([b""], commands=mig.begin(mig.START, 1, "ram", 3)), UnsupportedError, "version 3"),
        (mig.Stream([b""], commands=mig.begin(mig.PART, 9)), CorruptDumpError, "section 9"),
        (mig.Stream([b""], commands=b"\x33"), CorruptDumpError, "0x33"),
        (mig.Stream([b""], commands=b"\0"), CorruptDumpError, "ends"),
        (mig.Stream([b""], commands=mig.begin(mig.START) + mig.end()), CorruptDumpError, "second section"),
        (mig.Stream([mig.page(0, None)]), CorruptDumpError, "none before"),
        (mig.Stream([mig.page(0, None, "pc.ran")]), CorruptDumpError, "not listed"),
        (mig.Stream([mig.page(MB, None, "pc.ram")]), CorruptDumpError, "beyond the end"),
        (
            mig.Stream([mig.records("pc.ram", [(at, own(at)) for at in range(0, MB + PAGE, PAGE)])]),
            CorruptDumpError,
            "page at 0x100000, beyond",
        ),
        (mig.Stream([mig.page(0, None, "pc.ram")[:-1] + b"\1"]), CorruptDumpError, "filled with 0x1"),
        (
            mig.Stream([mig.records("pc.ram", [(0, None)] * 40)[:-1] + b"\7"]),
            CorruptDumpError,
            "filled with 0x7",
        ),
        (mig.Stream([mig.block_list({"pc.ram": MB})]), CorruptDumpError, "second list"),
        (mig.Stream([struct.pack(">Q", 0x40)]), UnsupportedError, "xbzrle"),
        (mig.Stream([struct.pack(">Q", 0x120)]), UnsupportedError, "compress"),
        (mig.Stream([struct.pack(">Q", 0x80)]), UnsupportedError, "RDMA"),
        (mig.Stream([struct.pack(">Q", 0x200)]), UnsupportedError, "multifd"),
        (mig.Stream([struct.pack(">Q", 0x400)]), CorruptDumpError, "0x400"),
        (mig.Stream([struct.pack(">Q", 0)]), CorruptDumpError, "flags 0x0"),
    ],
)
def test_refused(dump_of, stream, kind, word):
    with pytest.raises(kind, match=word) as caught:
        dump_of(stream)
    assert caught.value.file_offset is not None
    assert caught.value.hint


def test_wrong_footer_and_block_lists_that_lie(dump_of):
    image = bytearray(full(MB, 0).build())
    at = image.index(b"\x7e\0\0\0\2")
    with pytest.raises(CorruptDumpError, match="footer of section 3"):
        dump_of(bytes(image[:at] + b"\x7e\0\0\0\3" + image[at + 5 :]))
    at = image.index(b"\6pc.ram") + 7
    for size in (0, MB - 1, MB + PAGE, 1 << 63):
        with pytest.raises(CorruptDumpError, match="impossible memory block"):
            dump_of(bytes(image[:at] + struct.pack(">Q", size) + image[at + 8 :]))


def test_no_block_at_all(dump_of):
    image = b"QEVM\0\0\0\3" + mig.begin(mig.START) + mig.end() + mig.begin(mig.END) + mig.end()
    with pytest.raises(UnsupportedError, match="none"):
        dump_of(image)


def test_too_many_pages_or_blocks(dump_of, monkeypatch):
    monkeypatch.setattr(migration_pages, "MOST_PIECES", 100)
    monkeypatch.setattr(migration_pages, "_FULL", 50)
    with pytest.raises(UnsupportedError, match="more than 100 pages"):
        dump_of(full(MB, MB))
    assert len(dump_of(full(MB, 0)).memory.extents) == 1
    monkeypatch.setattr(migration_pages, "MOST_BLOCKS", 2)
    with pytest.raises(CorruptDumpError, match="more than 2"):
        dump_of(mig.Stream([b""], {"pc.ram": MB, "a": PAGE, "b": PAGE}))


def test_truncated_everywhere(dump_of):
    """What is there before the cut is right, the rest is lost; without any memory it is an error."""
    stream = full(MB // 4, MB // 8)
    stream.parts = [stream.parts[0], mig.records("pc.ram", [(0, own(0x1000))] + [(PAGE, None)] * 9)]
    image = stream.build()[: -len(stream.behind)]
    listed = image.index(b"\6pc.ram") + 15
    random = Random(SEED)
    cuts = {*range(4, listed + 60), *range(len(image) - 200, len(image))}
    cuts |= {random.randrange(listed, len(image)) for _ in range(200)}
    whole = dump_of(image).memory.read(0, MB // 4)
    for cut in sorted(cuts):
        if cut < listed + 8:
            with pytest.raises(KdumpError, match="ends before its memory"):
                dump_of(image[:cut])
            continue
        dump = dump_of(image[:cut])
        if cut >= len(image) - 5:  # only of the footer something is missing
            assert not dump.lost
            (warning,) = dump.warnings
            assert "registers" in warning
            continue
        assert any("different moments" in warning for warning in dump.warnings)
        held = dump.memory.present()
        for start, end in zip(held.start.tolist(), held.end.tolist(), strict=True):
            low = max(start, 2 * PAGE)
            if low < end:
                assert dump.memory.read(low, end - low) == whole[low:end]
        absent = MB // 4 - dump.memory.extents.total
        assert sum(lost.ranges.total for lost in dump.lost) == absent
        assert all(lost.why == f"truncated at file offset {cut:#x}" for lost in dump.lost)


@pytest.mark.parametrize("bad", [0x122, 0xF28, 0x32, 0xA])
def test_a_wrong_record_among_both_shapes(dump_of, bad):
    """Flags that only the upper of the 12 bits tell from right ones, at every place in a row."""
    for place in (1, 2, 40, 77):
        pages = [own(at * PAGE) if at % 3 else None for at in range(80)]
        rows = [mig.page(at * PAGE, data, None if at else "pc.ram") for at, data in enumerate(pages)]
        head = int.from_bytes(rows[place][:8], "big") & ~0xFFF | bad
        rows[place] = struct.pack(">Q", head) + rows[place][8:]
        with pytest.raises(KdumpError) as caught:
            dump_of(mig.Stream([b"".join(rows)]))
        image = mig.Stream([b"".join(rows)]).build()
        at = image.index(b"".join(rows)) + sum(map(len, rows[:place]))
        assert at <= caught.value.file_offset <= at + 8


def test_a_filled_page_among_both_shapes(dump_of):
    rows = [mig.page(at * PAGE, own(at) if at % 2 else None, None if at else "pc.ram") for at in range(80)]
    rows[50] = rows[50][:-1] + b"\5"
    with pytest.raises(CorruptDumpError, match="filled with 0x5"):
        dump_of(mig.Stream([b"".join(rows)]))


def test_pages_sent_many_times_take_no_memory(monkeypatch, tmp_path):
    """What is kept depends on the guest's memory, not on how often a page was sent."""
    monkeypatch.setattr(migration_pages, "_FULL", 500)
    monkeypatch.setattr(migration_pages, "_BATCH", 50)
    monkeypatch.setattr(migration_structs, "_WINDOW", 900)
    rows = [(at, None) for at in range(0, MB, 2 * PAGE)] * 50
    (tmp_path / "dump").write_bytes(mig.Stream([mig.records("pc.ram", rows)]).build())
    with InputFile.open(str(tmp_path / "dump")) as file:
        cursor = migration_structs.Cursor(file)
        cursor.at = file.read_at(0, 400).index(b"\6pc.ram") - 8
        ram = migration_pages.Ram(frozenset)
        ram.read_section(cursor)
        cursor.skip(5 + 5)
        ram.read_section(cursor)
        assert len(ram.columns("pc.ram")[0]) <= 500


def test_flipped_bits_never_crash(dump_of):
    """Headers of all kinds are hit: data pages are few here."""
    pages = [(at, None) for at in range(0, MB // 4, PAGE)] + [(0, own(0)), (PAGE, own(PAGE))]
    image = mig.Stream([mig.records("pc.ram", pages), mig.records("pc.ram", pages[:9])]).build()
    random = Random(SEED)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2500):
        damaged = bytearray(image)
        for _ in range(random.choice([1, 1, 1, 5])):
            damaged[random.randrange(len(image))] ^= 1 << random.randrange(8)
        try:
            dump = dump_of(bytes(damaged))
        except KdumpError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        extents = dump.memory.extents
        in_file = extents.position != np.uint64((1 << 64) - 1)
        assert np.all((extents.position + extents.size)[in_file] <= len(image))
        dump.memory.read_present(0, memoryview(bytearray(MB)))
    assert min(outcomes.values()) > 100
