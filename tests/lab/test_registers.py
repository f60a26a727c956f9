"""Registers of a saved machine: by its migration stream and by ``info registers`` as in dump-guest-memory.

What the monitor does not print is kernel_gs_base, selectors and flags of the descriptor tables, and the
low and high bits of segments' flags: all of that is in QEMU's own notes alone, which gdb does not show.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdump_elftool.elf.notes import Note
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.register_text import read_registers
from kdump_elftool.kernel.qemu_notes import LAYOUT, qemu_cpus
from lab.config import Row
from tests.lab.dumps import LabDump, gdb, selected_rows
from tests.lab.variants import Variant, both, loads_of, notes_of, tovelf

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SAVED = [row for row in selected_rows() if row.scenario in ("machine", "newer")]
KNOWN = ("x86_64", "i386", "aarch64", "arm")
"""Of their CPUs the streams' fields are known."""
ROWS = [row for row in SAVED if row.scenario == "machine" and row.guest.arch.name in KNOWN]
NEWER = [row for row in SAVED if row.guest.arch.name == "x86_64"]
X64 = [row for row in ROWS if row.name == "x64-61-l4.machine"]
CUTS = (0, 0x5A5A000, 0x10000000)
FLAGS_SHOWN = 0x00FFFF00
NOT_PRINTED = {"size", "kernel_gs_base", "gdt", "idt", "gdt_flags", "idt_flags"}


def cpus_of(dump: LabDump) -> int:
    """How many CPUs QEMU was told to give the guest."""
    words = json.loads((dump.directory / "row.json").read_text())["qemu"]
    return int(words[words.index("-smp") + 1])


@pytest.mark.parametrize("row", NEWER, ids=lambda row: row.name)
def test_a_stream_has_the_notes_of_the_dump(row: Row, tmp_path: Path) -> None:
    """Byte for byte: all registers of all CPUs, their numbers, and QEMU's own notes."""
    dump, stream = both(row, "qemu.stream")
    velfs = [
        tovelf([path], tmp_path / f"velf{index}", dump.vmlinux)
        for index, path in enumerate((dump.path, stream))
    ]
    original, variant = (notes_of(velf.velf) for velf in velfs)
    assert [note[:2] for note in original].count(("CORE", 1)) == cpus_of(dump)
    assert variant == original


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_stream_has_what_the_monitor_printed(row: Row) -> None:
    dump, stream = both(row, "qemu.stream")
    with (
        InputFile.open(str(stream)) as saved,
        InputFile.open(str(dump.directory / "registers.txt")) as printed,
    ):
        ours, theirs = open_dump(saved).cpu_registers, read_registers(printed)
    assert [cpu.number for cpu in ours] == [cpu.number for cpu in theirs]
    assert len(ours) == cpus_of(dump)
    for cpu, told in zip(ours, theirs, strict=True):
        compared = 0
        for name, value in told.values.items():
            mask = FLAGS_SHOWN if name.endswith("_flags") else ~0
            if name in cpu.values:
                assert cpu.values[name] & mask == value & mask, name
                compared += 1
        assert compared >= len(told.values) - 12, "the 12 that are named differently in 32-bit mode"


def raw_inputs(kind: str, raw: Path, scratch: Path) -> list[str | Path]:
    """Raw memory as one file or in three pieces, with the registers beside it."""
    names: list[str | Path] = ["--cpu-regs", raw.with_name("registers.txt")]
    if kind == "whole":
        return [*names, "-I", "raw", raw]
    ends = (*CUTS[1:], raw.stat().st_size)
    with raw.open("rb") as whole:
        for start, end in zip(CUTS, ends, strict=True):
            piece = scratch / f"piece-{start:x}"
            whole.seek(start)
            with piece.open("wb") as out:
                for at in range(start, end, 8 << 20):
                    out.write(whole.read(min(8 << 20, end - at)))
            names.append(f"{piece}@{start:#x}")
    return names


def shown(velf: Variant) -> tuple[list[str], str]:
    """What gdb lists as threads, and every register of each."""
    out = gdb(
        f"core-file {velf.velf}", velf.symbol_file, "info threads", "thread apply all info registers"
    ).stdout
    threads, _, registers = out.partition("\nThread ")
    return re.findall(r"^[* ] +\d+ .*$", threads, re.M), registers


@pytest.mark.parametrize("row", X64, ids=lambda row: row.name)
@pytest.mark.parametrize("tasks", [False, True], ids=["cpus", "tasks"])
def test_raw_memory_with_printed_registers(row: Row, tasks: bool, tmp_path: Path) -> None:
    """Whole, in pieces, and the stream: threads, registers and segments of the ELF dump's velf."""
    dump, raw = both(row, "qemu.raw")
    more: list[str | Path] = ["-p", "-m", dump.vmlinux] if tasks else []
    original = tovelf([dump.path], tmp_path / "original", dump.vmlinux, *more)
    notes = notes_of(original.velf)
    in_gdb = shown(original)
    threads = [note[:2] for note in notes].count(("CORE", 1))
    assert threads > 60 if tasks else threads == cpus_of(dump)
    assert len(in_gdb[0]) == in_gdb[1].count("\nrip ") == threads
    segments = [(vaddr, size) for vaddr, _, size in loads_of(original.velf)]
    for kind in ("whole", "pieces", "stream"):
        inputs = [dump.directory / "qemu.stream"] if kind == "stream" else raw_inputs(kind, raw, tmp_path)
        variant = tovelf([], tmp_path / "variant", dump.vmlinux, *inputs, *more)
        found = notes_of(variant.velf)
        assert [note for note in found if note[0] != "QEMU"] == [note for note in notes if note[0] != "QEMU"]
        check_qemu(found, notes)
        assert [(vaddr, size) for vaddr, _, size in loads_of(variant.velf)] == segments
        assert shown(variant) == in_gdb
        variant.velf.unlink()


def check_qemu(found: list[tuple[str, int, bytes]], notes: list[tuple[str, int, bytes]]) -> None:
    """QEMU's notes but for what the monitor does not print."""
    ours, theirs = (qemu_cpus(tuple(as_note(note) for note in side)) for side in (found, notes))
    assert len(ours) == len(theirs)
    for cpu, original in zip(ours, theirs, strict=True):
        for name, _ in LAYOUT:
            if name in NOT_PRINTED:
                continue
            mask = FLAGS_SHOWN if name.endswith("_flags") else ~0
            assert cpu[name] & mask == original[name] & mask, name


def as_note(note: tuple[str, int, bytes]) -> Note:
    return Note(note[0].encode(), note[1], note[2])
