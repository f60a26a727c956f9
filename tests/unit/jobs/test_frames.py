"""The frame file of a synthetic kernel, and what of it a vmlinux makes unnecessary."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdump_elftool.addr import Ranges, u64
from kdump_elftool.dwarf.strings import Names
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.frames import FrameFile, frame_file, functions_of, write_frame_file
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.vmcoreinfo import parse as parse_info
from kdump_elftool.kernel.vmlinux_frames import described_code
from tests.builders.orc import Row, pack, parse
from tests.builders.task_kernel import AREAS, TaskKernel, make_task_kernel
from tests.builders.unwind import RIP, CallFrames

IP_AT, ENTRIES_AT = 0x100000, 0x104000
"""Of the tables, within the image."""
IRQ_STACK = 0x200
"""hardirq_stack_ptr in the per-CPU areas."""
ROWS = """
    0x3000 call sp+8
    0x3001 call sp+16
    0x3008 call sp+24
    0x3010 call (sp)+16
    0x3020 regs sp+0 signal
    0x3040 undefined
"""


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., FrameFile | None]:
    """``made(**options)``: the frame file; ``irq_stack``: where each CPU's interrupt stack begins."""

    def run(
        *,
        irq_stack: int | None = 0x1000,
        tables: bool = True,
        change: Callable[[TaskKernel], None] | None = None,
        running: bool = False,
        **options: object,
    ) -> FrameFile | None:
        kernel = make_task_kernel([1, 2])
        if change:
            change(kernel)
        extra = kernel.extra + (put_tables(kernel) if tables else "")
        if irq_stack is not None:
            extra += f"SYMBOL(hardirq_stack_ptr)={IRQ_STACK:x}\n"
            for area in AREAS:
                kernel.kernel.ram.write(area + IRQ_STACK, struct.pack("<Q", irq_stack))
        dump = tmp_path / "dump"
        dump.write_bytes(kernel.kernel.dump())
        with InputFile.open(str(dump)) as file:
            opened = replace(open_dump(file), running=running)
            found = open_kernel(opened, KernelRequest(extra=parse_info(extra.encode())))
            target = tmp_path / "frames"
            written = write_frame_file(opened, found, str(target), **options)
            assert written == frame_file(opened, found, **options)
        assert target.exists() == (written is not None)
        assert written is None or target.read_bytes() == written.data
        return written

    return run


def rows_of(kernel: TaskKernel) -> list[Row]:
    return [replace(row, ip=kernel.kernel.text_vaddr + row.ip) for row in parse(ROWS)]


def put_tables(made: TaskKernel) -> str:
    text, ram, paddr = made.kernel.text_vaddr, made.kernel.ram, made.kernel.spec.text_paddr
    ip, entries = pack(rows_of(made), "v6.4", text + IP_AT)
    ram.write(paddr + IP_AT, ip)
    ram.write(paddr + ENTRIES_AT, entries)
    places = {
        "__start_orc_unwind_ip": IP_AT,
        "__stop_orc_unwind_ip": IP_AT + len(ip),
        "__start_orc_unwind": ENTRIES_AT,
        "__stop_orc_unwind": ENTRIES_AT + len(entries),
    }
    return "".join(f"SYMBOL({name})={text + at:x}\n" for name, at in places.items())


TEXT = make_task_kernel([1]).kernel.text_vaddr


def kinds(found: FrameFile) -> dict[int, bytes]:
    """Start of each description within the image, and its augmentation."""
    return {
        fde["initial_location"] - TEXT if fde["initial_location"] else 0: fde.cie["augmentation"]
        for fde in CallFrames(found.data).fdes
    }


def test_all_that_the_tables_say(made):
    found = made()
    assert found.warnings == ()
    assert kinds(found) == {0: b"", 0x3000: b"", 0x3020: b"zS"}


def test_a_call_of_null_has_its_caller_on_the_stack(made):
    frames = CallFrames(made().data)
    caller = frames.step(0, dict.fromkeys(range(16), 0x7000) | {RIP: 0}, {0x7000: 0x1234})
    assert caller is not None
    assert (caller.registers[RIP], caller.signal) == (0x1234, False)


@pytest.mark.parametrize(
    ("irq_stack", "mark"), [(0x1000, b""), (1 << 63 | (1 << 63) - 4096, b"zS"), (None, b"zS")], ids=str
)
def test_interrupt_stacks_above_those_of_tasks(made, irq_stack, mark):
    """gdb stops where a caller's stack lies below, unless the frame is one of a signal."""
    assert kinds(made(irq_stack=irq_stack)).get(0x3010, b"") == mark


def test_interrupt_stacks_of_a_kernel_that_runs_on(made):
    """What its CPUs run when it is dumped later is not known yet."""
    assert kinds(made(irq_stack=0x1000, running=True))[0x3010] == b"zS"


def test_one_interrupt_stack_that_is_not_there(made):
    def change(kernel: TaskKernel) -> None:
        # CPU 1's run queue names a task that is nowhere
        kernel.kernel.ram.write(AREAS[1] + 0x100 + 0x20, struct.pack("<Q", 0x1234567))

    assert kinds(made(change=change))[0x3010] == b"zS"


