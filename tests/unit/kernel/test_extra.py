"""Lines of a vmlinux laid over a kernel that KASLR has moved, and lines that are meant as they are."""

from __future__ import annotations

import pytest

from kdump_elftool.kernel.extra import laid_over
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse

OFFSET = 0x23C00000
RAN = parse(b"SYMBOL(_stext)=ffffffffa4c00000\nSYMBOL(init_uts_ns)=ffffffffa661a000\nKERNELOFFSET=23c00000\n")
LINKED = b"SYMBOL(_stext)=ffffffff81000000\n"
TASK = b"SYMBOL(init_task)=ffffffff82a1aa40\nSYMBOL(runqueues)=31980\nSYMBOL(last)=ffffffffffffff00\n"


def init_task(info: VmcoreInfo, extra: bytes) -> int | None:
    return laid_over(info, parse(extra, "-e")).symbol("init_task")


@pytest.mark.parametrize("anchor", [LINKED, b""], ids=["with _stext", "by KERNELOFFSET"])
def test_addresses_of_linking_are_moved(anchor: bytes) -> None:
    info = laid_over(RAN, parse(anchor + TASK + b"OFFSET(task_struct.pid)=2416\n", "-e"))
    assert info.symbol("init_task") == 0xFFFFFFFF82A1AA40 + OFFSET
    assert info.symbol("_stext") == RAN.symbol("_stext")
    assert info.offset("task_struct.pid") == 2416
    assert "moved by 0x23c00000" in info.source("SYMBOL(init_task)")
    assert info.source("OFFSET(task_struct.pid)") == "-e"


@pytest.mark.parametrize("anchor", [LINKED, b""], ids=["with _stext", "by KERNELOFFSET"])
def test_what_is_not_in_the_image_stays(anchor: bytes) -> None:
    """Per-CPU variables count from 0; what lies behind every image is none of it."""
    info = laid_over(RAN, parse(anchor + TASK))
    assert (info.symbol("runqueues"), info.symbol("last")) == (0x31980, 0xFFFFFFFFFFFFFF00)


def test_kernels_without_kerneloffset() -> None:
    """i386: its VMCOREINFO tells by _stext alone."""
    ran = parse(b"SYMBOL(_stext)=d7000000\n")
    assert init_task(ran, b"SYMBOL(_stext)=c1000000\nSYMBOL(init_task)=c1d52c40\n") == 0xD7D52C40
    assert init_task(ran, b"SYMBOL(init_task)=c1d52c40\n") == 0xC1D52C40


@pytest.mark.parametrize(
    "lines",
    [
        b"SYMBOL(_stext)=ffffffffa4c00000\n",
        b"SYMBOL(_stext)=ffffffffa4c00010\n",
        b"SYMBOL(_stext)=ffffffff81200000\n",
        LINKED + b"KERNELOFFSET=0\n",
    ],
    ids=["of run time", "by no whole page", "not as KERNELOFFSET has it", "with its own KERNELOFFSET"],
)
def test_addresses_that_are_meant(lines: bytes) -> None:
    assert init_task(RAN, lines + b"SYMBOL(init_task)=ffffffff82a1aa40\n") == 0xFFFFFFFF82A1AA40


def test_addresses_of_run_time_alone() -> None:
    assert init_task(RAN, b"SYMBOL(init_task)=ffffffffa661aa40\n") == 0xFFFFFFFFA661AA40


def test_a_kernel_that_was_not_moved() -> None:
    assert init_task(parse(LINKED + b"KERNELOFFSET=0\n"), LINKED + TASK) == 0xFFFFFFFF82A1AA40


def test_nothing_laid_over() -> None:
    assert laid_over(RAN, None) is RAN
