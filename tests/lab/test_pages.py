"""Page selection on the lab's dumps: held against makedumpfile's bitmap and drgn, frame by frame."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdump_elftool.addr import subtract_ranges
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.pages import choose_pages
from kdump_elftool.kernel.freelists import free_by_lists
from kdump_elftool.kernel.memmap import SparseGeometry, find_memmap
from kdump_elftool.kernel.pages import LEVELS, Category, PageAccount, classify, page_fields
from kdump_elftool.kernel.words import Words
from tests.lab.bitmaps import fair_copy, makedumpfile
from tests.lab.dumps import LabDump, drgn_says, gdb, kdump_elftool, selected_dumps

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = 20261122
FRAMES = 20_000
DUMP_LEVELS = {"kernel": 30, "user": 22, "cache": 24, "inuse": 16}
EXCLUDES = {
    "kernel": {"free", "cache", "user", "poison", "offline"},
    "user": {"free", "cache", "poison", "offline"},
    "cache": {"free", "user", "poison", "offline"},
    "inuse": {"free", "poison", "offline"},
}
DUMPS = selected_dumps()
KDUMPS = [dump for dump in DUMPS if dump.scenario == "kdump"]
PAGES = [dump for dump in DUMPS if dump.scenario == "pages"]
STOPPED = [dump for dump in DUMPS if dump.file.startswith("qemu")]
MADE = ("SwapCached", "Dirty", "AnonPages", "AnonHugePages", "Shmem", "HugePages_Total", "HardwareCorrupted")
"""What the guest counted just before the crash, of kinds that makedumpfile does not tell apart."""


def chosen(path: Path, level: str) -> tuple[PageAccount, npt.NDArray[np.bool_]]:
    """Our account of a dump, and the frames kept as a column by pfn."""
    with InputFile.open(str(path)) as file:
        dump = open_dump(file)
        account, warnings = choose_pages(dump, open_kernel(dump, KernelRequest()), level)
        assert account is not None, warnings
        kept = subtract_ranges(dump.memory.present(), account.dropped)
    frames = np.zeros(int(kept.end[-1]) // 4096, dtype=np.bool_)
    for start, end in zip(kept.start.tolist(), kept.end.tolist(), strict=True):
        frames[-(-start // 4096) : end // 4096] = True
    return account, frames


@pytest.mark.root
@pytest.mark.parametrize("dump", KDUMPS + PAGES, ids=lambda dump: dump.id)
def test_every_level_keeps_makedumpfiles_frames(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    core = fair_copy(dump.path, tmp_path)
    for level, dump_level in DUMP_LEVELS.items():
        account, ours = chosen(core, level)
        theirs = makedumpfile(core, dump_level, tmp_path)
        assert theirs.kept.sum() > 10_000
        length = max(len(ours), len(theirs.kept))
        both = [np.pad(column, (0, length - len(column))) for column in (ours, theirs.kept)]
        differing = np.flatnonzero(both[0] != both[1])
        assert not len(differing), (level, len(differing), [hex(pfn) for pfn in differing[:10].tolist()])
        counted = {category.name.lower(): account.counts[category] for category in Category if category}
        assert counted == theirs.counts, level
        assert {name for name, pages in counted.items() if pages} <= EXCLUDES[level]
        expected = (
            EXCLUDES[level] if dump.scenario == "pages" else EXCLUDES[level] & {"free", "cache", "user"}
        )
        assert all(counted[name] for name in expected), counted
        if dump.scenario == "pages" and level == "kernel":
            assert all(theirs.labels.values()), theirs.labels


@pytest.mark.parametrize("dump", PAGES, ids=lambda dump: dump.id)
def test_the_guest_made_pages_of_every_kind(dump: LabDump) -> None:
    counted = dump.truth["meminfo"]
    assert all(counted[name] > 0 for name in MADE), {name: counted[name] for name in MADE}


@pytest.mark.parametrize("dump", STOPPED + PAGES, ids=lambda dump: dump.id)
def test_frames_are_what_drgn_says(dump: LabDump, tmp_path: Path) -> None:
    dump.check()
    judged = drgn_says("oracle_pages.py", dump.path, dump.vmlinux, tmp_path, seed=SEED, count=FRAMES)
    codes, known = classified(dump.path)
    wrong = [
        (hex(pfn), theirs, ours)
        for pfn, theirs in judged["frames"]
        if (ours := Category(codes[pfn]).name if known[pfn] else "UNKNOWN") != theirs
    ]
    assert not wrong, f"{len(wrong)} of {FRAMES}: {wrong[:10]} {Counter(entry[1:] for entry in wrong)}"
    seen = Counter(category for _, category in judged["frames"])
    assert len(judged["frames"]) == FRAMES
    assert all(seen[name] for name in ("KEPT", "FREE", "CACHE", "USER")), seen
    # more than the sample: the allocator's lists and the marks on pages name as many
    assert int((codes == Category.FREE).sum()) == judged["free"]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_free_lists_name_the_pages_that_are_marked_free(dump: LabDump) -> None:
    """Kernels before 3.12 mark nothing; on these both ways must give the same."""
    dump.check()
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        words, form = Words(kernel.virtual(opened)), kernel.identity.form
        geometry = SparseGeometry(form.section_size_bits, form.physmem_bits)
        listed = free_by_lists(words, kernel.info, find_memmap(words, kernel.info, geometry))
    assert listed.broken == 0
    codes, _ = classified(dump.path)
    by_lists = np.zeros(len(codes), dtype=np.bool_)
    for start, end in zip(listed.ranges.start.tolist(), listed.ranges.end.tolist(), strict=True):
        by_lists[start // 4096 : end // 4096] = True
    assert by_lists.sum() > 10_000
    assert not np.flatnonzero(by_lists != (codes == Category.FREE)).tolist()[:10]


def classified(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Category and whether the struct page could be read, by pfn."""
    with InputFile.open(str(path)) as file:
        dump = open_dump(file)
        kernel = open_kernel(dump, KernelRequest())
        virtual = kernel.virtual(dump)
        words, form = Words(virtual, dump.kind.order, kernel.arch.prstatus.word), kernel.identity.form
        geometry = SparseGeometry(form.section_size_bits, form.physmem_bits)
        memmap = find_memmap(words, kernel.info, geometry)
        length = max(part.pfn + part.nr_pages for part in memmap.parts)
        codes, known = np.zeros(length, dtype=np.uint8), np.zeros(length, dtype=np.bool_)
        fields = page_fields(kernel.info, kernel.arch.prstatus.word)
        for pfn, some_codes, some_known in classify(virtual, memmap, fields, LEVELS["kernel"]):
            codes[pfn : pfn + len(some_codes)] = some_codes
            known[pfn : pfn + len(some_known)] = some_known
    return codes, known


