"""A bad sector in the middle of a file costs what lies there, in every format."""

from __future__ import annotations

import errno
import gzip
import json
import os

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.errors import PageAbsentError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import OpenOptions
from tests.builders.check import check_subset, read_core
from tests.builders.diskdump import build_kdump, build_kdump_map, kernel_kdump
from tests.builders.flattened import even, flatten
from tests.builders.images import build_image
from tests.builders.kernel import SMALL, make_kernel
from tests.builders.mapped_ram import MappedFile, pages_of
from tests.builders.migration import stream_of
from tests.builders.vmware import State, memory_group

PAGE = 4096
SIZE = 12 << 20


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL)


def ranges(kernel) -> list[tuple[int, bytes]]:
    return [(start, bytes(data)) for start, data in kernel.ram.ranges]


def flat(kernel) -> bytes:
    memory = bytearray(SIZE)
    for start, data in ranges(kernel):
        memory[start : start + len(data)] = data
    return bytes(memory)


FORMATS = {
    "elf": lambda kernel: kernel.dump(),
    "lime": lambda kernel: build_image("lime", ranges(kernel)),
    "raw": flat,
    "kdump": lambda kernel: build_kdump(kernel_kdump(kernel)),
    "flattened": lambda kernel: flatten(even(kernel.dump(), 50_000)),
    "flattened kdump": lambda kernel: flatten(even(build_kdump(kernel_kdump(kernel)), 50_000)),
    "mapped-ram": lambda kernel: MappedFile({"pc.ram": pages_of(flat(kernel))}, {"pc.ram": SIZE}).build(),
}
IN_ORDER = {
    "qemu": lambda kernel: stream_of(ranges(kernel), SIZE),
    "gzip": lambda kernel: gzip.compress(kernel.dump(), 1),
}


@pytest.fixture(params=["as far as it comes", "all or nothing"])
def broken(request, monkeypatch):
    """``broken(path, start, end)``: the system cannot read this.

    Of files what is before it comes; read_vmcore() gives nothing then.
    """
    bad: list[tuple[int, int, int, int]] = []
    counted: list[int] = []
    pread, preadv = os.pread, os.preadv

    def room(fd: int, offset: int, size: int) -> int:
        inode = os.fstat(fd).st_ino
        counted.append(offset)
        for file, start, end, number in bad:
            if inode == file and offset < end and start < offset + size:
                if start <= offset or request.param == "all or nothing":
                    raise OSError(number, os.strerror(number))
                size = start - offset
        return size

    def bad_pread(fd, size, offset):
        return pread(fd, room(fd, offset, size), offset)

    def bad_preadv(fd, buffers, offset):
        return preadv(fd, [buffers[0][: room(fd, offset, len(buffers[0]))]], offset)

    monkeypatch.setattr(os, "pread", bad_pread)
    monkeypatch.setattr(os, "preadv", bad_preadv)

    def declare(path, start: int, end: int, number: int = errno.EIO) -> list[int]:
        bad.append((os.stat(path).st_ino, start, end, number))
        return counted

    return declare


def missing_pages(path, kernel) -> set[int]:
    """Pages that the result does not have; all others are right."""
    gone = set()
    with InputFile.open(str(path)) as file:
        memory = open_dump(file, options=OpenOptions()).memory
        for start, data in ranges(kernel):
            for at in range(0, len(data), PAGE):
                try:
                    assert memory.read(start + at, PAGE) == data[at : at + PAGE]
                except PageAbsentError:
                    gone.add(start + at)
    return gone


def options(name: str) -> list[str]:
    return ["-I", "raw", "--ram-base", "0"] if name == "raw" else []


@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_sector_costs_its_pages(kernel, broken, tmp_path, capfd, name):
    image = FORMATS[name](kernel)
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(image)
    page = dict(ranges(kernel))[0xB00000][0x40000:][:PAGE]
    at = max(image.find(page), len(image) * 4 // 5 if "kdump" in name else 0) // PAGE * PAGE
    broken(path, at, at + PAGE)
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out), "--json", *options(name)]) == 0
    captured = capfd.readouterr()
    told = json.loads(captured.out)["coverage"]
    gone = missing_pages(out, kernel)
    assert 1 <= len(gone) <= (40 if "kdump" in name else 2), "compressed pages are small"
    assert told["total_pages"] - told["covered_pages"] >= len(gone)
    (line,) = [line for line in captured.err.splitlines() if line.startswith("coverage: ")]
    assert f"{path}: Input/output error at file offset " in line
    assert all(lost["why"].startswith(f"{path}: ") for lost in told["lost"])


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_is_read_in_order_ends_there(kernel, broken, tmp_path, capfd, name):
    image = IN_ORDER[name](kernel)
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(image)
    at = len(image) * 19 // 20 // PAGE * PAGE
    broken(path, at, at + PAGE)
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out)]) == 0
    err = capfd.readouterr().err
    assert "Input/output error" in err
    assert 1 <= len(missing_pages(out, kernel)) < 600


def test_avml_goes_on_with_the_next_range(kernel, broken, tmp_path, capfd):
    image = build_image("avml", ranges(kernel))
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(image)
    at = len(image) // 2 // PAGE * PAGE
    broken(path, at, at + PAGE)
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out)]) == 0
    err = capfd.readouterr().err
    assert "Input/output error" in err
    assert f"missing at file offset {at:#x}" in err
    gone = missing_pages(out, kernel)
    assert 1 <= len(gone) < 800
    assert max(gone) < ranges(kernel)[-1][0]


