"""What mkvmlinux makes of less usual inputs, against the distribution's vmlinux and the guest."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.mkvmlinux import make_vmlinux
from tests.builders.kcore import Kcore, kcore
from tests.lab.dumps import (
    GDB_MULTIARCH,
    IN_CI,
    LabDump,
    drgn_says,
    gdb,
    kdump_elftool,
    selected_rows,
)
from tests.lab.test_mkvmlinux import SEED, of_one_definition, symbols, type_key

pytestmark = [pytest.mark.lab, pytest.mark.slow]

LIVE = [LabDump(row.name, row.scenario, "qemu.elf") for row in selected_rows() if row.scenario == "live"]
ARCH = {row.name: row.guest.arch.name for row in selected_rows()}
KDUMPS = [LabDump(row.name, row.scenario, "vmcore") for row in selected_rows() if row.scenario == "kdump"]
BUILT = {row.name for row in selected_rows() if row.guest.fragments}
FUNCTIONS_ONLY = [dump for dump in LIVE if ARCH[dump.row] == "aarch64" and dump.row not in BUILT]
"""Kernels without CONFIG_KALLSYMS_ALL, with types."""
KCORES = [dump for dump in LIVE if ARCH[dump.row] == "x86_64"]
KCORES = [dump for dump in KCORES if not IN_CI or dump.row == "x64-612-l5.live"]
IN_FRAMES = [dump for dump in KDUMPS if ARCH[dump.row] == "x86_64"]
IN_FRAMES = [dump for dump in IN_FRAMES if not IN_CI or dump.row == "x64-61-l4.kdump"]
NO_TYPES = [dump for dump in LIVE if ARCH[dump.row] in ("i386", "arm") and dump.row not in BUILT]
NO_TYPES = [dump for dump in NO_TYPES if not IN_CI or dump.row == "i386-pae.live"]


def _one_a_kernel() -> list[LabDump]:
    guests = {row.name: row.guest for row in selected_rows()}
    dumps = [dump for dump in (*LIVE, *KDUMPS) if dump.row not in BUILT]
    by_kernel = {(guests[dump.row].arch.name, guests[dump.row].package): dump for dump in dumps}
    return sorted(by_kernel.values(), key=lambda dump: dump.id)


CI_IMAGES = ("x64-61-l4.kdump", "x64-612-l5.live", "a64-61.live")
"""lz4, zstd, and one that is not packed."""
IMAGES = [dump for dump in _one_a_kernel() if not IN_CI or dump.row in CI_IMAGES]


def vmlinuz(dump: LabDump) -> Path:
    return dump.vmlinux.parent / "vmlinuz"


@pytest.mark.parametrize("dump", FUNCTIONS_ONLY, ids=lambda dump: dump.id)
def test_modules_of_a_kernel_whose_table_has_functions_only(dump: LabDump, tmp_path: Path) -> None:
    """Their list is in no table; the guest's /proc/kallsyms has their symbols."""
    path = tmp_path / "vmlinux.dump"
    done = kdump_elftool("mkvmlinux", dump.path, "-o", path)
    assert done.returncode == 0, done.stderr
    assert "modules" not in done.stderr
    table = symbols(path)
    path.unlink()
    ours = {(name, address) for address, _, _, name in table}
    theirs = {
        (symbol["name"], int(symbol["addr"], 16))
        for symbol in dump.truth["module_symbols"]
        if symbol["name"] not in ("$x", "$d")
    }
    assert len(theirs) > 200
    assert theirs <= ours, sorted(theirs - ours)[:20]
    files = {name for _, _, kind, name in table if kind == "FILE"}
    assert {f"[{module['name']}]" for module in dump.truth["modules"]} <= files