def test_data_whose_symbols_claim_to_be_code():
    """There are 20,000 of them in v7.2."""
    rows = [("_stext", "T"), ("f", "t"), ("_sdata", "T"), ("list", "t"), ("_edata", "D"), ("init", "T")]
    names = Names.of([name.encode() for name, _ in rows])
    kind = np.array([ord(letter) for _, letter in rows], dtype=np.uint8)
    symbols = Kallsyms(u64(range(0x10, 0x70, 0x10)), kind, names.text, names.begin, names.end)
    assert functions_of(symbols).tolist() == [0x10, 0x20, 0x60]
    without = replace(symbols, kind=kind[:4], address=symbols.address[:4])
    without = replace(without, begin=names.begin[:4], end=names.end[:4])
    assert functions_of(without).tolist() == [0x10, 0x20, 0x30, 0x40]


def test_described_code_is_left_to_the_vmlinux(made):
    described = Ranges(u64([TEXT + 0x3000]), u64([TEXT + 0x3018]))
    assert kinds(made(described=described)) == {0: b"", 0x3010: b"", 0x3020: b"zS"}


def test_no_tables_no_file(made):
    assert made(tables=False) is None


SOURCE = """
.cfi_sections .debug_frame
.text
.globl _start
_start: .cfi_startproc
push %rbx; .cfi_def_cfa_offset 16
.skip 0x30
.cfi_endproc
.skip 0x100
second: .cfi_startproc; .skip 0x40; .cfi_endproc
third: .cfi_startproc; .skip 0x10; .cfi_endproc
"""


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zlib"])
def test_described_code_as_readelf_lists_it(tmp_path, packed):
    vmlinux = linked(tmp_path, packed)
    shown = subprocess.run(
        ["readelf", "-z", "--debug-dump=frames", vmlinux], capture_output=True, text=True
    ).stdout
    listed = [(int(low, 16), int(high, 16)) for low, high in re.findall(r"pc=(\w+)\.\.(\w+)", shown)]
    assert len(listed) == 3
    with InputFile.open(str(vmlinux)) as file:
        found = described_code(file, 0x1000)
    # the last two touch
    assert found.start.tolist() == [listed[0][0] + 0x1000, listed[1][0] + 0x1000]
    assert found.end.tolist() == [listed[0][1] + 0x1000, listed[2][1] + 0x1000]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zlib"])
def test_damaged_frames_describe_less(tmp_path, packed):
    """Whatever is in the section: no exception, nothing beyond what fits."""
    vmlinux = linked(tmp_path, packed)
    whole = vmlinux.read_bytes()
    shown = subprocess.run(["readelf", "-SW", vmlinux], capture_output=True, text=True).stdout
    match = re.search(r"\.debug_frame +\S+ +\w+ (\w+) (\w+)", shown)
    assert match is not None
    start, size = int(match[1], 16), int(match[2], 16)
    for at in range(start, start + size):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        vmlinux.write_bytes(damaged)
        with InputFile.open(str(vmlinux)) as file:
            assert len(described_code(file, 0)) <= 3


def test_a_kernel_that_runs_below_its_addresses(tmp_path):
    with InputFile.open(str(linked(tmp_path, False))) as file:
        found, lower = described_code(file, 0), described_code(file, -0x1000)
    assert lower.start.tolist() == [start - 0x1000 for start in found.start.tolist()]


def test_packed_frames_that_claim_to_be_nothing(tmp_path):
    """zlib takes a limit of 0 for none."""
    vmlinux = linked(tmp_path, True)
    shown = subprocess.run(["readelf", "-SW", vmlinux], capture_output=True, text=True).stdout
    match = re.search(r"\.debug_frame +\S+ +\w+ (\w+)", shown)
    assert match is not None
    data = bytearray(vmlinux.read_bytes())
    # ch_size of Elf64_Chdr
    data[int(match[1], 16) + 8 : int(match[1], 16) + 16] = bytes(8)
    vmlinux.write_bytes(data)
    with InputFile.open(str(vmlinux)) as file:
        assert len(described_code(file, 0)) == 0


def test_a_file_without_frames(tmp_path):
    vmlinux = linked(tmp_path, False)
    subprocess.run(["strip", vmlinux], check=True)
    with InputFile.open(str(vmlinux)) as file:
        assert len(described_code(file, 0)) == 0


def linked(folder: Path, packed: bool) -> Path:
    """A program with three functions at the place of a kernel."""
    built, vmlinux = folder / "f.o", folder / "vmlinux"
    how = ["--compress-debug-sections=zlib"] if packed else ["--compress-debug-sections=none"]
    subprocess.run(["as", "--64", "-o", built, "-"], input=SOURCE, text=True, check=True)
    command = ["ld", "-m", "elf_x86_64", *how, "-Ttext=0xffffffff81000000", "-o", vmlinux, built]
    subprocess.run(command, check=True)
    return vmlinux
