"""kdump-compressed dumps through the commands; damage ends in the coverage or in one clear error."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import replace
from random import Random

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, check_subset, read_core
from tests.builders.diskdump import build_kdump, build_kdump_map, kernel_kdump
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel
from tests.builders.tools import readelf_complaints

SEED = 20261124
CODECS = ("raw", "zlib", "lzo", "snappy", "zstd")


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(replace(SMALL, zero_ranges=((0x700000, 0x740000),)))


@pytest.fixture(scope="module")
def placed(kernel):
    return build_kdump_map(kernel_kdump(kernel))


@pytest.mark.parametrize("codec", CODECS)
def test_every_page_comes_through(tovelf, kernel, codec):
    result = tovelf(build_kdump(kernel_kdump(kernel, codec)))
    assert (result.code, result.err) == (0, "")
    check_pages(result.core, kernel)


@pytest.mark.parametrize("version", [4, 5, 6])
def test_older_versions(tovelf, kernel, version):
    result = tovelf(build_kdump(kernel_kdump(kernel, version=version)))
    assert (result.code, result.err) == (0, "")
    check_pages(result.core, kernel)


def test_phys_base_of_the_header_stands_in(tovelf, kernel):
    """Kernels before 4.10 do not print it."""
    old = make_kernel(replace(kernel.spec, vmcoreinfo={"NUMBER(phys_base)": None}))
    sub = {"phys_base": old.phys_base}
    result = tovelf(build_kdump(kernel_kdump(old, sub=sub)), "--verbose")
    assert result.code == 0
    assert "the dump's header" in result.err
    check_pages(result.core, old)


def test_excluded_pages_are_absent(tovelf, kernel):
    some = make_kernel(replace(kernel.spec, absent=((0xB10000, 0xB30000), (0x7C0000, 0x7C1000))))
    result = tovelf(build_kdump(kernel_kdump(some)))
    assert result.code == 0
    assert "lost 2 ranges: 0x7c0000-0x7c1000 excluded; 0xb10000-0xb30000 excluded" in result.err
    check_pages(result.core, some)


def damaged(placed, kernel, numbers) -> bytes:
    """The checksum of these pages' zlib streams does not fit."""
    image = bytearray(placed.image)
    for number in numbers:
        at = placed.offsets[number]
        _, size, flags, _ = struct.unpack_from("<QIIQ", image, placed.descriptors + 24 * number)
        assert flags == 1
        image[at + size - 1] ^= 1
    return bytes(image)


def numbers_of(placed, kernel, paddrs) -> list[int]:
    """Which page of the dump is which: all of RAM is in it."""
    all_pages = [start + at for start, data in kernel.ram.ranges for at in range(0, len(data), 4096)]
    return [all_pages.index(paddr) for paddr in paddrs]


BAD = (0x550000, 0x551000, 0xB40000)


def test_undecodable_pages_are_left_out(tovelf, placed, kernel):
    image = damaged(placed, kernel, numbers_of(placed, kernel, BAD))
    result = tovelf(image, "--json")
    assert result.code == 0
    (line,) = result.lines("coverage")
    at = placed.offsets[numbers_of(placed, kernel, BAD)[0]]
    assert f"lost 2 ranges: 0x550000-0x552000 could not be decoded at file offset {at:#x}; 0xb40000-" in line
    document = json.loads(result.out)
    assert document["coverage"]["lost_ranges"] == 2
    assert document["not_present_pages"] == 3
    assert document["segments"] == len(result.core.loads)
    (summary,) = [note for note in result.core.notes() if note[:2] == ("kdump-elftool", 1)]
    assert json.loads(summary[2])["coverage"] == document["coverage"]
    expected = {vaddr: paddr for vaddr, paddr in kernel.readable_pages().items() if paddr not in BAD}
    check_pages(result.core, kernel, expected)
    assert any("kernel image" in line for line in result.lines("warning"))


def test_undecodable_pages_and_strict(tovelf, placed, kernel):
    result = tovelf(damaged(placed, kernel, numbers_of(placed, kernel, BAD)), "--strict")
    assert result.code == 1
    assert check_subset(result.core, kernel) > 1000


