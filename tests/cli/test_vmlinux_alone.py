"""Dumps without any VMCOREINFO: the vmlinux says what to look for, and only a live kernel is believed."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, read_core
from tests.builders.elfcore import EM_AARCH64, build_core
from tests.builders.kernel import (
    ABOVE,
    BUILD_ID,
    RELEASE,
    SMALL,
    SYMBOLS,
    SyntheticKernel,
    banner_of,
    build_vmlinux,
    make_kernel,
)
from tests.builders.looking import look

BARE = replace(SMALL, noted=False)
"""No note, and no text in memory either."""
UTS = SYMBOLS["init_uts_ns"] - SYMBOLS["linux_banner"]


def dump_of(*kernels: SyntheticKernel) -> bytes:
    """Memory alone: no virtual addresses, no register notes."""
    segments = [replace(part, vaddr=0) for kernel in kernels for part in kernel.segments()]
    return build_core(replace(kernels[0].core_spec(), segments=segments, notes=[]))


@pytest.fixture
def vmlinux(tmp_path):
    """``vmlinux(kernel)``: the name of its file, beside the one of the dump."""

    def make(release: str = RELEASE, **changes: object) -> str:
        path = tmp_path / "vmlinux"
        path.write_bytes(build_vmlinux(banner=banner_of(release), **changes))
        return str(path)

    return make


@pytest.fixture
def info(tmp_path, capfd):
    return lambda image, *options: look(tmp_path, capfd, "info", image, *options)


@pytest.mark.parametrize("offset", [0, 0x1A000000])
@pytest.mark.parametrize("levels", [4, 5])
def test_same_core_as_with_the_text(tovelf, vmlinux, levels, offset):
    kernel = make_kernel(BARE, levels=levels, kaslr_offset=offset)
    result = tovelf(dump_of(kernel), "-m", vmlinux(), "--verbose")
    assert (result.code, result.lines("warning")) == (0, [])
    check_pages(result.core, kernel)
    banner = kernel.spec.text_paddr + SYMBOLS["linux_banner"]
    assert f"linux_banner: {banner:#x} (found in memory)" in result.err
    assert f"kaslr_offset: {offset:#x} (SYMBOL(_stext) against vmlinux)" in result.err
    noted = make_kernel(SMALL, levels=levels, kaslr_offset=offset)
    plain = tovelf(dump_of(noted), "-m", vmlinux(), "-e", extra(noted, result.path.parent)).core
    assert [(part["p_vaddr"], part["p_paddr"], part["p_filesz"]) for part in plain.loads] == [
        (part["p_vaddr"], part["p_paddr"], part["p_filesz"]) for part in result.core.loads
    ]


def extra(kernel: SyntheticKernel, directory) -> str:
    path = directory / "extra"
    path.write_text(kernel.vmcoreinfo_text())
    return str(path)


def test_what_is_said_of_it(tovelf, vmlinux, info):
    """The text in the result is what the kernel would have printed, as far as it goes."""
    kernel = make_kernel(BARE)
    result = tovelf(dump_of(kernel), "-m", vmlinux())
    (text,) = [desc.decode() for name, _, desc in result.core.notes() if name == "VMCOREINFO"]
    own = dict(line.split("=", 1) for line in kernel.vmcoreinfo_text().splitlines())
    made = dict(line.split("=", 1) for line in text.splitlines())
    assert {key: own[key] for key in made if key in own} == {key: made[key] for key in made if key in own}
    assert own.keys() - made.keys() == {
        "CRASHTIME", "NUMBER(KERNEL_IMAGE_SIZE)", "SIZE(list_head)",
        "OFFSET(list_head.next)", "OFFSET(list_head.prev)",
    }  # fmt: skip
    shown = info(dump_of(kernel), "-m", vmlinux())
    assert "vmcoreinfo:    made from vmlinux, its linux_banner found in memory at 0x600000" in shown.out
    again = info(result.path.read_bytes())
    assert "vmcoreinfo:    ELF note" in again.out
    found = json.loads(info(dump_of(kernel), "-m", vmlinux(), "--json").out)
    assert (found["kaslr_offset"], found["build_id"]) == ("0x1a000000", BUILD_ID.hex())
    assert found["kernels"][0]["verified"] is True


def test_without_it_the_hint_names_it(tovelf):
    result = tovelf(dump_of(make_kernel(BARE)))
    assert "no VMCOREINFO note, and none in memory" in result.lines("error")[0]
    assert "vmlinux with -m" in result.lines("hint")[0]


def copy_of_rodata(kernel: SyntheticKernel, paddr: int, size: int) -> None:
    """As a page cache has the vmlinux: the banner, perhaps more, nothing that points there."""
    kernel.ram.write(paddr, kernel.ram.read(kernel.spec.text_paddr + SYMBOLS["linux_banner"], size))


def test_copies_are_not_believed(tovelf, vmlinux):
    """Below the kernel and above it: the banner alone, with init_uts_ns, with all of the image's tail."""
    kernel = make_kernel(replace(BARE, ram=(*BARE.ram, (0x2000000, 0x2200000))))
    for paddr, size in ((0x20000, 0x1000), (0x40000, UTS + 0x1000), (0x2000000, 0x100000)):
        copy_of_rodata(kernel, paddr, size)
    result = tovelf(dump_of(kernel), "-m", vmlinux())
    assert (result.code, result.lines("warning")) == (0, [])
    check_pages(result.core, kernel)


