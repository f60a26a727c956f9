"""Raw memory that does not begin at 0: the kernel in it tells where, and a wrong word is noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages
from tests.builders.kernel import (
    ABOVE,
    RELEASE,
    SMALL,
    SYMBOLS,
    SyntheticKernel,
    banner_of,
    build_vmlinux,
    make_kernel,
)
from tests.builders.looking import look

BASE = 0x2000000
HIGH = replace(ABOVE, noted=False, vmcoreinfo={})
TEXT_AT = 0x2610000


def image_of(kernel: SyntheticKernel) -> bytes:
    """The file: from the lowest address on, with zeros where there is no RAM."""
    first, end = kernel.ram.ranges[0][0], kernel.ram.ranges[-1][0] + len(kernel.ram.ranges[-1][1])
    image = bytearray(end - first)
    for start, data in kernel.ram.ranges:
        image[start - first : start - first + len(data)] = data
    return bytes(image)


def high(*, text: bool = True, **changes: object) -> SyntheticKernel:
    kernel = make_kernel(HIGH, **changes)
    if text:
        kernel.put_vmcoreinfo(TEXT_AT)
    return kernel


@pytest.fixture
def info(tmp_path, capfd):
    return lambda image, *options: look(tmp_path, capfd, "info", image, "-I", "raw", *options)


@pytest.fixture
def vmlinux(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(build_vmlinux(banner=banner_of(RELEASE)))
    return str(path)


def with_zeros(kernel: SyntheticKernel) -> SyntheticKernel:
    """Gaps are zeros in the file, and memory like the rest."""
    kernel.ram.ranges = [(kernel.ram.ranges[0][0], bytearray(image_of(kernel)))]
    return kernel


@pytest.mark.parametrize("levels", [4, 5])
def test_by_the_text(tovelf, levels):
    kernel = high(levels=levels)
    result = tovelf(image_of(kernel), "-I", "raw", "--verbose")
    assert (result.code, result.lines("warning")) == (0, [])
    assert f"ram_base: {BASE:#x} (what is known of init_uts_ns, confirmed by a kernel)" in result.err
    check_pages(result.core, with_zeros(kernel))


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("levels", [4, 5])
def test_by_the_page_tables(tovelf, vmlinux, levels, text):
    """No physical address is known: of the text without phys_base, or of the vmlinux."""
    kernel = high(levels=levels, text=text, vmcoreinfo={"NUMBER(phys_base)": None})
    extra = [] if text else ["-m", vmlinux]
    result = tovelf(image_of(kernel), "-I", "raw", *extra, "--verbose")
    beside = "init_uts_ns" if text else "linux_banner"
    assert (result.code, result.lines("warning")) == (0, []), result.err
    assert f"ram_base: {BASE:#x} (the page tables beside {beside}, confirmed by a kernel)" in result.err
    check_pages(result.core, with_zeros(kernel))


def test_info_says_it(info):
    assert f"ram base:      {BASE:#x}\n" in info(image_of(high())).out
    assert "ram base" not in info(image_of(high()), "--ram-base", hex(BASE)).out


def test_the_right_word_is_taken(tovelf):
    kernel = high()
    result = tovelf(image_of(kernel), "-I", "raw", "--ram-base", hex(BASE), "--verbose")
    assert "ram_base" not in result.err
    check_pages(result.core, with_zeros(kernel))


@pytest.mark.parametrize("wrong", [0, 0x1000, 0x2100000, 0x40000000, 0x2000123])
def test_a_wrong_word(tovelf, wrong):
    result = tovelf(image_of(high()), "-I", "raw", "--ram-base", hex(wrong))
    assert result.code == 1
    assert f"there is no kernel if it begins at {wrong:#x}, but one if it begins at {BASE:#x}" in result.err
    assert f"--ram-base {BASE:#x}" in result.lines("hint")[0]


def test_at_0_nothing_else_is_tried(tovelf, monkeypatch):
    monkeypatch.setattr("kdump_elftool.jobs.ram_base.bases", None)
    kernel = make_kernel(SMALL)
    kernel.put_vmcoreinfo(0x20000)
    image = bytes(0x1000) + image_of(kernel)
    result = tovelf(image, "-I", "raw", "--verbose")
    assert result.code == 0
    assert "ram_base" not in result.err


def test_memory_is_read_once(tovelf, monkeypatch):
    monkeypatch.setattr("kdump_elftool.kernel.kernels.find_texts", None)
    assert tovelf(image_of(high()), "-I", "raw").code == 0


def test_memory_without_a_kernel(tovelf, info):
    """The error says what can be said of raw memory; so does a kernel whose tables are gone."""
    gone = high()
    gone.ram.write(gone.spec.text_paddr + 0x210000, bytes(0x1000))
    for image in (bytes(0x100000), image_of(gone)):
        result = tovelf(image, "-I", "raw")
        assert result.code == 1
        assert "no VMCOREINFO note, and none in memory" in result.lines("error")[0]
        assert "--ram-base" in result.lines("hint")[0]
    assert info(bytes(0x100000)).code == 0


def test_the_users_table_is_not_doubted(tovelf):
    """-P says what to walk: where memory begins is not looked for."""
    kernel = high(text=False)
    root = kernel.spec.text_paddr + 0x210000
    result = tovelf(image_of(kernel), "-I", "raw", "--ram-base", hex(BASE), "-P", hex(root))
    assert result.code == 0


@pytest.mark.parametrize("entry", [0x3FFFFF0000001, 0x1001, 0])
def test_a_table_far_away(tovelf, vmlinux, entry):
    """The image's entry leads out of the machine, into other pages of the file, nowhere."""
    kernel = high(text=False)
    kernel.ram.write(kernel.tables.root + 8 * 511, entry.to_bytes(8, "little"))
    result = tovelf(image_of(kernel), "-I", "raw", "-m", vmlinux)
    assert "but no kernel is around it" in result.lines("error")[0]