def test_very_many_undecodable_pages(tovelf, placed, kernel):
    """More segments than fit in front: the program headers stand at the end of the file."""
    gone = range(0x404000, 0x600000, 0x2000)
    result = tovelf(damaged(placed, kernel, numbers_of(placed, kernel, gone)))
    assert result.code == 0
    assert "could not be decoded" in result.err
    assert struct.unpack_from("<Q", result.core.image, 32)[0] > 4 << 20
    assert readelf_complaints(result.path) == []
    assert check_subset(result.core, kernel) == sum(
        paddr not in gone for paddr in kernel.readable_pages().values()
    )


def test_undecodable_pages_into_a_pipe(placed, kernel, tmp_path, capfdbinary):
    path = tmp_path / "dump"
    path.write_bytes(damaged(placed, kernel, numbers_of(placed, kernel, BAD)))
    assert main(["tovelf", "-l", "all", "-i", str(path)]) == 1
    err = capfdbinary.readouterr().err.decode()
    assert "error: paddr 0x550000: could not be decoded at file offset" in err
    assert "-o FILE" in err


def test_nothing_can_be_decoded(placed, kernel, tmp_path, capfd):
    some = make_kernel(replace(kernel.spec, absent=((0x1000, 0x9F000), (0xB00000, 0xB80000))))
    spec = kernel_kdump(some)
    pages = [replace(page, stored=b"\0" * 8) for page in spec.pages]
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(replace(spec, pages=pages)))
    assert main(["topelf", "-i", str(path), "-o", str(tmp_path / "out")]) == 1
    assert "error:" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_topelf_and_the_looking_commands(placed, kernel, tmp_path, capfd):
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(damaged(placed, kernel, numbers_of(placed, kernel, BAD)))
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out), "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["coverage"]["lost_ranges"] == 2
    core = read_core(out)
    assert {load["p_vaddr"] for load in core.loads} == {0}
    there = {
        load["p_paddr"] + at: load["p_offset"] + at
        for load in core.loads
        for at in range(0, load["p_filesz"], 4096)
    }
    for start, data in kernel.ram.ranges:
        for at in range(0, len(data), 4096):
            offset = there.get(start + at)
            assert (offset is None) == (start + at in BAD)
            assert offset is None or core.image[offset : offset + 4096] == data[at : at + 4096]
    assert main(["info", str(path)]) == 0
    assert "format:        kdump, 64-bit" in capfd.readouterr().out
    assert main(["dumpmem", "-p", "-i", str(path), "b3fff0", "20"]) == 0
    captured = capfd.readouterr()
    assert "?? ??" in captured.out
    assert "16 of 32 bytes are not in the dump" in captured.err
    text = f"{kernel.symbol('_stext'):x}"
    assert main(["virttophys", "-i", str(path), text]) == 0
    assert capfd.readouterr().out.split()[-1] == f"{kernel.spec.text_paddr:x}"


def test_in_place_is_for_elf_only(placed, tmp_path, capfd):
    path = tmp_path / "dump"
    path.write_bytes(placed.image)
    assert main(["tovelf", "--in-place", "-i", str(path)]) == 1
    assert "only an ELF dump" in capfd.readouterr().err
    assert path.read_bytes() == placed.image


def split(kernel, *borders: int) -> list[bytes]:
    return [build_kdump(kernel_kdump(kernel, split=pair)) for pair in itertools.pairwise(borders)]


