"""LiME and AVML images, migration streams: no notes, so the kernel is named by -e or -P."""

from __future__ import annotations

import gzip
import json

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, check_subset, read_core
from tests.builders.images import build_image, cut_like_avml
from tests.builders.kernel import SMALL, make_kernel
from tests.builders.migration import stream_of


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL)


@pytest.fixture
def vminfo(kernel, tmp_path_factory):
    path = tmp_path_factory.mktemp("e") / "vminfo"
    path.write_text(kernel.vmcoreinfo_text())
    return str(path)


def image_of(kernel, kind: str) -> bytes:
    ranges = [(start, bytes(data)) for start, data in kernel.ram.ranges]
    return build_image(kind, cut_like_avml(ranges, 1 << 20) if kind == "avml" else ranges)


@pytest.mark.parametrize("kind", ["lime", "avml"])
def test_every_page_of_the_kernel(tovelf, kernel, vminfo, kind):
    result = tovelf(image_of(kernel, kind), "-e", vminfo)
    assert result.code == 0
    assert not result.err
    check_pages(result.core, kernel)
    assert result.core.e_machine == 62


@pytest.mark.parametrize("kind", ["lime", "avml"])
def test_page_table_root_alone(tovelf, kernel, kind):
    result = tovelf(image_of(kernel, kind), "-P", hex(kernel.tables.root))
    assert result.code == 0
    core = result.core
    for vaddr, paddr in list(kernel.readable_pages().items())[::17]:
        assert core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)


@pytest.mark.parametrize("kind", ["lime", "avml"])
def test_named_format(tovelf, kernel, vminfo, kind):
    assert tovelf(image_of(kernel, kind), "-e", vminfo, "-I", kind, "--arch", "x86_64").code == 0
    assert tovelf(kernel.dump(), "-I", kind).code == 1


def test_migration_stream(tovelf, kernel, vminfo):
    """Every page of the kernel, out of a stream as it is and in gzip; a stream that was cut off says so."""
    image = stream_of([(start, bytes(data)) for start, data in kernel.ram.ranges], 12 << 20)
    for given in (image, gzip.compress(image, 1)):
        result = tovelf(given, "-e", vminfo, "-I", "qemu")
        assert result.code == 0
        assert not result.err
        core = result.core
        for vaddr, paddr in kernel.readable_pages().items():
            assert core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)
        assert core.e_machine == 62
    result = tovelf(image[: len(image) * 19 // 20], "-e", vminfo)
    assert result.code == 0
    assert "different moments" in result.lines("warning")[0]
    assert "truncated" in result.lines("coverage")[0]
    pages = kernel.readable_pages().items()
    held = [(result.core.read(vaddr, 4096), kernel.ram.read(paddr, 4096)) for vaddr, paddr in pages]
    assert all(found in (None, real) for found, real in held)
    assert 0 < sum(found is None for found, _ in held) < len(held)


def test_raw_memory_in_pieces(kernel, vminfo, tmp_path):
    """One through -i, the others as operands; a whole file needs -I raw, and an output is no input."""
    (start, first), *others = [(start, bytes(data)) for start, data in kernel.ram.ranges]
    image = bytes(first)
    half = len(image) // 2 // 4096 * 4096
    pieces = [(start + half, image[half:]), (start, image[:half]), *others]
    names = []
    for paddr, data in pieces:
        (tmp_path / f"at{paddr:x}").write_bytes(data)
        names.append(f"{tmp_path}/at{paddr:x}@{paddr:#x}")
    output = tmp_path / "pieces.velf"
    assert main(["tovelf", "-l", "all", "-e", vminfo, "-o", str(output), "-i", names[0], *names[1:]]) == 0
    core = read_core(output)
    for vaddr, paddr in kernel.readable_pages().items():
        assert core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)
    own = names[0].rpartition("@")[0]
    assert main(["tovelf", "-e", vminfo, "-o", own, *names]) == 2
    assert (tmp_path / own).read_bytes() == image[half:]


def test_raw_memory_in_one_file(tovelf, kernel, vminfo):
    (base, _), *_ = kernel.ram.ranges
    last, data = kernel.ram.ranges[-1]
    image = bytearray(last + len(data) - base)
    for start, held in kernel.ram.ranges:
        image[start - base : start - base + len(held)] = held
    result = tovelf(bytes(image), "-e", vminfo, "-I", "raw", "--ram-base", hex(base))
    assert result.code == 0
    for vaddr, paddr in kernel.readable_pages().items():
        assert result.core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)
    refused = tovelf(bytes(image), "-e", vminfo)
    assert refused.code == 1
    assert "-I raw" in refused.err


def test_a_damaged_frame_is_left_out(tovelf, kernel, vminfo):
    image = bytearray(image_of(kernel, "avml"))
    last = image.rindex(b"AVML\2\0\0\0")
    image[last + 300 : last + 308] = bytes(8)
    result = tovelf(bytes(image), "-e", vminfo)
    assert result.code == 0
    assert check_subset(result.core, kernel) > 1000
    (line,) = result.lines("coverage")
    assert "its Snappy frame is damaged" in line


@pytest.mark.parametrize("kind", ["lime", "avml"])
def test_cut_off(tovelf, kernel, vminfo, kind):
    image = image_of(kernel, kind)
    result = tovelf(image[: len(image) - (0x10000 if kind == "lime" else 8000)], "-e", vminfo)
    assert result.code == 0
    assert check_subset(result.core, kernel) > 1000
    assert "truncated at file offset" in result.lines("coverage")[0]


def test_read_by_physical_address(kernel, tmp_path, capfdbinary):
    for kind in ("lime", "avml"):
        (tmp_path / kind).write_bytes(image_of(kernel, kind))
        assert main(["dumpmem", "-i", f"{tmp_path}/{kind}", "--raw", "-p", "401000", "20"]) == 0
        assert capfdbinary.readouterr().out == kernel.ram.read(0x401000, 0x20)


def test_info_names_the_format(kernel, vminfo, tmp_path, capfd):
    (tmp_path / "image").write_bytes(image_of(kernel, "avml"))
    assert main(["info", f"{tmp_path}/image", "-e", vminfo, "--json"]) in (0, 1)
    assert json.loads(capfd.readouterr().out)["format"] == "avml"


def test_not_changed_in_place(kernel, tmp_path, capfd):
    (tmp_path / "image").write_bytes(image_of(kernel, "lime"))
    assert main(["tovelf", "--in-place", "-i", f"{tmp_path}/image"]) == 1
    assert "only an ELF dump" in capfd.readouterr().err
