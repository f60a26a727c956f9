"""The headers that are written, against the builder's, which knows the same description; bitmaps as sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.errors import OutputError
from kdump_elftool.formats import diskdump_layout, diskdump_structs
from kdump_elftool.formats.diskdump_layout import KdumpLayout, bitmap, check, frame_batches, headers
from kdump_elftool.formats.diskdump_machines import find_machine, machine_name
from tests.builders.diskdump import KdumpSpec, PageSpec, build_kdump

RUNS = Ranges(u64([0, 7, 64, 8191, 30000]), u64([1, 9, 72, 8194, 90001]))
NOTHING = Ranges(u64([]), u64([]))


def layout_of(**changes: object) -> KdumpLayout:
    layout = KdumpLayout(
        order="<", bits=64, align=8, page_size=4096,
        utsname=(b"Linux", b"lab", b"6.1.0", b"#1 SMP", b"x86_64", b"(none)"), seconds=0, nr_cpus=2,
        phys_base=-0x1000, dump_level=31, flag=0x20, notes=(), vmcoreinfo=None,
        ram=Ranges(u64([0]), u64([0x900])), dumped=Ranges(u64([5]), u64([6])),
    )  # fmt: skip
    return replace(layout, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "align"), [(64, 8), (32, 4), (32, 8)])
def test_headers_are_the_builder_s(order, bits, align):
    layout = layout_of(order=order, bits=bits, align=align)
    spec = KdumpSpec(
        pages=[PageSpec(5, bytes(4096))], ram=[(0, 0x900)], bits=bits, align=align,
        big_endian=order == ">", head={"status": 0x20}, sub={"phys_base": -0x1000, "dump_level": 31},
    )  # fmt: skip
    image = build_kdump(spec)
    for offset, data in headers(layout):
        assert image[offset : offset + len(data)] == data
        assert not any(image[offset + len(data) : offset + 4096])
    assert layout.bitmap_offset == 0x2000 and layout.descriptors_offset == 0x4000


@pytest.mark.parametrize("step", [1, 8, 1024, 1 << 20])
def test_bitmap_has_these_bits(step):
    image = bytearray(1 << 14)
    written = 0
    for at, data in bitmap(RUNS, step):
        assert len(data) <= step and at >= written
        image[at : at + len(data)] = data
        written = at + len(data)
    bits = np.flatnonzero(np.unpackbits(np.frombuffer(image, dtype=np.uint8), bitorder="little"))
    expected = [bit for low, high in zip(RUNS.start, RUNS.end, strict=True) for bit in range(low, high)]
    assert bits.tolist() == expected


def test_an_empty_bitmap():
    assert list(bitmap(NOTHING)) == []


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
def test_frames_in_batches(size):
    batches = [batch.tolist() for batch in frame_batches(RUNS, size)]
    assert {len(batch) for batch in batches[:-1]} <= {size}
    expected = [bit for low, high in zip(RUNS.start, RUNS.end, strict=True) for bit in range(low, high)]
    assert [frame for batch in batches for frame in batch] == expected


def test_memory_too_far_up():
    far = Ranges(u64([1 << 40]), u64([(1 << 40) + 1]))
    with pytest.raises(OutputError, match="0x10000000001000 does not fit"):
        check(layout_of(ram=far))
    check(layout_of(ram=Ranges(u64([(1 << 35) - 1]), u64([1 << 35]))))


def test_the_widths_of_the_maximum():
    layout = layout_of(ram=Ranges(u64([1 << 33]), u64([(1 << 33) + 8])))
    raw = dict(headers(layout))
    fields = diskdump_structs.HEAD_FIELDS
    words = np.frombuffer(raw[0], dtype="<u4", offset=424)
    assert words[fields.index("max_mapnr")] == 0xFFFFFFFF
    assert int.from_bytes(raw[4096][96:104], "little") == (1 << 33) + 8
    assert layout.bitmap_size * 8 >= layout.max_mapnr


@pytest.mark.parametrize("machine", [3, 8, 20, 21, 22, 40, 62, 183, 243, 258])
def test_machine_names_are_read_as_written(machine):
    bits = 32 if machine in (3, 8, 20, 40) else 64
    name = machine_name(machine, bits, "<").decode()
    assert find_machine(name, "<", bits, ())[:2] == (machine, bits)


def test_unknown_machine_has_no_name():
    assert machine_name(9999, 64, "<") == b""
    assert diskdump_layout.FLAGS["none"] == 0