def test_physical_addresses_are_the_machines(tmp_path, capfd):
    kernel = high()
    path = tmp_path / "raw"
    path.write_bytes(image_of(kernel))
    assert main(["dumpmem", "-I", "raw", "-i", str(path), "-p", f"{BASE + 0x3008:x}", "8"]) == 0
    assert capfd.readouterr().out.startswith(f"{BASE + 0x3008:x}: 08 30 00 02")


def test_two_kernels(tovelf, info):
    """Both are listed, and --kernel takes one, where memory begins at 0 and where it does not."""
    crashed, crash = make_kernel(SMALL), make_kernel(ABOVE)
    crashed.put_vmcoreinfo(0x20000)
    crash.put_vmcoreinfo(TEXT_AT)
    image = bytearray(0x2640000)
    for start, data in (*crashed.ram.ranges, *crash.ram.ranges):
        image[start : start + len(data)] = data
    for cut in (0, 0x1000):
        (warning, *_) = info(bytes(image[cut:])).lines("warning")
        assert "more than one kernel is in memory: taken is 1, as it maps most memory" in warning
        assert "1: 6.1.0-test-amd64" in warning
        assert "2: 6.1.0-crash-amd64" in warning
    result = tovelf(bytes(image), "-I", "raw", "--kernel", "2", "--verbose")
    assert "release: 6.1.0-crash-amd64" in result.err
    result = tovelf(bytes(image), "-I", "raw", "--kernel", "3")
    assert result.code == 2
    assert "2: 6.1.0-crash-amd64" in result.lines("hint")[0]
    assert "ram_base" not in result.err


def test_namespaces_of_containers(tovelf):
    """They have the same release, and are no beginning of anything."""
    kernel = high()
    names = kernel.ram.read(kernel.spec.text_paddr + SYMBOLS["init_uts_ns"], 6 * 65)
    for at in range(0x2330000, 0x23F0000, 0x1000):
        kernel.ram.write(at, names)
    result = tovelf(image_of(kernel), "-I", "raw", "--verbose")
    assert result.code == 0
    assert f"ram_base: {BASE:#x} (" in result.err