def assert_backtrace(velf: Path, kaslr_offset: str, dump: LabDump) -> None:
    shown = gdb(f"core-file {velf}", f"symbol-file -o {kaslr_offset} {dump.vmlinux}", "thread apply all bt")
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        found = re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout)
        assert found, shown.stdout + shown.stderr


@pytest.mark.gdb
@pytest.mark.parametrize("level", ["inuse", "user", "cache", "kernel"])
@pytest.mark.parametrize("dump", KDUMPS[:1], ids=lambda dump: dump.id)
def test_backtrace_at_every_level(dump: LabDump, level: str, tmp_path: Path) -> None:
    dump.check()
    velf = tmp_path / "velf"
    done = kdump_elftool("tovelf", "-l", level, "-i", dump.path, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    assert_backtrace(velf, json.loads(done.stdout)["kaslr_offset"], dump)


@pytest.mark.gdb
@pytest.mark.parametrize("dump", KDUMPS[:1], ids=lambda dump: dump.id)
def test_backtrace_after_a_pipe_through_gzip(dump: LabDump, tmp_path: Path) -> None:
    """The crash kernel's ``topelf | gzip``, unpacked and converted."""
    dump.check()
    packed, pelf, velf = tmp_path / "pelf.gz", tmp_path / "pelf", tmp_path / "velf"
    command = Path(sys.executable).parent / "kdump-elftool"
    argv = [command, "topelf", "-i", dump.path]
    with packed.open("wb") as out, subprocess.Popen(argv, stdout=subprocess.PIPE) as source:
        gzipped = subprocess.run(["gzip", "-1"], stdin=source.stdout, stdout=out)
    assert (source.returncode, gzipped.returncode) == (0, 0)
    with gzip.open(packed, "rb") as stream, pelf.open("wb") as whole:
        shutil.copyfileobj(stream, whole, 1 << 20)
    done = kdump_elftool("tovelf", "-l", "all", "-i", pelf, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    assert_backtrace(velf, json.loads(done.stdout)["kaslr_offset"], dump)
