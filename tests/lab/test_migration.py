"""QEMU's migration stream of a stopped guest holds the memory that its dump-guest-memory wrote."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_elftool.addr import subtract_ranges
from kdump_elftool.errors import IdentityError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import migration_machines, open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.placement import system_ram
from kdump_elftool.memory.physical import PhysicalMemory
from lab.config import Row
from tests.lab.dumps import CONVERTED, LabDump, kdump_elftool, selected_rows
from tests.lab.variants import ROM_BYTES, both, loads_of, same_bytes, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SAVED = [row for row in selected_rows() if row.scenario in ("machine", "newer-machine", "dirty")]
"""Rows with all of a machine: also raw memory."""
NEWER = [row for row in selected_rows() if row.scenario == "newer"]
ROWS = [row for row in SAVED + NEWER if row.guest.arch.name in CONVERTED]
PLACED = [row for row in SAVED if not row.guest.arch.name.startswith("mips")]
"""Those whose machine's memory our tool can place by now."""
DIRTY = [row for row in SAVED if row.scenario == "dirty"]
PIECE = 1 << 20
PAGE = 4096
WRITTEN = b"lab page that is written all the time"
"""In each page of lab/dirty.c, behind the page's number and the round it was written in."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_same_memory(row: Row, tmp_path: Path) -> None:
    dump, stream = both(row, "qemu.stream")
    original = tovelf([dump.path], tmp_path / "original", dump.vmlinux)
    variant = tovelf([stream], tmp_path / "velf", dump.vmlinux)
    compared = same_bytes(original, variant)
    whole = sum(size for _, _, size in loads_of(original.velf))
    assert whole - ROM_BYTES <= compared <= whole


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_same_answers(row: Row) -> None:
    dump, stream = both(row, "qemu.stream")
    for command in ("dmesg", "ps"):
        answers = [kdump_elftool(command, path) for path in (dump.path, stream)]
        assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
        assert answers[0].stdout == answers[1].stdout
    told = [json.loads(kdump_elftool("info", "--json", path).stdout) for path in (dump.path, stream)]
    for key in ("release", "build_id", "panic_message", "kaslr_offset", "phys_base"):
        assert told[0][key] == told[1][key], key


def pieces(memory: PhysicalMemory) -> Iterator[tuple[int, int]]:
    """(paddr, size) of all there is."""
    for start, end in zip(memory.declared.start.tolist(), memory.declared.end.tolist(), strict=True):
        for paddr in range(start, end, PIECE):
            yield paddr, min(PIECE, end - paddr)


def size_of(row: Row) -> int:
    return int(row.memory[:-1]) << {"M": 20, "G": 30}[row.memory[-1]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_page_of_ram(row: Row) -> None:
    """Also what no page table maps: read by physical address, in pieces."""
    dump, stream = both(row, "qemu.stream")
    compared = 0
    with InputFile.open(str(dump.path)) as elf, InputFile.open(str(stream)) as saved:
        ours, theirs = open_dump(saved).memory, open_dump(elf).memory
        for paddr, size in pieces(ours):
            assert ours.read(paddr, size) == theirs.read(paddr, size), hex(paddr)
            compared += size
    assert compared == size_of(row)


@pytest.mark.parametrize("row", PLACED, ids=lambda row: row.name)
def test_what_pmemsave_wrote(row: Row) -> None:
    """Of each machine, up to the end of that file: it is as long as the memory, holes included."""
    folder = LabDump(row.name, row.scenario, "qemu.raw").directory
    base, end = row.guest.arch.ram_base, row.guest.arch.ram_base + size_of(row)
    compared = above = 0
    with (
        InputFile.open(str(folder / "qemu.stream")) as saved,
        (folder / "qemu.raw").open("rb", buffering=0) as raw,
    ):
        memory = open_dump(saved).memory
        for paddr, size in pieces(memory):
            if paddr >= end:
                above += size
                continue
            raw.seek(paddr - base)
            assert memory.read(paddr, size) == raw.read(size), hex(paddr)
            compared += size
    assert compared + above == size_of(row)
    assert compared >= size_of(row) // 2


@pytest.mark.parametrize("row", [row for row in SAVED if row not in DIRTY], ids=lambda row: row.name)
def test_the_packed_stream_is_the_stream(row: Row) -> None:
    """That the lab made what it says; the dumps were written at the same time."""
    folder = LabDump(row.name, row.scenario, "qemu.stream").directory
    with gzip.open(folder / "qemu.stream.gz") as packed, (folder / "qemu.stream").open("rb") as plain:
        while block := plain.read(PIECE):
            assert packed.read(len(block)) == block
        assert packed.read(1) == b""


@pytest.mark.parametrize("row", DIRTY, ids=lambda row: row.name)
def test_a_stream_of_a_running_guest_holds_pages_again(row: Row) -> None:
    """What the other tests compare is the last of several copies of a page."""
    folder = LabDump(row.name, row.scenario, "qemu.stream").directory
    told = json.loads((folder / "migration.json").read_text())
    assert told["dirty-sync-count"] > 4
    pages: dict[int, set[int]] = {}
    with (folder / "qemu.stream").open("rb") as stream:
        data = stream.read()
    at = data.find(WRITTEN)
    while at >= 0:
        number, rounds = struct.unpack_from("<QQ", data, at - 16)
        pages.setdefault(number, set()).add(rounds)
        at = data.find(WRITTEN, at + PAGE)
    several = sum(len(rounds) > 1 for rounds in pages.values())
    assert several > 4096


MAPPED = [row for row in SAVED if row.scenario == "newer-machine"]


@pytest.mark.parametrize("row", MAPPED, ids=lambda row: row.name)
def test_mapped_ram_is_the_stream_and_the_dump(row: Row) -> None:
    """Saved by a machine that had loaded the stream, stopped all the while."""
    folder = LabDump(row.name, row.scenario, "qemu.mapped").directory
    with (
        InputFile.open(str(folder / "qemu.mapped")) as mapped,
        InputFile.open(str(folder / "qemu.stream")) as stream,
        InputFile.open(str(folder / "qemu.elf")) as elf,
    ):
        ours, sent, theirs = open_dump(mapped), open_dump(stream), open_dump(elf).memory
        assert (ours.kind, ours.e_machine) == (sent.kind, sent.e_machine)
        assert ours.cpu_registers
        assert ours.cpu_registers == sent.cpu_registers
        assert not ours.lost
        assert not ours.warnings
        compared = 0
        for paddr, size in pieces(ours.memory):
            assert ours.memory.read(paddr, size) == theirs.read(paddr, size), hex(paddr)
            compared += size
    assert compared == size_of(row)


WITH_HOLE = [row for row in SAVED if row.guest.arch.name == "x86_64" and size_of(row) > 4 << 30]
"""Guests with memory above 4 GB, and a hole below it."""


@pytest.mark.parametrize("row", WITH_HOLE, ids=lambda row: row.name)
def test_the_kernel_has_its_memory_where_the_stream_was_put(row: Row) -> None:
    stream = LabDump(row.name, row.scenario, "qemu.stream").path
    with InputFile.open(str(stream)) as saved:
        dump = open_dump(saved)
        kernel = open_kernel(dump, KernelRequest())
        assert not kernel.warnings
        told = system_ram(dump, kernel)
        assert told is not None
        assert told.complete
        assert not len(subtract_ranges(told.ranges, dump.memory.declared))
        assert size_of(row) - (1 << 20) <= told.ranges.total <= size_of(row)


@pytest.mark.parametrize("row", WITH_HOLE, ids=lambda row: row.name)
def test_a_wrong_hole_is_noticed(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with max-ram-below-4g: the kernel is found and its tables lie elsewhere, or it is not found."""
    stream = LabDump(row.name, row.scenario, "qemu.stream").path
    swapped = tuple(
        replace(machine, low=0x140000000 - machine.low, threshold=1 << 30)
        if machine.block == "pc.ram"
        else machine
        for machine in migration_machines.MACHINES
    )
    monkeypatch.setattr(migration_machines, "MACHINES", swapped)
    with InputFile.open(str(stream)) as saved:
        try:
            said = " ".join(open_kernel(open_dump(saved), KernelRequest()).warnings)
        except IdentityError as error:
            said = str(error.hint)
    assert "max-ram-below-4g" in said


OTHERS = [row for row in SAVED if row.guest.arch.name in ("i386", "arm", "aarch64", "armhf", "arm64")]
"""Kernels whose addresses have 4 or 8 bytes, whose types are in BTF or in DWARF alone."""


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row.name)
def test_other_kernels_tell_their_memory(row: Row) -> None:
    dump, stream = both(row, "qemu.stream")
    done = kdump_elftool("info", "--json", "--verbose", "-m", dump.vmlinux, stream)
    assert done.returncode == 0, done.stderr
    ranges = [(int(low, 16), int(high, 16)) for low, high in json.loads(done.stdout)["system_ram"]]
    base = row.guest.arch.ram_base
    assert all(base <= low < high <= base + size_of(row) for low, high in ranges)
    assert sum(high - low for low, high in ranges) >= size_of(row) * 9 // 10
