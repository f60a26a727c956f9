"""topelf --format kdump: what it writes, read by struct and the codecs' own libraries, and by ourselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, read_core
from tests.builders.diskdump import build_kdump, build_kdump_map, kernel_kdump
from tests.builders.elfcore import SegmentSpec, build_core
from tests.builders.kdumpread import ReadKdump, read_kdump, unflatten
from tests.builders.kernel import RELEASE, SMALL, SyntheticKernel, make_kernel

CODECS = {"zstd": 0x20, "zlib": 1, "lzo": 2, "snappy": 4, "none": 0}
ZEROS = ((0x700000, 0x740000), (0xB00000, 0xB04000))
NOTE_AT = 0x20000
SEED = 20261124


@dataclass(frozen=True)
class Result:
    """One run: exit code, streams, and the file it wrote."""

    code: int
    out: str
    err: str
    path: Path

    @property
    def dump(self) -> ReadKdump:
        """The output as the test's own reader has it."""
        return read_kdump(self.path.read_bytes())


@pytest.fixture
def topelf(tmp_path, capfd, monkeypatch):
    """``topelf(image, *options)`` writes a kdump-compressed dump of everything."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)

    def run(image: bytes, *options: str) -> Result:
        dump, output = tmp_path / "dump", tmp_path / "out.kdump"
        output.unlink(missing_ok=True)
        dump.write_bytes(image)
        code = main(
            ["topelf", "--format", "kdump", "-l", "all", "-i", str(dump), "-o", str(output), *options]
        )
        captured = capfd.readouterr()
        assert "internal error" not in captured.err and "Warning" not in captured.err
        assert ("out.kdump" in os.listdir(tmp_path)) == ("error:" not in captured.err)
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
        return Result(code, captured.out, captured.err, output)

    return run


@pytest.fixture(scope="module")
def kernel() -> SyntheticKernel:
    return make_kernel(replace(SMALL, zero_ranges=ZEROS))


def pages_of(kernel: SyntheticKernel) -> dict[int, bytes]:
    """Every page that the dump holds, by frame."""
    return {
        (start + at) >> 12: bytes(data[at : at + 4096])
        for start, data in kernel.ram.ranges
        for at in range(0, len(data), 4096)
        if kernel.in_dump(start + at)
    }


@pytest.mark.parametrize("codec", CODECS)
def test_every_page_and_the_headers(topelf, kernel, codec):
    result = topelf(kernel.dump(), "--compress", codec)
    assert (result.code, result.err) == (0, "")
    dump = result.dump
    assert dump.pages == pages_of(kernel)
    assert dump.ram == set(dump.pages)
    assert dump.head["status"] == CODECS[codec]
    assert (dump.head["nr_cpus"], dump.head["block_size"], dump.seconds) == (2, 4096, 1795000000)
    assert dump.head["max_mapnr"] == dump.sub["max_mapnr_64"] == max(dump.pages) + 1
    assert dump.sub["phys_base"] == kernel.phys_base & (1 << 64) - 1
    assert (dump.sub["dump_level"], dump.sub["split"], dump.sub["size_eraseinfo"]) == (1, 0, 0)
    assert dump.utsname == {
        "sysname": b"Linux", "nodename": b"test", "release": RELEASE.encode(), "version": b"#1 SMP",
        "machine": b"x86_64", "domainname": b"(none)",
    }  # fmt: skip
    assert dump.vmcoreinfo.decode() == kernel.vmcoreinfo_text()
    assert dump.notes == b"".join(note.encode("<") for note in kernel.notes())


@pytest.mark.parametrize("codec", CODECS)
def test_zero_pages_share_one(topelf, kernel, codec):
    dump = topelf(kernel.dump(), "--compress", codec).dump
    zeros = [index for index, pfn in enumerate(sorted(dump.pages)) if not any(dump.pages[pfn])]
    assert len(zeros) >= 0x44
    assert len({dump.descriptors[index] for index in zeros}) == 1
    others = [entry for index, entry in enumerate(dump.descriptors) if index not in set(zeros)]
    ends = [offset + size for offset, size, _ in others]
    assert [offset for offset, _, _ in others[1:]] == ends[:-1], "one after the other, in their order"
    assert {flags for _, _, flags in others} <= {0, CODECS[codec]}
    assert all(size <= 4096 and (flags == 0) == (size == 4096) for _, size, flags in others)


def test_incompressible_pages_stay_raw(topelf, kernel):
    noise = make_kernel(kernel.spec)
    noise.ram.write(0x600000, Random(SEED).randbytes(0x4000))
    for codec in CODECS:
        dump = topelf(noise.dump(), "--compress", codec).dump
        index = sorted(dump.pages).index(0x601)
        assert dump.descriptors[index][1:] == (4096, 0)
        assert dump.pages == pages_of(noise)


@pytest.mark.parametrize("codec", CODECS)
def test_our_own_reader(topelf, kernel, codec, tmp_path, capfd):
    result = topelf(kernel.dump(), "--compress", codec)
    velf = tmp_path / "velf"
    assert main(["tovelf", "-l", "all", "-i", str(result.path), "-o", str(velf)]) == 0
    assert capfd.readouterr().err == ""
    check_pages(read_core(velf), kernel)
    assert main(["topelf", "-i", str(result.path), "-o", str(velf), "-l", "all"]) == 0
    core = read_core(velf)
    there = {
        (load["p_paddr"] + at) >> 12: core.image[load["p_offset"] + at :][:4096]
        for load in core.loads
        for at in range(0, load["p_filesz"], 4096)
    }
    assert there == pages_of(kernel)


@pytest.mark.parametrize("compressed", ["raw", "zlib", "lzo", "snappy", "zstd"])
def test_from_a_kdump_with_excluded_pages(topelf, kernel, compressed):
    some = make_kernel(replace(kernel.spec, absent=((0xB10000, 0xB30000), (0x7C0000, 0x7C1000))))
    result = topelf(build_kdump(kernel_kdump(some, compressed)))
    assert result.code == 0
    assert "lost 2 ranges" in result.err
    assert result.dump.pages == pages_of(some)
    assert result.dump.ram == set(pages_of(kernel))


def test_again_is_the_same(topelf, kernel):
    first = topelf(kernel.dump()).path.read_bytes()
    assert topelf(first).path.read_bytes() == first


@pytest.mark.parametrize("style", ["kdump", "qemu"])
def test_the_missing_vmcoreinfo_is_put_in(topelf, kernel, style):
    some = make_kernel(replace(kernel.spec, noted=False, style=style))
    some.put_vmcoreinfo(NOTE_AT)
    result = topelf(some.dump())
    assert (result.code, result.err) == (0, "")
    assert result.dump.vmcoreinfo.decode() == some.vmcoreinfo_text()
    assert result.dump.utsname["release"] == RELEASE.encode()
    assert result.dump.pages == pages_of(some)
    assert result.dump.head["nr_cpus"] == 2


def test_phys_base_of_a_kernel_that_does_not_say_it(topelf, kernel):
    """Kernels before 4.10, whose dumps crash opens by this field alone."""
    old = make_kernel(replace(kernel.spec, vmcoreinfo={"NUMBER(phys_base)": None}))
    assert topelf(old.dump()).dump.sub["phys_base"] == old.phys_base & (1 << 64) - 1


def test_uname_by_other_means(topelf, kernel):
    silent = make_kernel(replace(kernel.spec, vmcoreinfo={"SYMBOL(init_uts_ns)": None, "CRASHTIME": None}))
    dump = topelf(silent.dump()).dump
    assert (dump.utsname["release"], dump.utsname["machine"]) == (RELEASE.encode(), b"x86_64")
    assert (dump.utsname["nodename"], dump.seconds) == (b"", 0)


def test_a_name_of_another_release_is_not_believed(topelf, kernel):
    other = make_kernel(replace(kernel.spec, vmcoreinfo={"OFFSET(uts_namespace.name)": "100000000000"}))
    uts = other.spec.text_paddr + 0x208000
    other.ram.write(uts + 130, b"9.9.9\0")
    dump = topelf(other.dump()).dump
    assert dump.utsname["release"] == RELEASE.encode()
    assert dump.utsname["nodename"] == b""


def test_no_kernel_at_all(topelf, kernel):
    spec = replace(kernel.core_spec(), notes=[])
    result = topelf(build_core(spec), "-l", "kernel")
    assert result.code == 0
    assert "every page is kept" in result.err
    dump = result.dump
    assert (dump.notes, dump.vmcoreinfo, dump.sub["dump_level"], dump.head["nr_cpus"]) == (b"", b"", 1, 1)
    assert dump.utsname["machine"] == b"x86_64"
    assert dump.pages == pages_of(kernel)


def test_pages_that_are_partly_memory(topelf, kernel):
    """The BIOS cuts RAM at any byte: the rest of the page reads as zeros, as makedumpfile writes it."""
    extra = [SegmentSpec(0x2000C00, b"\x5a" * 0x1000), SegmentSpec(0x2002000, b"\xa5" * 0xF00)]
    spec = kernel.core_spec()
    result = topelf(build_core(replace(spec, segments=[*spec.segments, *extra])))
    assert (result.code, result.err) == (0, "")
    pages = result.dump.pages
    assert pages[0x2000] == bytes(0xC00) + b"\x5a" * 0x400
    assert pages[0x2001] == b"\x5a" * 0xC00 + bytes(0x400)
    assert pages[0x2002] == b"\xa5" * 0xF00 + bytes(0x100)


def test_a_page_that_is_cut_off_is_left_out(topelf, kernel):
    spec = kernel.core_spec()
    whole = build_core(spec)
    result = topelf(whole[:-0x1800], "--json")
    assert result.code == 0
    assert "only a part of the page is in the dump" in result.err
    lost = sorted(set(pages_of(kernel)) - set(result.dump.pages))
    assert lost == [0xB7E, 0xB7F]
    assert json.loads(result.out)["accepted_pages"] == len(result.dump.pages)
    assert {**result.dump.pages, **{pfn: pages_of(kernel)[pfn] for pfn in lost}} == pages_of(kernel)


BAD = (0x550000, 0x551000, 0xB40000)


def damaged(kernel: SyntheticKernel) -> bytes:
    placed = build_kdump_map(kernel_kdump(kernel))
    image = bytearray(placed.image)
    frames = sorted(pages_of(kernel))
    for paddr in BAD:
        image[placed.offsets[frames.index(paddr >> 12)] + 8] ^= 0xFF
    return bytes(image)


def test_undecodable_pages_are_left_out(topelf, kernel):
    result = topelf(damaged(kernel), "--json")
    assert result.code == 0
    assert "lost 2 ranges: 0x550000-0x552000 could not be decoded at file offset" in result.err
    document = json.loads(result.out)
    assert document["coverage"]["lost_ranges"] == 2
    assert document["not_present_pages"] == 3
    assert document["accepted_pages"] == len(pages_of(kernel)) - 3
    assert (document["format"], document["compression"]) == ("kdump", "zstd")
    assert document["file_bytes"] == result.path.stat().st_size
    expected = {pfn: data for pfn, data in pages_of(kernel).items() if pfn << 12 not in BAD}
    assert result.dump.pages == expected
    assert result.dump.ram == set(pages_of(kernel))
    assert topelf(damaged(kernel), "--strict").code == 1
    assert result.dump.pages == expected


def test_nothing_can_be_decoded(topelf, kernel, tmp_path, capfd):
    spec = kernel_kdump(kernel)
    image = build_kdump(replace(spec, pages=[replace(page, stored=b"\0" * 8) for page in spec.pages]))
    (tmp_path / "dump").write_bytes(image)
    output = tmp_path / "out"
    assert main(["topelf", "--format", "kdump", "-i", str(tmp_path / "dump"), "-o", str(output)]) == 1
    err = capfd.readouterr().err
    assert "error:" in err and "hint:" in err and "internal" not in err
    assert not output.exists()


@pytest.mark.parametrize("image", ["whole", "damaged"])
def test_into_a_pipe_it_is_flattened(kernel, image, tmp_path, capfdbinary):
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes(kernel.dump() if image == "whole" else damaged(kernel))
    words = ["topelf", "--format", "kdump", "-l", "all", "-i", str(source)]
    assert main([*words, "-o", str(output)]) == 0
    capfdbinary.readouterr()
    assert main(words) == 0
    out, err = capfdbinary.readouterr()
    assert b"Accepted" in err
    assert (b"could not be decoded" in err) == (image == "damaged")
    assert unflatten(out) == output.read_bytes()
    flat, again = tmp_path / "flat", tmp_path / "again"
    flat.write_bytes(out)
    assert main(["topelf", "--format", "kdump", "-l", "all", "-o", str(again), str(flat)]) == 0
    assert read_kdump(again.read_bytes()).pages == read_kdump(output.read_bytes()).pages


def test_compress_goes_with_kdump_only(tmp_path, capfd):
    assert main(["topelf", "--compress", "zlib", "-i", str(tmp_path / "x")]) == 2
    assert "--format kdump" in capfd.readouterr().err


def test_a_codec_that_is_not_installed(topelf, kernel, monkeypatch):
    from kdump_elftool.codecs import packing

    monkeypatch.setitem(sys.modules, "cramjam", None)
    packing.PACKERS["zstd"].load.cache_clear()
    result = topelf(kernel.dump(), "--compress", "zstd")
    assert result.code == 1
    assert "cramjam" in result.err and "pip install 'kdump-elftool[codecs]'" in result.err
    result = topelf(kernel.dump())
    assert result.dump.head["status"] == 1, "zlib, which is always there"


def test_memory_too_far_up(topelf, kernel):
    spec = kernel.core_spec()
    far = SegmentSpec(1 << 50, bytes(4096))
    result = topelf(build_core(replace(spec, segments=[*spec.segments, far])))
    assert result.code == 1
    assert "0x4000000001000" in result.err and "--format elf" in result.err


def test_elf_in_the_crash_kernel_loads_none_of_it(kernel, tmp_path):
    """There are numpy and the standard library, and little memory."""
    (tmp_path / "dump").write_bytes(kernel.dump())
    code = """
import sys
for name in ("rich", "cramjam", "isal", "lzallright", "zstandard"):
    sys.modules[name] = None
from kdump_elftool.cli.main import main
code = main(["topelf", "-q", *sys.argv[1:]])
words = ("packing", "diskdump_layout", "diskdump_writer", "flattened_out", "kdump_out", "kdump_output")
print([name for name in sys.modules if name.startswith("kdump_elftool") and name.endswith(words)])
sys.exit(code)
"""
    paths = ["-i", str(tmp_path / "dump"), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
