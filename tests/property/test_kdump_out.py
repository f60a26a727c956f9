"""Random memory through the writer: the test's own reader and ours find in it what went in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.addr import Ranges, merge_ranges, u64
from kdump_elftool.codecs.packing import PACKERS, packer
from kdump_elftool.files import InputFile, open_output
from kdump_elftool.formats import diskdump_writer
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.formats.diskdump import FORMAT
from kdump_elftool.formats.diskdump_layout import FLAGS, KdumpLayout
from kdump_elftool.formats.diskdump_writer import write_kdump
from kdump_elftool.memory.extents import normalise
from kdump_elftool.memory.paged import Bytes2D, PagedReader, Trouble
from kdump_elftool.memory.physical import PhysicalMemory
from tests.builders.kdumpread import read_kdump

PAGE = 4096


class Pages(PagedReader):
    """Page n is the n-th of a list; None can't be read."""

    page_size = PAGE

    def __init__(self, pages: list[bytes | None]) -> None:
        self.pages = pages

    def read_pages(self, pages: np.ndarray, out: Bytes2D) -> np.ndarray:
        good = np.ones(len(pages), dtype=np.bool_)
        for row, number in enumerate(pages.tolist()):
            data = self.pages[number]
            good[row] = data is not None
            out[row] = 0 if data is None else np.frombuffer(data, dtype=np.uint8)
        return good

    def trouble(self, page: int) -> Trouble:
        return Trouble("lost", page)


def page_of(kind: str, seed: int) -> bytes | None:
    """A page of a kind: zeros, compressible, noise, unreadable."""
    random = Random(seed)
    return {
        "zero": bytes(PAGE),
        "soft": (random.randbytes(48) * 100)[:PAGE],
        "almost": bytes(PAGE - 1) + b"\1",
        "noise": random.randbytes(PAGE),
        "bad": None,
    }[kind]


RUN = st.tuples(st.integers(0, 400), st.integers(1, 60))
KINDS = st.lists(st.sampled_from(["zero", "soft", "almost", "noise", "bad"]), min_size=1, max_size=12)


@pytest.mark.parametrize("codec", PACKERS)
@settings(max_examples=30)
@given(
    runs=st.lists(RUN, min_size=1, max_size=8),
    kinds=KINDS,
    batch=st.sampled_from([1, 3, 64, 512]),
    page_gap=st.integers(0, 1 << 20),
)
def test_what_goes_in_comes_out(codec: str, runs: list, kinds: list, batch: int, page_gap: int) -> None:
    starts = u64([start + page_gap for start, _ in runs])
    frames = merge_ranges(starts, starts + u64([count for _, count in runs]))
    numbers = [pfn for low, high in zip(frames.start, frames.end, strict=True) for pfn in range(low, high)]
    pages = [page_of(kinds[index % len(kinds)], index) for index in range(len(numbers))]
    counts = frames.end - frames.start
    position = (np.cumsum(counts, dtype=np.uint64) - counts) * np.uint64(PAGE)
    extents = normalise(frames.start * np.uint64(PAGE), counts * np.uint64(PAGE), position)
    memory = PhysicalMemory(Pages(pages), extents, extents.ranges())
    layout = KdumpLayout(
        order="<", bits=64, align=8, page_size=PAGE, utsname=(b"Linux", b"", b"6.1", b"", b"x86_64", b""),
        seconds=7, nr_cpus=3, phys_base=0x1000, dump_level=31, flag=FLAGS[codec], notes=(),
        vmcoreinfo=None, ram=frames, dumped=frames,
    )  # fmt: skip
    expected = {pfn: page for pfn, page in zip(numbers, pages, strict=True) if page is not None}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(diskdump_writer, "_BATCH_BYTES", batch * PAGE)
        patch.setattr(diskdump_writer, "_DESCRIPTORS", 50)
        path = Path(folder) / "dump"
        with open_output(str(path)) as out:
            written = write_kdump(layout, memory, out, packer(codec))
            out.finish(written.file_size)
            out.commit()
        assert path.stat().st_size == written.file_size
        dump = read_kdump(path.read_bytes())
        assert dump.pages == expected
        assert dump.ram == set(numbers)
        assert written.zero_pages == sum(not any(page) for page in expected.values())
        lost = written.unreadable
        assert {pfn for low, high in zip(lost.start, lost.end, strict=True) for pfn in range(low, high)} == (
            set(numbers) - set(expected)
        )
        if expected:
            check_own_reader(path, expected)


def check_own_reader(path: Path, expected: dict[int, bytes]) -> None:
    with InputFile.open(str(path)) as file:
        dump = FORMAT.open((file,), OpenOptions())
        there: Ranges = dump.memory.present()
        paddr = u64([pfn * PAGE for pfn in expected])
        assert there.total == len(paddr) * PAGE
        found, good = dump.memory.gather(paddr, PAGE)
        assert good.all()
        assert found.tobytes() == b"".join(expected.values())
