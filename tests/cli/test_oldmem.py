"""-I oldmem: a vmcore's headers, and memory from a device that may refuse some of it."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.errors import PageAbsentError, UsageError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.builders.check import check_pages, check_subset, read_core
from tests.builders.elfcore import CoreSpec, SegmentSpec, build_core, own_address_words
from tests.builders.kernel import SMALL, make_kernel

PAGE = 4096
FILL = b"\xa5" * PAGE


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL)


@pytest.fixture
def files(kernel, tmp_path):
    """Headers whose own data is wrong, and memory at its addresses, other bytes where there is none."""
    image = bytearray(kernel.dump())
    headers, memory = tmp_path / "vmcore", tmp_path / "mem"
    with memory.open("wb") as out:
        out.write(b"\xee" * (kernel.ram.ranges[-1][0] + len(kernel.ram.ranges[-1][1]) + PAGE))
        for start, data in kernel.ram.ranges:
            out.seek(start)
            out.write(data)
    for _, data in kernel.ram.ranges:
        at = image.find(bytes(data[:64]))
        while at >= 0:
            image[at : at + 64] = b"\x55" * 64
            at = image.find(bytes(data[:64]))
    headers.write_bytes(image)
    return ["-I", "oldmem", "-v", str(headers), "-i", str(memory)]


@pytest.fixture
def broken(monkeypatch, files):
    """``broken(errno, start, end)``: the device refuses these addresses, however they are asked for."""
    bad: list[tuple[int, int, int]] = []
    device = os.stat(files[-1]).st_ino
    real = os.preadv

    def preadv(fd, buffers, offset):
        if os.fstat(fd).st_ino == device:
            for error, start, end in bad:
                if start <= offset < end:
                    raise OSError(error, os.strerror(error))
                if offset < start < offset + len(buffers[0]):
                    return real(fd, [buffers[0][: start - offset]], offset)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return lambda *where: bad.append(where)


@pytest.mark.parametrize("command", ["tovelf", "topelf"])
def test_all_that_the_headers_name(kernel, files, tmp_path, capfd, command):
    output = tmp_path / "out"
    assert main([command, "-l", "all", *files, "-o", str(output)]) == 0
    assert "coverage" not in capfd.readouterr().err
    if command == "tovelf":
        check_pages(read_core(output), kernel)
        return
    with InputFile.open(str(output)) as file:
        memory = open_dump(file).memory
        for start, data in kernel.ram.ranges:
            assert memory.read(start, len(data)) == bytes(data)


@pytest.mark.parametrize("error", [errno.EIO, errno.EPERM, errno.EFAULT])
def test_what_the_device_refuses_is_left_out(kernel, files, broken, tmp_path, capfd, error):
    start, _ = kernel.ram.ranges[-1]
    broken(error, start + 3 * PAGE + 100, start + 5 * PAGE)  # from within a page on
    broken(error, start + 9 * PAGE, start + 10 * PAGE)
    output = tmp_path / "out"
    assert main(["topelf", "-l", "all", *files, "-o", str(output), "--json"]) == 0
    captured = capfd.readouterr()
    assert f"{start + 3 * PAGE:#x}-{start + 5 * PAGE:#x}" in captured.err
    assert f"{start + 9 * PAGE:#x}-{start + 10 * PAGE:#x}" in captured.err
    assert os.strerror(error) in captured.err
    told = json.loads(captured.out)["coverage"]
    assert told["total_pages"] - told["covered_pages"] == 3
    with InputFile.open(str(output)) as file:
        memory = open_dump(file).memory
        for begin, data in kernel.ram.ranges:
            for at in range(0, len(data), PAGE):
                bad = begin == start and at // PAGE in (3, 4, 9)
                if bad:
                    with pytest.raises(PageAbsentError):
                        memory.read(begin + at, PAGE)
                else:
                    assert memory.read(begin + at, PAGE) == bytes(data[at : at + PAGE])


def test_a_velf_of_what_is_left(kernel, files, broken, tmp_path):
    start, _ = kernel.ram.ranges[-1]
    broken(errno.EIO, start, start + 8 * PAGE)
    output = tmp_path / "out"
    assert main(["tovelf", "-l", "all", *files, "-o", str(output)]) == 0
    assert check_subset(read_core(output), kernel) > 1000


def test_a_device_that_ends(kernel, files, tmp_path, capfd):
    start, data = kernel.ram.ranges[-1]
    os.truncate(files[-1], start + len(data) - 4 * PAGE + 100)
    assert main(["topelf", "-l", "all", *files, "-o", str(tmp_path / "out")]) == 0
    err = capfd.readouterr().err
    assert f"{start + len(data) - 4 * PAGE:#x}-{start + len(data):#x}" in err
    assert "ends before" in err


def test_a_real_device_with_a_hole(tmp_path):
    """Our own memory by /proc/self/mem: it has no length, and EIO where a mapped file ends too early."""
    with (tmp_path / "mapped").open("w+b") as mapped:
        mapped.write(FILL * 8)
        mapped.flush()
        area = mmap.mmap(mapped.fileno(), 8 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        mapped.truncate(4 * PAGE)
    segment = SegmentSpec(paddr=address, data=own_address_words(0, 8 * PAGE))
    (tmp_path / "vmcore").write_bytes(build_core(CoreSpec(segments=(segment,))))
    with (
        InputFile.open(str(tmp_path / "vmcore")) as headers,
        InputFile.open_device("/proc/self/mem") as device,
    ):
        memory = open_dump(headers, "oldmem", None, (device,)).memory
        assert memory.read(address, 4 * PAGE) == FILL * 4
        view = memoryview(bytearray(b"x" * 8 * PAGE))
        assert memory.read_present(address, view) == [(4 * PAGE, 8 * PAGE)]
        assert bytes(view) == FILL * 4 + bytes(4 * PAGE)
        with pytest.raises(PageAbsentError, match="/proc/self/mem: Input/output error"):
            memory.read(address + 4 * PAGE, 1)


def test_without_a_device_the_headers_have_the_data(kernel, tmp_path, capfd):
    (tmp_path / "vmcore").write_bytes(kernel.dump())
    assert main(["topelf", "-I", "oldmem", "-v", f"{tmp_path}/vmcore", "-o", f"{tmp_path}/out"]) == 0


def test_usage(files, tmp_path, capfd):
    assert main(["topelf", *files, "-i", files[-1], "-o", str(tmp_path / "out")]) == 2
    assert "one device" in capfd.readouterr().err
    assert main(["tovelf", "--in-place", *files]) == 2
    assert (
        main(["topelf", "-I", "oldmem", "-v", files[3], "-i", str(tmp_path), "-o", str(tmp_path / "out")])
        == 1
    )
    assert "no device" in capfd.readouterr().err
    with InputFile.open(files[3]) as file, pytest.raises(UsageError):
        open_dump(file, "oldmem")
    assert main(["topelf", *files, "-o", files[-1]]) == 2
