"""Every lab dump's velf, held against gdb, drgn, readelf and what the guest itself printed."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.lab.conftest import Converted
from tests.lab.dumps import drgn_oracle, gdb, gdb_bytes

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

SEED = 20261122
SAMPLES = {
    "text": 1000,
    "data": 1000,
    "bss": 1000,
    "per-cpu": 1000,
    "vmalloc": 1500,
    "module": 1000,
    "direct map": 1000,
    "vmemmap": 1000,
}
FROM_SEGMENTS = 2000
TOTAL = 10_000


def system_ram(truth: dict) -> list[list[int]]:
    """RAM as the guest's /proc/iomem lists it, whole pages."""
    ranges = [
        [int(entry["start"], 16), int(entry["end"], 16) + 1]
        for entry in truth["iomem"]
        if entry["name"] == "System RAM"
    ]
    whole = [[-(-start // 4096) * 4096, end // 4096 * 4096] for start, end in ranges]
    return [[start, end] for start, end in whole if end > start]


def segment_addresses(velf: Path, count: int) -> list[int]:
    """Addresses of the velf's own segments: half by segment, half by size."""
    with velf.open("rb") as file:
        loads = [
            (segment["p_vaddr"], segment["p_filesz"])
            for segment in ELFFile(file).iter_segments()
            if segment["p_type"] == "PT_LOAD" and segment["p_filesz"] >= 8
        ]
    chance = random.Random(SEED)
    evenly = chance.choices(loads, k=count // 2)
    by_size = chance.choices(loads, weights=[size for _, size in loads], k=count - count // 2)
    return [(start + chance.randrange(size - 7)) & ~7 for start, size in evenly + by_size]


def test_memory_and_tasks_are_the_same(converted: Converted, tmp_path: Path) -> None:
    dump, velf = converted.dump, converted.velf
    drawn = segment_addresses(velf, FROM_SEGMENTS)
    request = {"seed": SEED, "samples": SAMPLES, "addresses": drawn, "ram": system_ram(dump.truth)}
    original = drgn_oracle(dump.path, dump.vmlinux, request, tmp_path)

    expected = [(category, address, value) for category, address, value in original["samples"]]
    expected += [
        ("segment", address, value) for address, value in zip(drawn, original["addresses"], strict=True)
    ]
    got = gdb_bytes(velf, [address for _, address, _ in expected], tmp_path)
    wrong = [
        (category, hex(address), value, got[address])
        for category, address, value in expected
        if got[address] != value
    ]
    assert not wrong, f"{len(wrong)} of {len(expected)} differ: {wrong[:10]}"
    counted = {category: sum(entry[0] == category for entry in expected) for category in SAMPLES}
    # crashkernel memory, freed init pages and holes are not in the dump; the rest must be
    for category in ("text", "per-cpu", "vmalloc", "module"):
        assert counted[category] >= 0.9 * SAMPLES[category], (category, original["unreadable"])
    assert len(expected) >= TOTAL, original["unreadable"]

    empty = {"seed": 0, "samples": {}, "addresses": [], "ram": []}
    ours = drgn_oracle(velf, dump.vmlinux, empty, tmp_path)
    assert ours["tasks"] == original["tasks"]
    assert len(ours["tasks"]) > 40


def test_readelf_has_no_complaint(converted: Converted) -> None:
    done = subprocess.run(["readelf", "-lW", converted.velf], capture_output=True, text=True)
    assert done.returncode == 0
    assert not done.stderr
    assert "warning" not in done.stdout.lower()


def test_headers(converted: Converted) -> None:
    with converted.velf.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_ident"]["EI_OSABI"] == "ELFOSABI_LINUX"
        segments = list(elf.iter_segments())
    assert segments[0]["p_type"] == "PT_NOTE"
    loads = segments[1:]
    assert len(loads) == converted.summary["segments"] <= 4096
    assert all(load["p_filesz"] == load["p_memsz"] for load in loads)
    assert all((load["p_offset"] - load["p_vaddr"]) % 4096 == 0 for load in loads)
    assert converted.velf.stat().st_mode & 0o777 == 0o600


def test_whole_dump_is_covered_without_complaint(converted: Converted) -> None:
    coverage = converted.summary["coverage"]
    assert coverage["lost_ranges"] == 0, coverage
    assert coverage["covered_pages"] == coverage["total_pages"]
    assert not converted.stderr


def test_threads_have_unique_ids(converted: Converted) -> None:
    shown = gdb(f"core-file {converted.velf}", "info threads")
    assert "warning" not in shown.stderr.lower(), shown.stderr
    ids = re.findall(r"LWP (-?\d+)", shown.stdout.split("Id ")[-1])
    assert len(ids) == len(set(ids)) == 2, shown.stdout
    assert "0" not in ids


def test_release_is_what_the_guest_printed(converted: Converted) -> None:
    assert converted.summary["release"] == converted.dump.truth["release"]


def test_kaslr_offset_is_the_guests(converted: Converted) -> None:
    """The guest's own /proc/kallsyms against the link addresses that nm finds in vmlinux."""
    running = int(converted.dump.truth["kallsyms"]["_stext"], 16)
    shown = subprocess.run(["nm", converted.dump.vmlinux], capture_output=True, text=True, check=True)
    linked = int(re.search(r"^([0-9a-f]+) . _stext$", shown.stdout, re.M)[1], 16)
    assert int(converted.summary["kaslr_offset"], 16) == running - linked
    if "nokaslr" in converted.dump.row:
        assert running == linked


def test_panic_backtrace(crashed: Converted) -> None:
    shown = gdb(f"core-file {crashed.velf}", crashed.symbol_file, "thread apply all bt", "p linux_banner")
    text = shown.stdout
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", text), text + shown.stderr
    assert crashed.dump.truth["release"] in text
