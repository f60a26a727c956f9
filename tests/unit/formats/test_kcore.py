"""/proc/kcore, generated: what of it is physical memory, and the kernel in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdump_elftool.errors import CorruptDumpError, UnsupportedError
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from tests.builders.elfcore import EM_AARCH64, CoreSpec, SegmentSpec, build_core
from tests.builders.kcore import FORMS, Kcore, kcore
from tests.builders.kernel import IMAGE_SIZE, RELEASE, SMALL, SyntheticKernel, make_kernel


@pytest.fixture(scope="module")
def kernel() -> SyntheticKernel:
    made = make_kernel(replace(SMALL, vmalloc_pages=8))
    made.put_vmcoreinfo(0xB40000)
    return made


def live(kernel: SyntheticKernel, form: str, page_offset: int | None = None) -> Kcore:
    ram = [(start, len(data), start) for start, data in kernel.ram.ranges]
    text = (kernel.text_vaddr, IMAGE_SIZE, kernel.spec.text_paddr)
    base = kernel.bases["page_offset"] if page_offset is None else page_offset
    return kcore(ram, text, base, kernel.ram.read, kernel.vmcoreinfo_text().encode(), form)


@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_in_it(kernel, form):
    """As in a dump of the same memory, without a word of what has no physical address."""
    dump = open_dump(live(kernel, form))
    assert dump.warnings == ()
    assert dump.running
    assert not [note for note in dump.notes if note.type == 1], "registers of nothing"
    ranges = dump.memory.present()
    assert list(zip(ranges.start.tolist(), ranges.end.tolist(), strict=True)) == [
        (start, start + len(data)) for start, data in kernel.ram.ranges
    ]
    found = open_kernel(dump, KernelRequest())
    assert found.identity.release == RELEASE
    assert found.identity.verified
    still = open_dump(Whole(kernel.dump()))
    assert not still.running
    whole = open_kernel(still, KernelRequest())
    assert found.identity.pgt_root == whole.identity.pgt_root
    for name in ("vaddr", "paddr", "size"):
        theirs, ours = (getattr(each.walked.mappings, name) for each in (whole, found))
        assert np.array_equal(theirs, ours)
    assert found.virtual(dump).read(kernel.symbol("linux_banner"), 13) == b"Linux version"


class Whole(Kcore):
    """A file that is all there."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, (), lambda at, size: b"", size=len(data))


def test_a_copy_of_its_beginning(kernel):
    """More of it no copy of a file has: it seems to have 128 TB."""
    with pytest.raises(CorruptDumpError, match="before any memory") as caught:
        open_dump(Whole(live(kernel, "v4.19").read_at(0, 1 << 20)))
    assert "topelf /proc/kcore" in (caught.value.hint or "")


@pytest.mark.parametrize("base", [0xFFFF880000000000, 0xFFFF9A4040000000, 0xFFFFA00000000000])
def test_a_direct_map_that_was_moved(kernel, base):
    """Kernels before v4.11 say nothing but virtual addresses."""
    dump = open_dump(live(kernel, "v4.4", base))
    start = dump.memory.present().start.tolist()
    assert start == [start for start, _ in kernel.ram.ranges]


def test_of_other_machines_before_v4_11():
    loads = [SegmentSpec(0, bytes(0x1000), vaddr=0xFFFF800000000000 + at) for at in (0, 0x10000)]
    with pytest.raises(UnsupportedError, match="no physical addresses"):
        open_dump(Whole(build_core(CoreSpec(loads, machine=EM_AARCH64))))


def test_32_bits():
    """There all ones are an address below 2^56."""
    nowhere = SegmentSpec(0xFFFFFFFF, bytes(0x1000), vaddr=0xF8000000)
    ram = SegmentSpec(0x100000, b"\x5a" * 0x1000, vaddr=0xC0100000)
    dump = open_dump(Whole(build_core(CoreSpec([nowhere, ram], elf_class=32, machine=40))))
    assert dump.memory.present().start.tolist() == [0x100000]
    assert dump.warnings == ()
