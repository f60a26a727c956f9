"""virttophys, dumpmem, ``tovelf -P``, addrandoff, vminfo on real dumps."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from kdump_elftool.arch.walker import translate
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.selection import cut
from tests.lab.dumps import LabDump, drgn_says, gdb, kdump_elftool, selected_dumps

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = 20261123
ADDRESSES = 10_000
SAMPLE = 20
DUMPS = selected_dumps()
KDUMPS = [dump for dump in DUMPS if dump.file == "vmcore"]
MAKEDYN = [dump for dump in KDUMPS if dump.row == "x64-61-l4.kdump"]


def ask_drgn(dump: LabDump, scratch: Path, **request: object) -> dict:
    wanted = {"addresses": [], "pids": [], **request}
    return drgn_says("oracle_translate.py", dump.path, dump.vmlinux, scratch, **wanted)


def mapped_addresses(dump: LabDump) -> list[int]:
    """Random ones of every mapping alike, large or small, of memory that is in the dump.

    Memory of devices is mapped, too, and in no dump.
    """
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        found = open_kernel(opened, KernelRequest()).walked.mappings
        found = cut(found, opened.memory.present())
    chance = random.Random(SEED)
    vaddr, size = found.vaddr.tolist(), found.size.tolist()
    rows = [chance.randrange(len(vaddr)) for _ in range(ADDRESSES)]
    return [vaddr[row] + chance.randrange(size[row]) & ~0xF for row in rows]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_addresses_and_memory_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    addresses = mapped_addresses(dump)
    judged = ask_drgn(dump, tmp_path, addresses=addresses)
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        form, root = kernel.identity.form, kernel.identity.pgt_root
        paddrs = [translate(opened.memory, form, root, address).paddr for address in addresses]
        blocks, there = kernel.asked(opened).gather(np.array(addresses, dtype=np.uint64), 16)
    assert paddrs == judged["paddrs"]
    ours = [bytes(block).hex() if present else None for block, present in zip(blocks, there, strict=True)]
    known = [index for index, value in enumerate(judged["bytes"]) if value is not None]
    assert [ours[index] for index in known] == [judged["bytes"][index] for index in known]
    # drgn goes by the program headers, which in a kdump leave out nothing but the crash kernel
    assert len(known) > 0.98 * ADDRESSES

    chance = random.Random(SEED)
    chosen = sorted(chance.sample(known, SAMPLE))
    words = [f"{addresses[index]:x}" for index in chosen]
    done = kdump_elftool("virttophys", "-i", dump.path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{addresses[index]:x} {paddrs[index]:x}" for index in chosen]
    for index in chosen[:3]:
        done = kdump_elftool("dumpmem", "-i", dump.path, f"{addresses[index]:x}", "10")
        assert done.returncode == 0, done.stderr
        shown = re.match(rf"{addresses[index]:x}: ((?:[0-9a-f]{{2}} ){{16}}) ", done.stdout)
        assert shown, done.stdout
        assert shown[1].replace(" ", "") == judged["bytes"][index]


@pytest.mark.gdb
@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_the_memory_of_a_process(dump: LabDump, tmp_path: Path) -> None:
    """The marker of each worker, at its own address, through the process' own page table."""
    dump.check()
    markers = [marker for marker in dump.truth["markers"] if marker["comm"] == "worker"]
    pgds = ask_drgn(dump, tmp_path, pids=[marker["pid"] for marker in markers])["pgds"]
    for marker in markers:
        velf, pgd = tmp_path / "velf", pgds[str(marker["pid"])]
        done = kdump_elftool("tovelf", "-P", hex(pgd), "-i", dump.path, "-o", velf, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["level"] == "user"
        shown = gdb(f"core-file {velf}", f"x/s {marker['vaddr']}")
        assert marker["text"] in shown.stdout, shown.stdout + shown.stderr
        velf.unlink()
        vaddr = marker["vaddr"].removeprefix("0x")
        read = kdump_elftool(
            "dumpmem", "-P", hex(pgd), "-i", dump.path, vaddr, f"{len(marker['text']):x}", "--json"
        )
        (piece,) = json.loads(read.stdout)["pieces"]
        assert bytes.fromhex(piece["hex"]).decode() == marker["text"]
        # through the kernel's own table there is no such address
        assert kdump_elftool("virttophys", "-i", dump.path, vaddr).stdout == "unmapped\n"


@pytest.mark.gdb
@pytest.mark.parametrize("dump", MAKEDYN, ids=lambda dump: dump.id)
def test_addrandoff_of_a_core_without_the_offset(dump: LabDump, tmp_path: Path) -> None:
    """The seed's second chance: gdb moves vmlinux by itself afterwards, and the file can be had back."""
    dump.check()
    vmlinux, velf = tmp_path / "vmlinux", tmp_path / "velf"
    assert kdump_elftool("makedyn", "-o", vmlinux, dump.vmlinux).returncode == 0
    assert kdump_elftool("tovelf", "-l", "all", "-i", dump.path, "-o", velf).returncode == 0
    before = velf.read_bytes()
    assert "panic" not in gdb("thread apply all bt", args=(str(vmlinux), str(velf))).stdout
    done = kdump_elftool("addrandoff", "-v", velf, "-m", vmlinux, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] is True
    shown = gdb("thread apply all bt", args=(str(vmlinux), str(velf)))
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stdout + shown.stderr
    again = kdump_elftool("addrandoff", "-v", velf, "-m", vmlinux, "--json")
    assert json.loads(again.stdout)["changed"] is False
    assert kdump_elftool("addrandoff", "-v", velf, "--undo").returncode == 0
    assert velf.read_bytes() == before
    vmlinux.unlink()
    velf.unlink()


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_vminfo_is_complete_and_usable(dump: LabDump, tmp_path: Path) -> None:
    """What a dump tells without vmlinux suffices for -p on its own, as the seed's -e file did."""
    dump.check()
    done = kdump_elftool("vminfo", dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "??" not in done.stdout
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines())
    truth = dump.truth["kallsyms"]
    for name in ("_stext", "init_task"):
        assert int(lines[f"SYMBOL({name})"], 16) == int(truth[name], 16)
    assert {"OFFSET(task_struct.tasks)", "OFFSET(thread_struct.sp)", "SIZE(page)"} <= lines.keys()
    (tmp_path / "vminfo").write_text(done.stdout)
    used = kdump_elftool("ps", "-e", tmp_path / "vminfo", dump.path, "--verbose")
    assert used.returncode == 0, used.stderr
    assert f"OFFSET(task_struct.tasks): {int(lines['OFFSET(task_struct.tasks)']):#x} (-e " in used.stderr
    linked = kdump_elftool("vminfo", dump.vmlinux)
    assert linked.returncode == 0, linked.stderr
    own = dict(line.split("=", 1) for line in linked.stdout.splitlines())
    offsets = [key for key in own if key.startswith(("OFFSET", "SIZE"))]
    assert len(offsets) > 30
    assert {key: own[key] for key in offsets if key in lines} == {
        key: lines[key] for key in offsets if key in lines
    }