def test_memory_of_a_virtual_machine(kernel, broken, tmp_path, capfd):
    (tmp_path / "vm.vmss").write_bytes(State({"memory": memory_group([(0, 0, SIZE // PAGE)])}).build())
    (tmp_path / "vm.vmem").write_bytes(flat(kernel))
    broken(tmp_path / "vm.vmem", 0x550000, 0x552000)
    out = tmp_path / "out"
    files = [str(tmp_path / "vm.vmss"), str(tmp_path / "vm.vmem")]
    assert main(["topelf", "-l", "all", *files, "-o", str(out)]) == 0
    assert "0x550000-0x552000" in capfd.readouterr().err
    assert missing_pages(out, kernel) == {0x550000, 0x551000}


def test_descriptors_of_a_kdump(kernel, broken, tmp_path, capfd):
    """Pages whose descriptor is in the bad sector are absent, all others there."""
    placed = build_kdump_map(kernel_kdump(kernel))
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(placed.image)
    at = placed.descriptors // PAGE * PAGE + 4 * PAGE
    broken(path, at, at + PAGE)
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out)]) == 0
    err = capfd.readouterr().err
    assert f"its descriptor: {path}: Input/output error" in err
    first, last = (at - placed.descriptors) // 24, (at + PAGE - 1 - placed.descriptors) // 24
    pages = [start + at for start, data in ranges(kernel) for at in range(0, len(data), PAGE)]
    assert missing_pages(out, kernel) == set(pages[first : last + 1])


def test_a_range_header_of_lime(kernel, broken, tmp_path, capfd):
    (first, data), *more = ranges(kernel)
    path, out = tmp_path / "dump", tmp_path / "out"
    pieces = [(first, data), *more, (64 << 20, bytes(range(256)) * 64)]
    path.write_bytes(build_image("lime", pieces))
    at = path.stat().st_size - 64 * 256 - 32
    broken(path, at, at + 8)
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out)]) == 0
    assert f"from file offset {at:#x} on nothing can be read: Input/output error" in capfd.readouterr().err


def test_a_velf_of_what_is_left(kernel, broken, tmp_path, capfd):
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(kernel.dump())
    at = path.stat().st_size // 2 // PAGE * PAGE
    broken(path, at + 512, at + 5 * PAGE)
    assert main(["tovelf", "-l", "all", "-i", str(path), "-o", str(out)]) == 0
    assert "Input/output error" in capfd.readouterr().err
    assert check_subset(read_core(out), kernel) > 1000
    assert main(["info", str(path)]) == 0
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out), "--strict"]) == 1


def test_info_names_what_it_met(kernel, broken, tmp_path, capfd):
    """The last that it reads of the file is broken the next time."""
    path = tmp_path / "dump"
    path.write_bytes(kernel.dump())
    reads = broken(path, 1 << 40, 1 << 41)
    assert main(["info", str(path), "--json"]) == 0
    whole = json.loads(capfd.readouterr().out)["coverage"]
    at = reads[-1] // PAGE * PAGE
    assert at > 2 * PAGE, "not the headers"
    broken(path, at, at + PAGE)
    assert main(["info", str(path), "--json"]) == 0
    captured = capfd.readouterr()
    told = json.loads(captured.out)["coverage"]
    assert whole["covered_pages"] - told["covered_pages"] in (1, 2)
    assert f"{path}: Input/output error at file offset " in told["lost"][-1]["why"]
    assert captured.err.count("what cannot be read is left out") == 1
    assert main(["info", str(path), "--strict"]) == 1


def test_a_small_dump_in_a_pipe(kernel, broken, tmp_path, capfdbinary):
    """Which pages are there is written last; an ELF core's headers are gone by then, and the run fails."""
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(kernel.dump())
    at = path.stat().st_size * 4 // 5 // PAGE * PAGE
    broken(path, at, at + PAGE)
    argv = ["topelf", "-l", "all", "-i", str(path)]
    assert main([*argv, "--format", "kdump", "--compress", "zlib"]) == 0
    captured = capfdbinary.readouterr()
    assert b"Input/output error" in captured.err
    out.write_bytes(captured.out)
    assert 1 <= len(missing_pages(out, kernel)) <= 2
    assert main(argv) == 1
    assert b"hint: with -o FILE such pages are left out" in capfdbinary.readouterr().err


def test_a_small_dump_by_pages(kernel, broken, tmp_path, capfd):
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(kernel.dump())
    at = path.stat().st_size * 4 // 5 // PAGE * PAGE
    broken(path, at, at + PAGE)
    argv = ["topelf", "-l", "all", "--format", "kdump", "--compress", "zlib", "-i", str(path), "-o", str(out)]
    assert main(argv) == 0
    assert "Input/output error" in capfd.readouterr().err
    assert 1 <= len(missing_pages(out, kernel)) <= 2


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EIO, "ddrescue"), (errno.ESTALE, "another place"), (errno.ENXIO, "ddrescue")],
)
def test_headers_that_cannot_be_read(kernel, broken, tmp_path, capfd, number, advice):
    """Nothing says that the file is damaged: the disk is."""
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(kernel.dump())
    broken(path, 0, PAGE, number)
    assert main(["topelf", "-i", str(path), "-o", str(out)]) == 1
    error, hint = capfd.readouterr().err.splitlines()
    assert error == f"error: {path}: at file offset 0x0: read failed: {os.strerror(number)}"
    assert advice in hint
    assert not out.exists()


def test_nothing_of_it_can_be_read(kernel, broken, tmp_path, capfd):
    """All but the headers: an error, after few attempts."""
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(kernel.dump())
    reads = broken(path, 8192, 1 << 40)
    assert main(["topelf", "-l", "all", "-i", str(path), "-o", str(out)]) == 1
    assert capfd.readouterr().err.count("Input/output error") < 10
    assert len(reads) < 20_000
    assert not out.exists()