@pytest.mark.parametrize("dump", IMAGES, ids=lambda dump: dump.row)
def test_symbols_of_an_image(dump: LabDump, tmp_path: Path) -> None:
    """Every one is in the distribution's vmlinux, at the same address."""
    path = tmp_path / "vmlinux"
    done = kdump_elftool("mkvmlinux", "--from-image", vmlinuz(dump), "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["release"] == dump.truth["release"]
    assert summary["types"] > 20_000 or any("no BTF in the image" in text for text in summary["warnings"])
    ours = {(address, name) for address, _, kind, name in symbols(path) if kind != "FILE"}
    path.unlink()
    assert len(ours) > 30_000
    theirs = {(address, name) for address, _, _, name in symbols(dump.vmlinux)}
    assert ours <= theirs, sorted(ours - theirs)[:10]


IN_DRGN = [dump for dump in IMAGES if ARCH[dump.row] == "x86_64" and not IN_CI]
"""drgn counts tasks by variables that a table of functions lacks."""


@pytest.mark.parametrize("dump", IN_DRGN, ids=lambda dump: dump.row)
def test_types_of_an_image(dump: LabDump, tmp_path: Path) -> None:
    """As drgn reads them of it and of the real one."""
    path = tmp_path / "vmlinux"
    done = kdump_elftool("mkvmlinux", "--from-image", vmlinuz(dump), "--link-addresses", "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    names = [name for name in of_one_definition(dump.vmlinux) if name.split()[-1] != "console"]
    chosen = random.Random(SEED).sample(names, 300)
    theirs, ours = (
        drgn_says("oracle_made.py", dump.path, file, tmp_path, types=chosen, functions=["schedule"])
        for file in (dump.vmlinux, path)
    )
    path.unlink()
    assert (ours["banner"], ours["tasks"]) == (theirs["banner"], theirs["tasks"])
    real = {name: type_key(found) for name, found in theirs["types"].items() if found is not None}
    assert len(real) > 250
    assert real == {name: type_key(ours["types"][name]) for name in real if ours["types"][name]}


@pytest.mark.gdb
@pytest.mark.parametrize("dump", IN_FRAMES, ids=lambda dump: dump.row)
def test_frames_of_an_image(dump: LabDump, tmp_path: Path) -> None:
    """gdb moves them by the KASLR offset; they lead where those of the dump do (test_frames.py)."""
    image, made, core = tmp_path / "vmlinux", tmp_path / "vmlinux.dump", tmp_path / "velf"
    assert kdump_elftool("mkvmlinux", "--from-image", vmlinuz(dump), "-o", image).returncode == 0
    assert kdump_elftool("mkvmlinux", dump.path, "-o", made).returncode == 0
    converted = kdump_elftool("tovelf", dump.path, "-o", core, "--json")
    offset = json.loads(converted.stdout)["kaslr_offset"]

    def backtraces(symbol_file: str) -> Sequence[str]:
        done = gdb(f"core-file {core}", symbol_file, "thread apply all bt")
        return [line for line in done.stdout.splitlines() if line.startswith("#")]

    moved, own = backtraces(f"symbol-file -o {offset} {image}"), backtraces(f"symbol-file {made}")
    assert any(" panic (" in line for line in own)
    assert any("entry_SYSCALL_64_after_hwframe" in line or "signal handler" in line for line in own)
    assert moved == own


def live_kernel(dump: Dump, form: str) -> Kcore:
    """The memory of a real dump as its kernel's /proc/kcore would show it; generated."""
    kernel = open_kernel(dump, KernelRequest())
    found, ram = kernel.walked.mappings, dump.memory.present()
    stext = kernel.info.symbol("_stext")
    mappings = zip(*(column.tolist() for column in (found.vaddr, found.size, found.paddr)), strict=True)
    text = next(each for each in mappings if stext is not None and each[0] <= stext < each[0] + each[1])
    note = next(note.desc for note in dump.notes if note.name == b"VMCOREINFO")
    assert isinstance(note, bytes)
    places = [
        (start, end - start, start) for start, end in zip(ram.start.tolist(), ram.end.tolist(), strict=True)
    ]
    direct = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}[len(kernel.identity.form.levels)]
    return kcore(places, text, direct, dump.memory.read, note, form)


@pytest.mark.parametrize("dump", KCORES, ids=lambda dump: dump.row)
def test_a_running_kernel(dump: LabDump) -> None:
    """What is made of its /proc/kcore (generated: see tests/builders/kcore.py) is what its dump gives."""
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        whole = make_vmlinux(opened, open_kernel(opened, KernelRequest()))
        running = open_dump(live_kernel(opened, "v4.19"))
        assert running.warnings == ()
        made = make_vmlinux(running, open_kernel(running, KernelRequest()))
    assert made.symbols == whole.symbols > 80_000
    assert made.data == whole.data


@pytest.mark.gdb
@pytest.mark.parametrize("dump", NO_TYPES, ids=lambda dump: dump.row)
def test_a_kernel_without_types(dump: LabDump, tmp_path: Path) -> None:
    """Names there are, and gdb shows them; what else there is not is one sentence."""
    path = tmp_path / "vmlinux.dump"
    done = kdump_elftool("mkvmlinux", dump.path, "-o", path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 1, done.stderr
    assert "there is no BTF in the dump" in done.stderr
    table = {name: address for address, _, _, name in symbols(path)}
    shown = gdb(f"symbol-file {path}", "info symbol schedule", "info address panic", program=GDB_MULTIARCH)
    assert "schedule in section " in shown.stdout
    assert f"{table['panic']:#x}" in shown.stdout