def run_set(tmp_path, images, *options: str) -> int:
    paths = [tmp_path / f"part{number}" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    return main(["tovelf", "-l", "all", *options, "-o", str(tmp_path / "out"), *map(str, paths)])


def test_the_parts_of_a_set_in_any_order(kernel, tmp_path, capfd):
    first, second, third = split(kernel, 0, 0x500, 0x600, 0x1000)
    assert run_set(tmp_path, [third, first, second]) == 0
    assert capfd.readouterr().err == ""
    check_pages(read_core(tmp_path / "out"), kernel)


def test_a_part_is_missing(kernel, tmp_path, capfd):
    first, _, third = split(kernel, 0, 0x760, 0x770, 0x1000)
    assert run_set(tmp_path, [third, first]) == 0
    assert "0x760000-0x770000 in a part of the set that was not given" in capfd.readouterr().err
    gone = range(0x760000, 0x770000)
    expected = {vaddr: paddr for vaddr, paddr in kernel.readable_pages().items() if paddr not in gone}
    check_pages(read_core(tmp_path / "out"), kernel, expected)


def test_a_part_is_given_twice(kernel, tmp_path, capfd):
    first, second = split(kernel, 0, 0x600, 0x1000)
    assert run_set(tmp_path, [second, first, first]) == 0
    assert "holds what" in capfd.readouterr().err
    check_pages(read_core(tmp_path / "out"), kernel)


def test_parts_that_are_no_set(kernel, placed, tmp_path, capfd):
    first, _ = split(kernel, 0, 0x600, 0x1000)
    other = build_kdump(kernel_kdump(kernel, split=(0x600, 0x1000), machine="i686"))
    overlap = build_kdump(kernel_kdump(kernel, split=(0x500, 0x1000)))
    for images, code, word in (
        ([first, placed.image], 2, "whole dump"),
        ([first, other], 2, "different dumps"),
        ([first, kernel.dump()], 1, "no kdump-compressed dump"),
        ([first, overlap], 1, "overlap"),
    ):
        assert run_set(tmp_path, images) == code
        assert word in capfd.readouterr().err


def test_another_format_than_the_one_that_was_named(kernel, placed, tmp_path, capfd):
    for image, name in ((kernel.dump(), "kdump"), (placed.image, "pelf")):
        (tmp_path / "dump").write_bytes(image)
        assert main(["info", "-I", name, str(tmp_path / "dump")]) == 1
        assert "error:" in capfd.readouterr().err


def test_a_part_that_ran_out_of_disk(kernel, tmp_path, capfd):
    """Only that part's status says so."""
    first = build_kdump(kernel_kdump(kernel, split=(0, 0x600)))
    second = build_kdump(kernel_kdump(kernel, split=(0x600, 0x1000), head={"status": 9}))
    assert run_set(tmp_path, [second, first]) == 0
    assert "ran out of space" in capfd.readouterr().err
    check_pages(read_core(tmp_path / "out"), kernel)


def test_addrandoff_and_vminfo(placed, kernel, tmp_path, capfd):
    path = tmp_path / "dump"
    path.write_bytes(placed.image)
    assert main(["vminfo", str(path)]) == 0
    assert f"SYMBOL(_stext)={kernel.symbol('_stext'):x}" in capfd.readouterr().out
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(build_vmlinux())
    assert main(["addrandoff", "-m", str(vmlinux), str(path)]) == 1
    captured = capfd.readouterr()
    assert "error:" in captured.err
    assert "internal" not in captured.err
    assert path.read_bytes() == placed.image


def cuts(placed) -> list[int]:
    """200 places: every part of the file and both sides of its borders."""
    random = Random(SEED)
    borders = (8, 464, 4096, placed.bitmaps, placed.descriptors, placed.data, len(placed.image))
    chosen = {border + step for border in borders for step in (-1, 0, 1)}
    while len(chosen) < 80:
        chosen.add(random.randrange(placed.data))
    while len(chosen) < 200:
        chosen.add(random.randrange(placed.data, len(placed.image)))
    return sorted(cut for cut in chosen if cut < len(placed.image))


def test_truncated_at_200_places(tovelf, kernel, placed):
    shares = []
    for cut in cuts(placed):
        result = tovelf(placed.image[:cut])
        if result.code == 1:
            shares.append(0)
            continue
        assert "lost" in result.lines("coverage")[0]
        shares.append(check_subset(result.core, kernel))
    assert shares == sorted(shares), "the more there is, the more comes out"
    assert max(shares) > len(kernel.readable_pages()) * 0.9
    assert len([share for share in shares if share]) > 10


@pytest.mark.parametrize("codec", CODECS)
def test_bit_flips_end_in_a_result_or_an_error(tovelf, kernel, codec):
    """In the headers, the bitmaps, the descriptors and a few pages."""
    placed = build_kdump_map(kernel_kdump(kernel, codec))
    random = Random(SEED)
    for number in range(16):
        image = bytearray(placed.image)
        at = random.randrange(len(image) if number % 2 else placed.data)
        image[at] ^= 1 << random.randrange(8)
        result = tovelf(bytes(image))
        if codec == "zlib" and result.code == 0 and at >= placed.data:
            check_subset(result.core, kernel)