def broken(kernel: SyntheticKernel, how: str) -> None:
    at = {"uts": "init_uts_ns", "tables": "init_top_pgt", "task": "init_task"}[how]
    kernel.ram.write(kernel.spec.text_paddr + SYMBOLS[at], bytes(0x1000))


@pytest.mark.parametrize("how", ["uts", "tables", "task"])
def test_nothing_confirmed_is_an_error(tovelf, vmlinux, how):
    kernel = make_kernel(BARE)
    broken(kernel, how)
    result = tovelf(dump_of(kernel), "-m", vmlinux())
    assert result.code == 1
    assert "is at 0x600000, but no kernel is around it" in result.lines("error")[0]
    assert "-P" in result.lines("hint")[0]


def test_another_vmlinux(tovelf, vmlinux):
    kernel = make_kernel(BARE)
    result = tovelf(dump_of(kernel), "-m", vmlinux("6.1.0-other"))
    assert "vmlinux is nowhere in memory" in result.lines("error")[0]
    result = tovelf(dump_of(kernel), "-m", vmlinux("6.1.0 without a NUL" * 100))
    assert "has no linux_banner" in result.lines("error")[0]


def test_many_banners_cost_little(tovelf, vmlinux):
    kernel = make_kernel(BARE)
    for at in range(0x10000, 0x90000, 64):
        kernel.ram.write(at, banner_of(RELEASE))
    result = tovelf(dump_of(kernel), "-m", vmlinux())
    assert result.code == 0
    check_pages(result.core, kernel)


def test_two_kernels_of_one_vmlinux(tovelf, info, vmlinux):
    """A crash kernel may be the same build: both are found, and --kernel takes the other."""
    crashed, crash = make_kernel(BARE), make_kernel(ABOVE, vmcoreinfo={}, noted=False)
    image = dump_of(crashed, crash)
    shown = info(image, "-m", vmlinux())
    warning = shown.lines("warning")[0]
    assert "more than one kernel is in memory" in warning
    assert warning.count("made from vmlinux") == 2
    for number, kernel in enumerate((crashed, crash), 1):
        result = tovelf(image, "-m", vmlinux(), "--kernel", str(number))
        assert result.code == 0
        for vaddr, paddr in kernel.readable_pages().items():
            assert result.core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096)


def test_the_one_that_the_user_means(info, vmlinux):
    """The text is of one kernel, the vmlinux of another: that one is taken, with a word about it."""
    crashed, other = make_kernel(BARE), make_kernel(ABOVE, noted=False)
    crashed.put_vmcoreinfo(0x20000)
    of_other = vmlinux("6.1.0-crash-amd64", build_id=bytes.fromhex("ab" * 20))
    shown = info(dump_of(crashed, other), "-m", of_other)
    assert "release:       6.1.0-crash-amd64" in shown.out
    assert "taken is 2, as it is that of -m" in shown.lines("warning")[0]
    shown = info(dump_of(crashed, other), "-m", of_other, "--kernel", "1")
    assert "is not the kernel of this dump" in shown.err


def test_the_text_goes_before(info, vmlinux):
    """With the kernel's own text nothing has to be made."""
    kernel = make_kernel(BARE)
    kernel.put_vmcoreinfo(0x20000)
    assert "vmcoreinfo:    found in memory at 0x20018" in info(dump_of(kernel), "-m", vmlinux()).out


def test_every_command_takes_it(tmp_path, capfd, vmlinux):
    kernel = make_kernel(BARE)
    dump, out = tmp_path / "dump", tmp_path / "out"
    dump.write_bytes(dump_of(kernel))
    stext = f"{kernel.symbol('_stext'):x}"
    assert main(["virttophys", "-i", str(dump), "-m", vmlinux(), stext]) == 0
    assert capfd.readouterr().out == f"{kernel.spec.text_paddr:x}\n"
    assert main(["dumpmem", "-i", str(dump), "-m", vmlinux(), stext, "8"]) == 0
    assert main(["topelf", "-i", str(dump), "-m", vmlinux(), "-o", str(out), "-l", "all"]) == 0
    assert "VMCOREINFO" in [name for name, _, _ in read_core(out).notes()]
    capfd.readouterr()


def test_a_directory_is_not_enough(tovelf, tmp_path):
    (tmp_path / "directory").mkdir()
    result = tovelf(dump_of(make_kernel(BARE)), "-m", str(tmp_path / "directory"))
    assert "name the vmlinux itself with -m" in result.lines("hint")[0]


def test_a_vmlinux_for_another_machine(tovelf, vmlinux):
    path = Path(vmlinux())
    image = bytearray(path.read_bytes())
    image[18:20] = struct.pack("<H", EM_AARCH64)
    path.write_bytes(image)
    result = tovelf(dump_of(make_kernel(BARE)), "-m", str(path))
    assert "vmlinux is not its kernel: it is for another machine" in result.lines("error")[0]


def test_a_memory_image(info, vmlinux):
    """LiME's: --arch is not needed either."""
    kernel = make_kernel(BARE)
    image = b"".join(
        struct.pack("<4sIQQ8x", b"EMiL", 1, start, start + len(data) - 1) + bytes(data)
        for start, data in kernel.ram.ranges
    )
    assert f"release:       {RELEASE}" in info(image, "-m", vmlinux()).out
