"""VMware's states and memory, built from the description of crash's reader."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from random import Random

import pytest

from kdump_elftool.cli.raw_input import with_sibling
from kdump_elftool.errors import CorruptDumpError, FormatError, KdumpError, UnsupportedError, UsageError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from tests.builders.elfcore import own_address_words
from tests.builders.vmware import PAGE, State, block, cpu_group, memory_group, tag, u32, u64

MB = 1 << 20
SEED = 20261124
HOLE = 0xC0000
"""First frame of VMware's hole for PCI; memory goes on at 4 GB."""
MEMORY = own_address_words(PAGE, 2 * MB)
SPLIT = [(0, 0, 256), (256, 1 << 20, 256)]
"""The first MB at 0, the second at 4 GB."""
CPUS = [
    {"rip": 0xFFFFFFFF81000000 + n, "rsp": 0xFFFFC90000001000 + n, "rax": n, "cr3": 0x2000, "cr0": 1}
    for n in (0, 1)
]


@pytest.fixture
def dump_of(tmp_path):
    files = []

    def build(*images: bytes, fmt: str = "auto", options: OpenOptions = OpenOptions()) -> Dump:
        for image, suffix in zip(images, (".vmss", ".vmem"), strict=False):
            path = tmp_path / f"guest{suffix}"
            path.write_bytes(image)
            files.append(InputFile.open(str(path)))
        first, *more = files[-len(images) :]
        return open_dump(first, fmt, options, tuple(more))

    yield build
    for file in files:
        file.close()


def state(regions: list[tuple[int, int, int]] = SPLIT, **more: bytes) -> State:
    return State(
        {"Checkpoint": u32("x", 1) + b"\0\0", "cpu": cpu_group(CPUS), "memory": memory_group(regions), **more}
    )


def endless(size: int) -> bytes:
    """A block of memory without regions that says to be one byte smaller than ``size``."""
    return memory_group([], block("Memory", b"x").replace(struct.pack("<Q", 1), struct.pack("<Q", size - 1)))


@pytest.mark.parametrize("magic", [0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2])
@pytest.mark.parametrize("fmt", ["auto", "vmware"])
def test_memory_beside_the_state(dump_of, magic, fmt):
    dump = dump_of(replace(state(), magic=magic).build(), MEMORY, fmt=fmt)
    assert (dump.format, dump.e_machine, dump.kind.bits) == ("vmware", 62, 64)
    assert dump.memory.read(0, MB) == MEMORY[:MB]
    assert dump.memory.read(1 << 32, MB) == MEMORY[MB:]
    assert dump.memory.declared.total == 2 * MB
    assert not dump.lost
    assert not dump.warnings


def test_memory_in_the_state(dump_of):
    """Behind padding, and without regions: in one piece from 0 on."""
    for regions in (SPLIT, []):
        whole = state(memory=memory_group(regions, block("Memory", MEMORY, padding=77)))
        dump = dump_of(whole.build())
        assert dump.memory.read(0, MB) == MEMORY[:MB]
        assert dump.memory.read(1 << 32 if regions else MB, MB) == MEMORY[MB:]
        assert not dump.lost


def test_memory_is_taken_as_it_is(dump_of):
    """It may begin like any compressed file; the state may be in one."""
    memory = b"\x1f\x8b\x08" + MEMORY[3:]
    dump = dump_of(gzip.compress(state().build()), memory)
    assert dump.memory.read(0, MB) == memory[:MB]


@pytest.mark.parametrize("blocks", [False, True])
def test_registers(dump_of, blocks):
    dump = dump_of(state(cpu=cpu_group(CPUS, blocks=blocks)).build(), MEMORY)
    assert [cpu.number for cpu in dump.cpu_registers] == [0, 1]
    for cpu, given in zip(dump.cpu_registers, CPUS, strict=True):
        assert {name: cpu.values[name] for name in given} == given
        assert (cpu.values["cs"], cpu.values["rflags"]) == (0x10, 2)


@pytest.mark.parametrize("order", [("EFLAGS", "eflags"), ("eflags", "EFLAGS")])
def test_flags_in_two_parts(dump_of, order):
    """As crash reads them: both count."""
    parts = {"EFLAGS": 0x202, "eflags": 0x44}
    cpu = u64("rip", 1, 0) + u64("rsp", 2, 0) + b"".join(u32(name, parts[name], 0) for name in order)
    dump = dump_of(state(cpu=cpu + b"\0\0").build(), MEMORY)
    assert dump.cpu_registers[0].values["rflags"] == 0x246


def test_registers_that_make_no_sense_are_left_out(dump_of):
    damaged = state(cpu=cpu_group(CPUS)[:-2] + b"\x3f\xff")
    image = State({"memory": damaged.groups["memory"], "cpu": damaged.groups["cpu"]}).build()
    dump = dump_of(image, MEMORY)
    assert not dump.cpu_registers
    assert not dump.lost
    assert not dump_of(state().build(), MEMORY, options=OpenOptions(e_machine=8)).cpu_registers


