"""ARM guests: translations, mappings and memory."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.arch.walker import translate
from kdump_elftool.errors import FaultError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.memory.physical import PhysicalMemory
from tests.builders.arm_tables import walk_long, walk_short
from tests.lab.arm import ADDRESSES, HEADED, KDUMPS, PAGE, SEED
from tests.lab.dumps import GDB_MULTIARCH, LabDump, drgn_says, gdb_bytes, kdump_elftool

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]


@pytest.mark.parametrize("dump", KDUMPS, ids=lambda dump: dump.id)
def test_translations_are_drgns(dump: LabDump, tmp_path: Path) -> None:
    """Also user memory of a process, by its own table."""
    dump.check()
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        form, root, mapped = kernel.identity.form, kernel.identity.pgt_root, kernel.walked.mappings
        assert form.name == ("arm LPAE" if "lpae" in dump.row else "arm short")
        chance = random.Random(SEED)
        vaddr, size = mapped.vaddr.tolist(), mapped.size.tolist()
        rows = [chance.randrange(len(vaddr)) for _ in range(ADDRESSES)]
        addresses = [vaddr[row] + chance.randrange(size[row]) & ~0xF for row in rows]
        pids = [marker["pid"] for marker in dump.truth["markers"]]
        judged = drgn_says(
            "oracle_translate.py", dump.path, dump.vmlinux, tmp_path, addresses=addresses, pids=pids
        )
        assert [translate(opened.memory, form, root, address).paddr for address in addresses] == judged[
            "paddrs"
        ]
        blocks, there = kernel.virtual(opened).gather(np.array(addresses, dtype=np.uint64), 16)
    ours = [bytes(block).hex() if present else None for block, present in zip(blocks, there, strict=True)]
    known = [index for index, value in enumerate(judged["bytes"]) if value is not None]
    assert len(known) > 0.9 * ADDRESSES
    assert [ours[index] for index in known] == [judged["bytes"][index] for index in known]
    for marker in dump.truth["markers"]:
        pgd = judged["pgds"][str(marker["pid"])]
        velf = tmp_path / "user.velf"
        done = kdump_elftool("tovelf", "-q", "-l", "all", "-P", f"{pgd:#x}", "-o", velf, dump.path)
        assert (done.returncode, done.stderr) == (0, "")
        at = int(marker["vaddr"], 16)
        got = gdb_bytes(velf, [at], tmp_path, program=GDB_MULTIARCH)[at]
        assert got is not None and bytes.fromhex(got) == marker["text"].encode()[:8]


@pytest.mark.parametrize("dump", HEADED, ids=lambda dump: dump.id)
def test_mappings_are_a_plain_walkers(dump: LabDump) -> None:
    """Every page of the kernel's half, and that modules are where the guest says."""
    dump.check()
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        form, root, mapped = kernel.identity.form, kernel.identity.pgt_root, kernel.walked.mappings
        plain = walk_long if form.name == "arm LPAE" else walk_short
        expected = {
            leaf.vaddr + done: leaf.paddr + done
            for leaf in plain(lambda at, size: read_or_none(opened.memory, at, size), root)
            if leaf.vaddr >= form.kernel.start
            for done in range(0, leaf.size, PAGE)
        }
        ours = {
            vaddr + done: paddr + done
            for vaddr, paddr, size in zip(
                mapped.vaddr.tolist(), mapped.paddr.tolist(), mapped.size.tolist(), strict=True
            )
            for done in range(0, size, PAGE)
        }
        assert ours == expected
        assert len(ours) > ADDRESSES
        memory = kernel.virtual(opened)
        for module in dump.truth["modules"]:
            at = dump.truth["module_sections"][module["name"]][".gnu.linkonce.this_module"]
            assert module["name"].encode() + b"\0" in memory.read(int(at, 16), 64)


def read_or_none(memory: PhysicalMemory, paddr: int, size: int) -> bytes | None:
    try:
        return memory.read(paddr, size)
    except FaultError:
        return None


@pytest.mark.parametrize("dump", HEADED, ids=lambda dump: dump.id)
def test_addresses_of_the_guests_symbols(dump: LabDump) -> None:
    """virttophys and dumpmem of what the guest's /proc/kallsyms names."""
    names = ("_stext", "panic", "schedule", "__switch_to")
    vaddrs = [int(dump.truth["kallsyms"][name], 16) for name in names]
    done = kdump_elftool("virttophys", "-i", dump.path, *(f"{vaddr:x}" for vaddr in vaddrs))
    assert (done.returncode, done.stderr) == (0, "")
    # PAGE_OFFSET is mapped to where the machine's memory begins
    assert done.stdout.splitlines() == [f"{vaddr:x} {vaddr - 0xC0000000 + 0x40000000:x}" for vaddr in vaddrs]
    with dump.vmlinux.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        linked = section.data()[vaddrs[2] - section["sh_addr"] :][:16]
    done = kdump_elftool("dumpmem", "-i", dump.path, f"{vaddrs[2]:x}", "10")
    assert done.returncode == 0, done.stderr
    # behind the prologue ftrace patches the call of mcount
    assert " ".join(f"{byte:02x}" for byte in linked[:12]) in done.stdout
