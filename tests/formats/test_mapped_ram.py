"""QEMU migration files with mapped-ram: what is read from them, and what damaged ones give."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from random import Random

import pytest

from kdump_elftool.errors import CorruptDumpError, KdumpError, PageAbsentError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import mapped_ram, migration_machines, open_dump
from kdump_elftool.formats.base import Dump
from tests.builders import migration as mig
from tests.builders.elfcore import own_address_words
from tests.builders.mapped_ram import PAGE, MappedFile, pages_of

MB = 1 << 20
SEED = 20261124


@pytest.fixture
def dump_of(tmp_path):
    files = []

    def build(image: bytes | MappedFile) -> Dump:
        path = tmp_path / "dump"
        path.write_bytes(image if isinstance(image, bytes) else image.build())
        files.append(InputFile.open(str(path)))
        return open_dump(files[-1])

    yield build
    for file in files:
        file.close()


def memory_of(seed: int, size: int = 2 * MB) -> bytes:
    """Pages of their own addresses and zeros in runs of any length."""
    random = Random(SEED + seed)
    out = b""
    while len(out) < size:
        length = random.choice([1, 1, 2, 7, 8, 9, 64, 100]) * PAGE
        out += own_address_words(len(out) + PAGE, length) if random.random() < 0.5 else bytes(length)
    return out[:size]


def file_of(memory: bytes, **changes: object) -> MappedFile:
    file = MappedFile({"pc.ram": pages_of(memory)}, {"pc.ram": len(memory), "pc.bios": 0x40000})
    return replace(file, **changes)


@pytest.mark.parametrize("seed", range(6))
def test_pages_and_zeros(dump_of, monkeypatch, seed):
    monkeypatch.setattr(mapped_ram, "_CHUNK", [1, 3, 16, 1 << 20][seed % 4])
    memory = memory_of(seed)
    dump = dump_of(file_of(memory))
    assert (dump.format, dump.e_machine) == ("qemu", 62)
    assert dump.memory.read(0, len(memory)) == memory
    assert not dump.lost
    assert not dump.warnings
    assert dump.cpu_registers[0].values["rip"] == 0x1000


@pytest.mark.parametrize("memory", [bytes(MB), own_address_words(PAGE, MB), bytes(PAGE)])
def test_zeros_alone_or_data_alone(dump_of, memory):
    dump = dump_of(file_of(memory))
    assert dump.memory.read(0, len(memory)) == memory
    assert len(dump.memory.extents) == 1
    assert not dump.lost


def test_several_blocks_with_a_last_page_that_fills_no_byte(dump_of, monkeypatch):
    """NUMA nodes, other blocks before and between, and one that is nothing but zeros."""
    monkeypatch.setattr(migration_machines, "_LARGE", MB)
    nodes = [own_address_words(PAGE, 2 * PAGE) + bytes(2 * MB), bytes(MB + 3 * PAGE)]
    file = MappedFile(
        {"ram0": pages_of(nodes[0]), "pc.bios": {0: bytes([7]) * PAGE}},
        {"pc.bios": 0x1000, "ram0": len(nodes[0]), "vga.vram": 2 * MB, "ram1": len(nodes[1])},
    )
    dump = dump_of(file)
    assert dump.memory.read(0, 3 * PAGE) == nodes[0][: 2 * PAGE] + bytes(PAGE)
    assert dump.memory.declared.total == sum(map(len, nodes))
    assert not dump.lost


def test_a_block_that_was_left_out(dump_of):
    memory = memory_of(1)
    file = file_of(memory, ignored=("pc.bios",), addresses=True)
    dump = dump_of(file)
    assert dump.memory.read(0, len(memory)) == memory
    dump = dump_of(file_of(memory, ignored=("pc.ram",), addresses=True))
    (lost,) = dump.lost
    assert lost.why == "never sent"
    assert lost.ranges.total == len(memory)


def test_packed(dump_of):
    memory = memory_of(2)
    assert dump_of(gzip.compress(file_of(memory).build(), 1)).memory.read(0, len(memory)) == memory


def test_a_file_that_was_not_finished(dump_of):
    """No bitmap was written: nothing is known, and nothing is zero."""
    dump = dump_of(file_of(memory_of(3), finished=False))
    assert "different moments" in dump.warnings[0]
    (lost,) = dump.lost
    assert lost.ranges.total == 2 * MB
    with pytest.raises(PageAbsentError):
        dump.memory.read(0, 1)


def test_cut_off_anywhere(dump_of):
    """What is there is right, page by page; what is not is lost."""
    memory = memory_of(4)
    file = file_of(memory)
    image = file.build()
    pages = struct.unpack_from(">Q", image, file.headers["pc.ram"] + 20)[0]
    random = Random(SEED)
    for cut in [len(file.behind), *(len(image) - random.randrange(pages) for _ in range(30))]:
        held = image[:-cut]
        dump = dump_of(held)
        if len(held) > pages + len(memory):
            assert dump.memory.read(0, len(memory)) == memory
            continue
        assert "CPUs are not in here" in dump.warnings[0]
        for at in range(0, len(memory), PAGE):
            data = memory[at : at + PAGE]
            if pages + at + PAGE <= len(held) or not any(data):
                assert dump.memory.read(at, PAGE) == data
            else:
                with pytest.raises(PageAbsentError):
                    dump.memory.read(at, PAGE)


def test_cut_off_in_the_bitmap(dump_of):
    memory = memory_of(5)
    file = file_of(memory)
    image = file.build()[: file.headers["pc.ram"] + 28 + 5]
    dump = dump_of(image)
    assert dump.memory.present().total <= 40 * PAGE
    assert dump.memory.declared.total == len(memory)


def patched(file: MappedFile, at: int, layout: str, value: int) -> bytes:
    image = bytearray(file.build())
    struct.pack_into(layout, image, file.headers["pc.ram"] + at, value)
    return bytes(image)


BASE = file_of(memory_of(0))


@pytest.mark.parametrize(
    ("image", "kind", "word"),
    [
        (replace(BASE, version=2).build(), UnsupportedError, "version 2"),
        (replace(BASE, page_size=16384).build(), UnsupportedError, "16384 bytes"),
        (patched(BASE, 12, ">Q", 0), CorruptDumpError, "bitmap at 0x0"),
        (patched(BASE, 12, ">Q", 1 << 63), CorruptDumpError, "bitmap at"),
        (patched(BASE, 20, ">Q", 0), CorruptDumpError, "its pages at 0x0"),
        (patched(BASE, 20, ">Q", 100), CorruptDumpError, "its pages at 0x64"),
        (patched(BASE, -8, ">Q", 1 << 60), CorruptDumpError, "impossible memory block"),
        (patched(BASE, -8, ">Q", 0), CorruptDumpError, "impossible memory block"),
        (patched(BASE, -8, ">Q", 4097), CorruptDumpError, "impossible memory block"),
    ],
)
def test_refused(dump_of, image, kind, word):
    with pytest.raises(kind, match=word):
        dump_of(image)


def test_pages_far_behind_the_end(dump_of):
    """They are lost, and their declared place costs nothing."""
    dump = dump_of(patched(BASE, 20, ">Q", 1 << 62))
    assert dump.lost[0].ranges.total > 0
    assert dump.memory.present().total < 2 * MB


def test_a_block_larger_than_its_bitmap_can_be(dump_of):
    image = bytearray(BASE.build())
    at = BASE.headers["pc.ram"]
    struct.pack_into(">Q", image, at - 8, 1 << 50)
    struct.pack_into(">Q", image, at - 8 - 7 - 8, 1 << 51 | mig.MEM_SIZE)
    with pytest.raises(CorruptDumpError, match="its pages at"):
        dump_of(bytes(image))


def test_records_of_pages_do_not_belong_here(dump_of):
    image = BASE.build()
    records = mig.begin(mig.PART) + mig.page(0, None, "pc.ram") + mig.end()
    at = image.index(mig.begin(mig.END) + struct.pack(">Q", mig.EOS))
    with pytest.raises(CorruptDumpError, match="mapped-ram"):
        dump_of(image[:at] + records + image[at:])


def test_flipped_bits_never_crash(dump_of):
    random = Random(SEED)
    image = BASE.build()
    end = BASE.headers["pc.bios"] + 28
    for _ in range(150):
        damaged = bytearray(image)
        at = random.choice([random.randrange(300), end - random.randrange(60), random.randrange(len(image))])
        damaged[at] ^= 1 << random.randrange(8)
        try:
            dump = dump_of(bytes(damaged))
        except KdumpError:
            continue
        there = dump.memory.present()
        for start, size in zip(there.start.tolist(), (there.end - there.start).tolist(), strict=True):
            dump.memory.read(start, min(size, 4 * MB))