def test_truncated(dump_of):
    dump = dump_of(state().build(), MEMORY[: MB + 8192])
    (lost,) = dump.lost
    assert "guest.vmem is truncated at file offset" in lost.why
    assert lost.ranges.total == MB - 8192
    assert dump.memory.read(1 << 32, 8192) == MEMORY[MB : MB + 8192]
    image = State({"cpu": cpu_group(CPUS), "memory": memory_group(SPLIT, block("Memory", MEMORY))}).build()
    dump = dump_of(image[: -MB - 2])
    assert dump.memory.read(0, MB) == MEMORY[:MB]
    assert dump.lost[0].ranges.total == MB


def test_no_memory_beyond_its_block(dump_of):
    """What is behind it in the state is no memory."""
    image = State(
        {"memory": memory_group([(0, 0, 600)], block("Memory", MEMORY)), "cpu": cpu_group(CPUS)}
    ).build()
    dump = dump_of(image)
    assert dump.memory.present().total == 2 * MB
    assert dump.memory.absent().total == 88 * PAGE


def test_a_file_is_missing(dump_of, tmp_path):
    with pytest.raises(FormatError, match=r"guest\.vmem is missing"):
        dump_of(state().build())
    path = tmp_path / "other.vmem"
    path.write_bytes(MEMORY)
    for fmt in ("auto", "vmware"):
        with (
            InputFile.open(str(path)) as file,
            pytest.raises(FormatError, match=r"other\.vmss or .*other\.vmsn"),
        ):
            open_dump(file, fmt)


def test_files_that_go_together(tmp_path):
    state, memory, other = (str(tmp_path / name) for name in ("a.vmsn", "a.vmem", "b.vmem"))
    assert with_sibling((state,)) == (state,)
    for path in (state, memory, other):
        (tmp_path / path).write_bytes(b"x")
    assert (
        with_sibling((state,)) == with_sibling((memory,)) == with_sibling((memory, state)) == (state, memory)
    )
    assert with_sibling((other,)) == (other,)
    assert with_sibling((state, other)) == (state, other)
    assert with_sibling(("a.vmss.gz",)) == ("a.vmss.gz",)


@pytest.mark.parametrize(
    ("image", "kind", "word"),
    [
        (replace(state(), magic=0xBED0BED0).build(), UnsupportedError, "32-bit offsets"),
        (
            state(memory=memory_group([], block("Memory", b"x", compressed=True))).build(),
            UnsupportedError,
            "compressed",
        ),
        (state().build()[:11], CorruptDumpError, "within its header"),
        (state().build()[:100], CorruptDumpError, "list of groups"),
        (struct.pack("<3I", 0xBED2BED2, 8, 1 << 31), CorruptDumpError, "groups"),
        (struct.pack("<3I", 0xBED2BED2, 8, 0), CorruptDumpError, "0 groups"),
        (state(memory=u32("regionsCount", 1 << 30) + b"\0\0").build(), CorruptDumpError, "regions"),
        (state(memory=u32("regionsCount", 2) + b"\0\0").build(), CorruptDumpError, "not told"),
        (state(memory=tag("regionsCount", bytes(9)) + b"\0\0").build(), CorruptDumpError, "no number"),
        (state([(0, 0, 256), (256, 255, 256)]).build(), CorruptDumpError, "impossible region"),
        (state(memory=memory_group(SPLIT)[:-7]).build(), CorruptDumpError, "ends within"),
        (
            state(memory=endless(1 << 64)).build(),
            CorruptDumpError,
            "impossible size of memory, 0xf{16} bytes",
        ),
        (state(memory=endless((1 << 56) + 2)).build(), CorruptDumpError, "impossible size"),
    ],
)
def test_refused(dump_of, image, kind, word):
    with pytest.raises(kind, match=word):
        dump_of(image, MEMORY)


def test_too_many_files(dump_of, tmp_path):
    (tmp_path / "c").write_bytes(MEMORY)
    (tmp_path / "s").write_bytes(state().build())
    with (
        InputFile.open(f"{tmp_path}/s") as first,
        InputFile.open(f"{tmp_path}/c") as other,
        pytest.raises(UsageError),
    ):
        open_dump(first, "auto", None, (other, other, other))


def test_flipped_bits_never_crash(dump_of):
    random = Random(SEED)
    image = state(memory=memory_group(SPLIT, block("Memory", MEMORY[:PAGE]))).build()
    for _ in range(300):
        damaged = bytearray(image)
        damaged[random.randrange(len(image) - PAGE)] ^= 1 << random.randrange(8)
        try:
            dump = dump_of(bytes(damaged), MEMORY)
        except KdumpError:
            continue
        there = dump.memory.present()
        for start, end in zip(there.start.tolist(), there.end.tolist(), strict=True):
            dump.memory.read(start, min(end - start, MB))
