"""LiME and AVML images, migration streams: no notes, so the kernel is named by -e or -P."""

from __future__ import annotations

import gzip
import json
import struct

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, check_subset, read_core
from tests.builders.images import build_image, cut_like_avml
from tests.builders.kernel import SMALL, make_kernel
from tests.builders.migration import stream_of
from tests.builders.vmware import State, cpu_group, memory_group


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


RESOURCES = 0x700000
"""Physical address of a list that says what memory there was."""
RESOURCE_LINES = "".join(
    f"OFFSET(resource.{name})={at}\n"
    for name, at in {"start": 0, "end": 8, "name": 16, "parent": 40, "sibling": 48, "child": 56}.items()
) + "".join(f"SIZE(resource.{name})=8\n" for name in ("start", "end"))


def with_resources(kernel, *ranges: tuple[int, int]) -> str:
    """Put a list of these ranges of memory into the kernel's; returns the lines that tell of it."""
    root = kernel.bases["page_offset"] + RESOURCES
    kernel.ram.write(RESOURCES + 0x800, b"System RAM\0")
    kernel.ram.write(RESOURCES, struct.pack("<8Q", 0, 1 << 52, 0, 0, 0, 0, 0, root + 64))
    for index, (start, end) in enumerate(ranges, 1):
        following = root + 64 * (index + 1) if index < len(ranges) else 0
        words = struct.pack("<8Q", start, end - 1, root + 0x800, 0, 0, root, following, 0)
        kernel.ram.write(RESOURCES + 64 * index, words)
    return kernel.vmcoreinfo_text() + f"SYMBOL(iomem_resource)={root:x}\n" + RESOURCE_LINES


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([(0x1000, 12 << 20)], None),
        ([(0x1000, 12 << 20), (1 << 30, (1 << 30) + 4096)], None),
        ([(0x1000, 12 << 20), (3 << 30, 5 << 30)], "0xc0000000-0x140000000"),
    ],
)
def test_memory_that_the_stream_was_not_given(tovelf, tmp_path, capfd, ranges, said):
    kernel = make_kernel(SMALL)
    (tmp_path / "e").write_text(with_resources(kernel, *ranges))
    image = stream_of([(start, bytes(data)) for start, data in kernel.ram.ranges], 12 << 20)
    result = tovelf(image, "-e", str(tmp_path / "e"))
    assert result.code == 0
    warnings = result.lines("warning")
    assert len(warnings) == (said is not None)
    for warning in warnings:
        assert f"the guest says it had memory at {said}" in warning
        assert "pc-i440fx-7.2" in warning
        assert "max-ram-below-4g" in warning
    # other formats say where their memory was
    assert not tovelf(image_of(kernel, "lime"), "-e", str(tmp_path / "e")).err
    assert main(["info", "--json", "--verbose", f"{tmp_path}/dump", "-e", f"{tmp_path}/e"]) == 0
    told = json.loads(capfd.readouterr().out)["system_ram"]
    assert told == [[f"{start:#x}", f"{end:#x}"] for start, end in ranges]


@pytest.mark.parametrize("lists_memory", [True, False])
def test_memory_that_no_table_maps(tovelf, tmp_path, lists_memory):
    """As when much of memory lies elsewhere, and what the kernel says of it; but ``mem=`` is no reason."""
    kernel = make_kernel(SMALL)
    lines = with_resources(kernel, (0x1000, 12 << 20)) if lists_memory else kernel.vmcoreinfo_text()
    (tmp_path / "e").write_text(lines)
    image = stream_of([(start, bytes(data)) for start, data in kernel.ram.ranges], 128 << 20)
    result = tovelf(image, "-e", str(tmp_path / "e"))
    assert result.code == 0
    said = [line for line in result.lines("warning") if "page tables map none of the " in line]
    assert len(said) == (not lists_memory)
    assert all("-0x8000000, where this dump" in line and "max-ram-below-4g" in line for line in said)


def test_tables_where_no_memory_was_put(tovelf, kernel, tmp_path):
    """The kernel of a machine with another hole: its tables lie at the top of memory."""
    own = make_kernel(SMALL)
    (tmp_path / "e").write_text(own.vmcoreinfo_text())
    own.ram.write(own.tables.root + 8 * 300, struct.pack("<Q", 0x1FFFCC000 | 0x63))
    image = stream_of([(start, bytes(data)) for start, data in own.ram.ranges], 12 << 20)
    result = tovelf(image, "-e", str(tmp_path / "e"))
    assert result.code == 0
    assert "the kernel has page tables at 0x1fffcc000, where" in result.lines("warning")[0]


def test_a_kernel_that_is_not_found_may_lie_elsewhere(tovelf):
    result = tovelf(stream_of([(0, bytes(4096))], 1 << 20))
    assert result.code == 1
    assert "the memory is not where it was put (where QEMU's machine pc-i440fx-7.2" in result.err


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


@pytest.mark.parametrize("named", ["guest.vmsn", "guest.vmem"])
def test_vmware_by_one_of_its_files(kernel, vminfo, tmp_path, capfd, named):
    """The other one is found beside it; its registers are threads."""
    ranges = [(start, bytes(data)) for start, data in kernel.ram.ranges]
    page, regions = 0, []
    for start, data in ranges:
        regions.append((page, start // 4096, len(data) // 4096))
        page += len(data) // 4096
    cpus = [{"rip": kernel.text_vaddr + 0x1234, "rsp": kernel.text_vaddr + 0x3000}]
    groups = {"memory": memory_group(regions), "cpu": cpu_group(cpus)}
    (tmp_path / "guest.vmsn").write_bytes(State(groups).build())
    (tmp_path / "guest.vmem").write_bytes(b"".join(data for _, data in ranges))
    output = tmp_path / "out.velf"
    assert main(["tovelf", "-l", "all", "-e", vminfo, "-o", str(output), f"{tmp_path}/{named}"]) == 0
    assert not [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    core = read_core(output)
    for vaddr, paddr in kernel.readable_pages().items():
        assert core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)
    assert main(["info", "--json", f"{tmp_path}/{named}", "-e", vminfo]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["format"], told["cpus"]) == ("vmware", 1)
    (tmp_path / ("guest.vmem" if named == "guest.vmsn" else "guest.vmsn")).unlink()
    assert main(["info", f"{tmp_path}/{named}", "-e", vminfo]) == 1
    assert "guest.vm" in capfd.readouterr().err


def test_not_changed_in_place(kernel, tmp_path, capfd):
    (tmp_path / "image").write_bytes(image_of(kernel, "lime"))
    assert main(["tovelf", "--in-place", "-i", f"{tmp_path}/image"]) == 1
    assert "only an ELF dump" in capfd.readouterr().err
