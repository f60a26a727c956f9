"""The generated dump is what it says: a kernel that can be found and walked, with its zero pages."""

from __future__ import annotations

import numpy as np
import pytest

from bench.generate import (
    IMAGE_SIZE,
    MIB,
    PAGE_OFFSET,
    SMALLEST,
    SWAPPER_PADDR,
    TEXT_PADDR,
    TEXT_VADDR,
    VMALLOC,
    DumpSpec,
    generate,
)
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.builders.pagetables import walk_plain

PAGE = 4096


@pytest.fixture(scope="module")
def spec():
    return DumpSpec(ram_bytes=SMALLEST, zero_share=0.3, vmalloc_pages=100)


@pytest.fixture(scope="module")
def dump(tmp_path_factory, spec):
    path = tmp_path_factory.mktemp("bench") / "dump"
    size = generate(path, spec)
    assert path.stat().st_size == size
    with InputFile.open(str(path)) as file:
        yield open_dump(file)
    path.unlink()


def test_holds_all_of_ram(dump, spec):
    assert [
        (start, end)
        for start, end in zip(
            dump.memory.present().start.tolist(), dump.memory.present().end.tolist(), strict=True
        )
    ] == spec.ram()
    assert not dump.lost and not dump.warnings


def test_plain_walk_finds_every_mapping_once(dump, spec):
    leaves = list(walk_plain(dump.memory.read, SWAPPER_PADDR))
    by_area = {"direct": 0, "image": 0, "vmalloc": 0}
    for leaf in leaves:
        area = "image" if leaf.vaddr >= TEXT_VADDR else "vmalloc" if leaf.vaddr >= VMALLOC else "direct"
        by_area[area] += leaf.size
        if area == "direct":
            assert leaf.vaddr - PAGE_OFFSET == leaf.paddr
        if area == "image":
            assert leaf.vaddr - TEXT_VADDR == leaf.paddr - TEXT_PADDR
    ram = sum(end - start for start, end in spec.ram())
    assert by_area == {"direct": ram, "image": IMAGE_SIZE, "vmalloc": 100 * PAGE}
    scattered = {leaf.paddr for leaf in leaves if VMALLOC <= leaf.vaddr < TEXT_VADDR}
    assert len(scattered) == 100


def test_text_is_stored_twice_and_alike(dump):
    claimed = {vaddr: at for at, vaddr in enumerate(dump.claimed.vaddr.tolist())}
    assert dump.claimed.paddr[claimed[TEXT_VADDR]] == TEXT_PADDR
    first = dump.file.read_at(0, 8192)
    offset = int.from_bytes(first[64 + 56 + 8 : 64 + 56 + 16], "little")
    assert dump.file.read_at(offset, MIB) == dump.memory.read(TEXT_PADDR, MIB)


def test_share_of_zero_pages(dump, spec):
    start, end = spec.ram()[1]
    zero = ~np.frombuffer(dump.memory.read(start, end - start), dtype=np.uint64).reshape(-1, 512).any(axis=1)
    assert zero.mean() == pytest.approx(spec.zero_share, abs=0.05)
    runs = int(np.count_nonzero(np.diff(zero.astype(np.int8)) == 1))
    assert zero.sum() / runs == pytest.approx(spec.zero_run, rel=0.25)


def test_without_zero_share_the_only_sparse_pages_are_tables(tmp_path):
    path = tmp_path / "dense"
    spec = DumpSpec(ram_bytes=SMALLEST)
    generate(path, spec)
    with InputFile.open(str(path)) as file:
        memory = open_dump(file).memory
        start, end = spec.ram()[1]
        pages = np.frombuffer(memory.read(start, end - start), dtype=np.uint64).reshape(-1, 512)
        assert pages.any(axis=1).all()
        assert np.count_nonzero((pages == 0).any(axis=1)) < 64


def test_splits_ram_at_the_pci_hole():
    ranges = DumpSpec(ram_bytes=6 << 30).ram()
    assert ranges[1:] == [(MIB, 3 << 30), (4 << 30, 7 << 30)]


@pytest.mark.parametrize("ram_bytes", [SMALLEST - 2 * MIB, SMALLEST + MIB, 0])
def test_refuses_sizes_that_are_no_machine(tmp_path, ram_bytes):
    with pytest.raises(ValueError, match="2 MiB"):
        generate(tmp_path / "no", DumpSpec(ram_bytes=ram_bytes))
    assert not (tmp_path / "no").exists()
