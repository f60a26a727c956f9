"""Copies of an image: whose init_task has run, whose never did, and whose is none."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import replace

import pytest

from kdump_elftool.addr import MASK64
from kdump_elftool.arch import ARCHITECTURES
from kdump_elftool.arch.base import Architecture
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.kernel.facts import Fact, Knowledge
from kdump_elftool.kernel.image import Image, ImageSearch
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.kernel.vmlinux_source import VmlinuxSymbols
from tests.builders.elfcore import build_core
from tests.builders.kernel import (
    ABOVE,
    RELEASE,
    SMALL,
    SYMBOLS,
    SyntheticKernel,
    banner_of,
    build_vmlinux,
    make_kernel,
)

COMM, TASKS = 0xB80, 0x8D0
SECOND = 0x9000
"""Of a task within the image, behind linux_banner and before init_task."""


class Offsets:
    """Where members of task_struct are."""

    def find(self, kind: str, name: str, /) -> Fact | None:
        value = {"task_struct.comm": COMM, "task_struct.tasks": TASKS}.get(name)
        return None if value is None or kind != "OFFSET" else Fact(name, value, "test")


def with_tasks(kernel: SyntheticKernel, following: int | None, back: int | None = None) -> SyntheticKernel:
    """init_task's list leads to ``following`` (None: itself), whose own leads ``back`` (None: there)."""
    task, node = kernel.spec.text_paddr + SYMBOLS["init_task"], kernel.symbol("init_task") + TASKS
    following = node if following is None else following
    kernel.ram.write(task + TASKS, struct.pack("<QQ", following, following))
    if following - kernel.text_vaddr in range(0x400000) and following != node:
        paddr = kernel.spec.text_paddr + following - kernel.text_vaddr
        kernel.ram.write(paddr, struct.pack("<QQ", node, node if back is None else back))
    return kernel


@pytest.fixture
def images(tmp_path):
    """``images(kernel, ...)``: the images found in the memory of all of them."""
    with ExitStack() as stack:

        def find(*kernels: SyntheticKernel, arch: Architecture = ARCHITECTURES[0]) -> list[Image]:
            dump, vmlinux = tmp_path / "dump", tmp_path / "vmlinux"
            segments = [replace(part, vaddr=0) for kernel in kernels for part in kernel.segments()]
            dump.write_bytes(build_core(replace(kernels[0].core_spec(), segments=segments, notes=[])))
            vmlinux.write_bytes(build_vmlinux(banner=banner_of(RELEASE)))
            opened = open_dump(stack.enter_context(InputFile.open(str(dump))))
            named = read_vmlinux(stack.enter_context(InputFile.open(str(vmlinux))))
            known = Knowledge((VmlinuxSymbols(named, 0, 0xFFFFFFFF80000000), Offsets()))
            places = tuple(kernel.spec.text_paddr + SYMBOLS["linux_banner"] for kernel in kernels)
            return ImageSearch(opened, arch, named, known).images(places)

        yield find


def low() -> SyntheticKernel:
    return make_kernel(replace(SMALL, noted=False))


def high() -> SyntheticKernel:
    return make_kernel(ABOVE, noted=False, vmcoreinfo={})


def started(kernel: SyntheticKernel) -> SyntheticKernel:
    return with_tasks(kernel, kernel.symbol("linux_banner") + SECOND)


def test_one_that_runs(images):
    kernel = started(low())
    (image,) = images(kernel)
    assert image.started
    assert image.kaslr_offset == kernel.spec.kaslr_offset
    assert image.identity.pgt_root == kernel.tables.root
    assert image.info.number("phys_base") == kernel.phys_base


def test_a_copy_that_never_ran_gives_way(images):
    """What a kernel that moves itself leaves behind; each of both may be the lower one."""
    for stale, live in ((low(), high()), (high(), low())):
        with_tasks(stale, None)
        (image,) = images(*sorted((stale, started(live)), key=lambda kernel: kernel.spec.text_paddr))
        assert image.identity.pgt_root == live.tables.root


def test_one_that_crashed_before_its_second_task(images):
    (image,) = images(with_tasks(low(), None))
    assert not image.started


def test_two_that_run(images):
    assert len(images(started(low()), started(high()))) == 2


@pytest.mark.parametrize("following", [0, 1, 0xFFFF800000000000, 0x7FFFFFFFFFFFFFFF, (1 << 64) - 1])
def test_a_list_that_leads_nowhere(images, following):
    assert images(with_tasks(low(), following)) == []


def test_a_list_that_does_not_come_back(images):
    kernel = low()
    assert images(with_tasks(kernel, kernel.symbol("linux_banner") + SECOND, back=0x1234)) == []


def test_a_task_by_another_name(images):
    kernel = started(low())
    kernel.ram.write(kernel.spec.text_paddr + SYMBOLS["init_task"] + COMM, b"init\0")
    assert images(kernel) == []


def test_the_second_task_is_not_in_the_dump(images):
    kernel = low()
    kernel.spec = replace(
        kernel.spec, absent=((kernel.spec.text_paddr + 0x209000, kernel.spec.text_paddr + 0x20A000),)
    )
    with_tasks(kernel, kernel.symbol("linux_banner") + SECOND)
    (image,) = images(kernel)
    assert image.started


def no_place(_kernel: object, _vaddr: int, _ram: object) -> tuple[int, ...]:
    """As on an architecture whose VMCOREINFO does not say where the image is."""
    return ()


def test_an_architecture_that_says_nothing_of_its_image(images):
    """The tables alone: their root goes into the description."""
    kernel = started(low())
    mute = replace(ARCHITECTURES[0], image_paddrs=no_place, image_numbers=Architecture.image_numbers)
    (image,) = images(kernel, arch=mute)
    assert image.kaslr_offset == kernel.spec.kaslr_offset
    assert image.info.address("phys_pgd_ptr") == kernel.tables.root
    assert image.info.number("phys_base") is None


def test_an_image_at_a_fixed_place(images):
    """As MIPS's in KSEG0: the address follows from the place, whatever the tables map."""
    kernel = started(low())
    fixed = replace(
        ARCHITECTURES[0],
        image_window=lambda _kernel: (0, 0x1000),
        image_paddrs=lambda _kernel, vaddr, _ram: (
            (vaddr - kernel.text_vaddr + kernel.spec.text_paddr) & MASK64,
        ),
        image_numbers=Architecture.image_numbers,
    )
    (image,) = images(kernel, arch=fixed)
    assert image.kaslr_offset == kernel.spec.kaslr_offset
    assert image.info.address("phys_pgd_ptr") is None
