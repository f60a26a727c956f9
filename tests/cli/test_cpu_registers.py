"""Registers of CPUs that come by a migration stream's devices, or by --cpu-regs."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders import migration_devices as dev
from tests.builders.check import read_core
from tests.builders.kernel import SMALL, make_kernel
from tests.builders.migration import stream_of
from tests.builders.notes import prstatus_pid, prstatus_register

SIZE = 12 << 20
NAMES = ("rip", "rsp", "rbp", "rax", "r15", "gs_base", "cs", "eflags")


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL)


@pytest.fixture
def vminfo(kernel, tmp_path_factory):
    path = tmp_path_factory.mktemp("e") / "vminfo"
    path.write_text(kernel.vmcoreinfo_text())
    return str(path)


def registers(kernel, cpu: int) -> dict[str, int]:
    own = {"rax": 0x100 + cpu, "r15": 0xF00 + cpu, "rflags": 0x246, "cs": 0x10, "cr0": 0x80050033}
    tables = {"cr3": kernel.tables.root, "cr4": 0x20, "gs_base": kernel.bases["page_offset"] + 0x1000 * cpu}
    return kernel.registers(cpu) | own | tables


def stream(kernel, cpus: int) -> bytes:
    devices = [dev.timer()]
    for cpu in range(cpus):
        devices += [dev.common(cpu), dev.x86_cpu(cpu, registers(kernel, cpu))]
    return stream_of([(start, bytes(data)) for start, data in kernel.ram.ranges], SIZE, devices)


def text(kernel, cpus: int) -> str:
    """As QEMU prints them."""
    out = ""
    for cpu in range(cpus):
        told = registers(kernel, cpu)
        out += f"\nCPU#{cpu}\n"
        for name in [*dev.GENERAL, "rip"]:
            out += f"{name.upper():<3}={told.get(name, 0):016x}\n"
        out += f"RFL={told['rflags']:08x} [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\n"
        for name in ("cs", "gs"):
            base = told.get(f"{name}_base", 0)
            out += (
                f"{name.upper():<3}={told.get(name, 0):04x} {base:016x} ffffffff 00af9b00 DPL=0 CS64 [-R-]\n"
            )
        out += f"CR0={told['cr0']:08x} CR2=0000000000000000 CR3={told['cr3']:016x} CR4={told['cr4']:08x}\n"
    return out


def raw(kernel) -> bytes:
    memory = bytearray(SIZE)
    for start, data in kernel.ram.ranges:
        memory[start : start + len(data)] = data
    return bytes(memory)


def prstatus(core) -> list[bytes]:
    return [desc for owner, kind, desc in core.notes() if (owner, kind) == ("CORE", 1)]


def check_threads(core, kernel, cpus: int) -> None:
    descs = prstatus(core)
    assert [prstatus_pid(desc) for desc in descs] == list(range(1, cpus + 1))
    for cpu, desc in enumerate(descs):
        told = registers(kernel, cpu)
        told["eflags"] = told["rflags"]
        assert {name: prstatus_register(desc, name) for name in NAMES} == {
            name: told.get(name, 0) for name in NAMES
        }
    owners = [(owner, kind) for owner, kind, _ in core.notes()]
    assert owners[: 2 * cpus] == [("CORE", 1)] * cpus + [("QEMU", 0)] * cpus


def test_stream(tovelf, kernel, vminfo):
    image = stream(kernel, 3)
    for given in (image, gzip.compress(image, 1)):
        result = tovelf(given, "-e", vminfo)
        assert result.code == 0
        assert not result.err
        check_threads(result.core, kernel, 3)


def test_stream_through_a_pipe(kernel, vminfo, tmp_path):
    image = stream(kernel, 2)
    pipe, output = tmp_path / "pipe", tmp_path / "velf"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(image))
    feeder.start()
    assert main(["tovelf", "-l", "all", "-e", vminfo, "-i", str(pipe), "-o", str(output)]) == 0
    feeder.join()
    check_threads(read_core(output), kernel, 2)


def test_page_tables_by_a_cpus_registers_alone(tovelf, kernel):
    """No VMCOREINFO, no -P: CR3 says where the tables are."""
    result = tovelf(stream(kernel, 1))
    assert result.code == 0, result.err
    assert any("the page tables are those that a CPU was using" in line for line in result.lines("warning"))
    for vaddr, paddr in list(kernel.readable_pages().items())[::31]:
        assert result.core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)


@pytest.mark.parametrize("cpus", [1, 4])
def test_raw_memory(tovelf, kernel, vminfo, tmp_path_factory, cpus):
    path = tmp_path_factory.mktemp("regs") / "registers.txt"
    path.write_text(text(kernel, cpus))
    result = tovelf(raw(kernel), "-e", vminfo, "-I", "raw", "--cpu-regs", str(path))
    assert result.code == 0, result.err
    check_threads(result.core, kernel, cpus)


def test_they_go_before_those_of_the_dump(tovelf, kernel, vminfo, tmp_path_factory):
    """Also before those of a stream and of an ELF dump, and this is said by --verbose."""
    path = tmp_path_factory.mktemp("regs") / "registers.txt"
    path.write_text(f"cpu0.rip={0x1234:x}\ncpu0.rsp=5678\n")
    for image in (stream(kernel, 3), kernel.dump()):
        result = tovelf(image, "-e", vminfo, "--cpu-regs", str(path), "--verbose")
        assert result.code == 0, result.err
        (desc,) = prstatus(result.core)
        assert (prstatus_register(desc, "rip"), prstatus_register(desc, "rsp")) == (0x1234, 0x5678)
        assert not [owner for owner, _, _ in result.core.notes() if owner == "QEMU"]
        assert "registers in the dump itself are not used" in result.err


def test_refused(tovelf, kernel, vminfo, tmp_path_factory):
    path = tmp_path_factory.mktemp("regs") / "registers.txt"
    for content, word in (
        ("what is this\n", "line 1: this is not understood"),
        ("cpu0.pc=10\ncpu0.sp=10\n", "are not those of x86_64"),
    ):
        path.write_text(content)
        result = tovelf(raw(kernel), "-e", vminfo, "-I", "raw", "--cpu-regs", str(path))
        assert result.code in (1, 2)
        assert word in result.err
    result = tovelf(raw(kernel), "-e", vminfo, "-I", "raw", "--cpu-regs", str(path) + ".not")
    assert result.code == 1


def test_neither_changed_in_place_nor_written_over(kernel, tmp_path, capfd):
    dump, path = tmp_path / "dump", tmp_path / "registers.txt"
    dump.write_bytes(kernel.dump())
    path.write_text(text(kernel, 1))
    assert main(["tovelf", "--in-place", "-i", str(dump), "--cpu-regs", str(path)]) == 2
    assert "--in-place" in capfd.readouterr().err
    assert main(["tovelf", "-i", str(dump), "--cpu-regs", str(path), "-o", str(path)]) == 2
    assert path.read_text() == text(kernel, 1)


@pytest.mark.parametrize("option", ["--m64", "-8", "--m32", "-4"])
def test_the_seeds_machine_options(tovelf, kernel, vminfo, option):
    result = tovelf(stream(kernel, 1), "-I", "qemu", "-e", vminfo, option)
    assert result.code == 0
    assert not result.err
    check_threads(result.core, kernel, 1)


def test_the_seeds_line(kernel, tmp_path, monkeypatch, capfd):
    """``tovelf -i qemu-vmdump -o vmcore``, and the one of its README, both in the directory of the dump."""
    monkeypatch.chdir(tmp_path)
    image = stream(kernel, 2)
    Path("qemu-vmdump").write_bytes(image)
    Path("qemu_vmcore").write_bytes(image)
    Path("vminfo").write_text(kernel.vmcoreinfo_text())
    for line in (
        "tovelf -i qemu-vmdump -o vmcore",
        "tovelf -I qemu -i qemu_vmcore -e vminfo --m64 -o vmcore",
        "topelf -I qemu -i qemu_vmcore -e vminfo --m64 -o pelf",
    ):
        assert main(line.split()) == 0, capfd.readouterr().err
    check_threads(read_core(Path("vmcore")), kernel, 2)
    assert len(prstatus(read_core(Path("pelf")))) == 2


def test_info_tells_what_told_the_format(kernel, tmp_path, capfd):
    (tmp_path / "dump").write_bytes(raw(kernel))
    (tmp_path / "registers").write_text(text(kernel, 2))
    words = ["-I", "raw", str(tmp_path / "dump"), "--cpu-regs", str(tmp_path / "registers")]
    assert main(["info", "--json", *words]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["format"] == "raw"
    assert main(["info", "--verbose", *words]) == 0
    out = capfd.readouterr().out
    assert "the command line" in out
    shutil.rmtree(tmp_path)
