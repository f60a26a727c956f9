"""The real gdb opens what tovelf writes: every segment, every thread, and nothing where nothing is."""

from __future__ import annotations

import json
import re
import struct

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import read_core
from tests.builders.elfcore import CoreSpec, NoteSpec, build_core
from tests.builders.kernel import MIB, SMALL, SyntheticKernel, build_vmlinux, make_kernel
from tests.builders.tools import gdb_batch

pytestmark = pytest.mark.gdb


def convert(tmp_path, image: bytes, *options: str) -> str:
    (tmp_path / "dump").write_bytes(image)
    assert (
        main(
            [
                "tovelf",
                "-l",
                "all",
                "-q",
                "-i",
                str(tmp_path / "dump"),
                "-o",
                str(tmp_path / "velf"),
                *options,
            ]
        )
        == 0
    )
    return str(tmp_path / "velf")


def words(kernel: SyntheticKernel, velf: str, addresses: list[int]) -> None:
    """gdb reads the same 8 bytes at each address as RAM has."""
    pages = kernel.kernel_pages()
    listing = "\n".join(f"x/gx {vaddr:#x}" for vaddr in addresses)
    script = velf + ".gdb"
    with open(script, "w") as file:
        file.write(f"set max-completions 0\n{listing}\n")
    shown = gdb_batch([f"core-file {velf}", f"source {script}"])
    found = {
        int(at, 16): int(value, 16)
        for at, value in re.findall(r"(0x[0-9a-f]+)[^:\n]*:\s+(0x[0-9a-f]+)", shown)
    }
    for vaddr in addresses:
        paddr = pages[vaddr & ~4095] + vaddr % 4096
        assert found.get(vaddr) == struct.unpack("<Q", kernel.ram.read(paddr, 8))[0], hex(vaddr)


@pytest.mark.parametrize(
    "changes",
    [{}, {"levels": 5, "style": "qemu"}, {"direct_size": 1 << 30, "sme_mask": 1 << 51}, {"kaslr_offset": 0}],
    ids=str,
)
def test_first_and_last_word_of_every_segment(tmp_path, changes):
    kernel = make_kernel(SMALL, **changes)
    velf = convert(tmp_path, kernel.dump())
    loads = read_core((tmp_path / "velf").read_bytes()).loads
    addresses = [
        vaddr for load in loads for vaddr in (load["p_vaddr"], load["p_vaddr"] + load["p_filesz"] - 8)
    ]
    assert len(addresses) > 40
    words(kernel, velf, addresses)


def test_stored_twice_reads_the_same(tmp_path):
    kernel = make_kernel(ram=((0x1000, 0x9F000), (0x100000, 48 * MIB)), vmalloc_pages=6000, zero_ranges=())
    velf = convert(tmp_path, kernel.dump())
    pages = sorted(
        vaddr for vaddr in kernel.readable_pages() if kernel.bases["vmalloc"] <= vaddr < 0xFFFFD00000000000
    )
    assert len(pages) == 6000
    words(kernel, velf, [vaddr + 8 * (index % 512) for index, vaddr in enumerate(pages)][::3])


def test_nothing_where_the_dump_has_nothing(tmp_path):
    kernel = make_kernel(SMALL)
    velf = convert(tmp_path, kernel.dump())
    hole = kernel.bases["vmalloc"]
    shown = gdb_batch([f"core-file {velf}", f"x/gx {hole:#x}", "x/gx 0xffffffffff5fb000", "x/gx 0x400000"])
    assert shown.count("Cannot access memory") == 3


def test_threads_have_their_own_ids_and_registers(tmp_path):
    kernel = make_kernel(SMALL, cpus=3)
    velf = convert(tmp_path, kernel.dump())
    shown = gdb_batch([f"core-file {velf}", "thread apply all -ascending p/x $rbp"])
    assert re.findall(r"Thread \d+ \(LWP (-?\d+)\)", shown) == ["431", "432", "-3"]
    assert re.findall(r"= (0x1234000\d)", shown) == ["0x12340000", "0x12340001", "0x12340002"]


def test_idle_cpus_do_not_show_each_others_registers(tmp_path):
    """All pids 0: without ids of their own gdb 13 shows the first CPU's registers for all."""
    kernel = make_kernel(SMALL, cpus=4)
    notes = []
    for note in kernel.notes():
        desc = bytearray(note.desc)
        if note.type == 1:
            struct.pack_into("<i", desc, 32, 0)
        notes.append(NoteSpec(note.name, note.type, bytes(desc)))
    velf = convert(tmp_path, build_core(CoreSpec(kernel.segments(), notes)))
    shown = gdb_batch([f"core-file {velf}", "thread apply all -ascending p/x $rbp"])
    assert re.findall(r"Thread \d+ \(LWP (-?\d+)\)", shown) == ["-1", "-2", "-3", "-4"]
    assert re.findall(r"= (0x1234000\d)", shown) == [f"0x1234000{cpu}" for cpu in range(4)]


def test_symbols_with_the_offset_that_json_tells(tmp_path, capfd):
    kernel = make_kernel(SMALL)
    (tmp_path / "dump").write_bytes(kernel.dump())
    (tmp_path / "vmlinux").write_bytes(build_vmlinux(kernel))
    argv = [
        "tovelf",
        "-l",
        "all",
        "--json",
        "-i",
        str(tmp_path / "dump"),
        "-o",
        str(tmp_path / "velf"),
        "-m",
        str(tmp_path / "vmlinux"),
    ]
    assert main(argv) == 0
    offset = json.loads(capfd.readouterr().out)["kaslr_offset"]
    shown = gdb_batch(
        [
            f"core-file {tmp_path}/velf",
            f"symbol-file -o {offset} {tmp_path}/vmlinux",
            "info symbol $pc",
            "p &panic",
            "x/s (char *)&linux_banner",
        ]
    )
    assert "panic + 16 in section .text" in shown
    assert f"{kernel.symbol('panic'):#x}" in shown
    assert "Linux version 6.1.0-test-amd64" in shown


def test_makedyn_and_auxv_move_the_symbols(tmp_path, capfd):
    """The seed's way: a position-independent vmlinux goes where AT_ENTRY says."""
    kernel = make_kernel(SMALL)
    (tmp_path / "vmlinux").write_bytes(build_vmlinux(kernel))
    velf = convert(tmp_path, kernel.dump(), "-m", str(tmp_path / "vmlinux"))
    assert main(["makedyn", str(tmp_path / "vmlinux")]) == 0
    shown = gdb_batch([f"file {tmp_path}/vmlinux", f"core-file {velf}", "p &panic"])
    assert f"{kernel.symbol('panic'):#x}" in shown
