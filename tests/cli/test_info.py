"""info of synthetic kernels: every line, and what it says when there is little to say."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace

import pytest

from tests.builders.elfcore import build_core
from tests.builders.kernel import BUILD_ID, SMALL, make_kernel
from tests.builders.looking import kernel_with_log, log_base, look
from tests.builders.printk import CPU, LogImage, RingWriter, Said

SECOND = 10**9
TASK = b"CPU: 1 UID: 0 PID: 431 Comm: my prog Kdump: loaded Tainted: G        W          6.1.0-test-amd64 #1"
PANIC = [
    Said(b"sysrq: Trigger a crash", 99 * SECOND, caller_id=431),
    Said(b"CPU: 0 PID: 7 Comm: earlier Not tainted 6.1.0-test-amd64 #1", 99 * SECOND, caller_id=7),
    Said(b"Kernel panic - not syncing: sysrq triggered crash", 100 * SECOND, level=0, caller_id=431),
    Said(TASK, 100 * SECOND, level=4, caller_id=431),
    Said(b"CPU: 0 PID: 0 Comm: swapper/0 Not tainted 6.1.0-test-amd64 #1", 100 * SECOND, caller_id=CPU),
    Said(b"Kernel Offset: disabled", 3700 * SECOND, caller_id=431),
    Said(b"---[ end Kernel panic - not syncing: sysrq triggered crash ]---", 3700 * SECOND, caller_id=431),
]


@pytest.fixture
def info(tmp_path, capfd):
    return lambda image, *options: look(tmp_path, capfd, "info", image, *options)


def log_of(messages) -> LogImage:
    writer = RingWriter(count_bits=6, size_bits=12, base=log_base())
    for said in messages:
        writer.push(said)
    return writer.image()


def labels(out: str) -> dict[str, str]:
    found = [
        re.match(r"([a-z_ ]+): +(\S.*)", line) for line in re.split(r"(?m)^last \d", out)[0].splitlines()
    ]
    return {match[1]: match[2] for match in found if match}


def test_every_line(info):
    kernel = kernel_with_log(log_of(PANIC))
    result = info(kernel.dump())
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"file:          {result.path}",
        f"format:        elf, 64-bit, {result.path.stat().st_size} bytes",
        "release:       6.1.0-test-amd64",
        f"build id:      {BUILD_ID.hex()}",
        "arch:          x86_64",
        "crashed at:    2026-11-18 11:06:40 UTC",
        "uptime:        1:01:40 at the last message",
        "panic message: sysrq triggered crash",
        "panicking cpu: 1",
        "pid:           431",
        "comm:          my prog",
        "cpus:          2",
        *[line for line in result.out.splitlines() if line.startswith(("memory", "by category"))],
        "kaslr offset:  0x1a000000",
        f"phys_base:     {kernel.phys_base:#x}",
        "page tables:   4 levels",
        "vmcoreinfo:    ELF note",
        "coverage:      100.0 % of 1374 pages",
        "last 7 lines of the log:",
        *[f"[{said.ts_nsec // SECOND:5}.000000] {said.text.decode()}" for said in PANIC],
    ]
    found = labels(result.out)
    assert found["memory"].startswith("5.4 MiB present, 1374 of 1374 pages")
    assert found["by category"].startswith("unknown: ")  # this kernel has no struct page


def test_json(info):
    found = json.loads(info(kernel_with_log(log_of(PANIC)).dump(), "--json").out)
    assert found["schema"] == "kdump-elftool/info/1"
    assert found["crashed_at"] == "2026-11-18T11:06:40Z"
    assert (found["panic_cpu"], found["panic_pid"], found["panic_comm"]) == (1, 431, "my prog")
    assert found["kaslr_offset"] == "0x1a000000"
    assert found["memory"]["present_pages"] == found["coverage"]["covered_pages"] == 1374
    assert found["page_table_levels"] == 4
    assert found["sources"]["panic_message"] == "the log"
    assert len(found["last_log_lines"]) == 7
    assert found["warnings"] == []


def test_verbose_names_sources(info):
    out = info(kernel_with_log(log_of(PANIC)).dump(), "--verbose").out
    assert "crashed at:    2026-11-18 11:06:40 UTC (CRASHTIME)" in out
    assert "pgt_root:      0x610000 (SYMBOL(swapper_pg_dir) and NUMBER(phys_base))" in out


def test_log_is_cut_to_ten_lines(info):
    said = [Said(b"number %d" % number, number * SECOND) for number in range(30)]
    lines = info(kernel_with_log(log_of(said)).dump()).out.splitlines()
    assert lines[-11] == "last 10 lines of the log:"
    assert lines[-10:] == [f"[{number:5}.000000] number {number}" for number in range(20, 30)]


def test_no_panic_in_the_log(info):
    out = info(kernel_with_log(log_of([Said(b"all is well", SECOND)]), CRASHTIME=None).dump()).out
    found = labels(out)
    assert found["panic message"] == "none in the log"
    assert not {"crashed at", "panicking cpu", "pid", "comm"} & set(found)


OOPS = [
    Said(b"BUG: kernel NULL pointer dereference, address: 0000000000000000", 5 * SECOND, caller_id=33),
    Said(b"#PF: supervisor write access in kernel mode", 5 * SECOND, caller_id=33),
    Said(b"CPU: 3 PID: 33 Comm: modprobe Not tainted 6.1.0-test-amd64 #1", 5 * SECOND, caller_id=33),
]


def test_oops_before_the_panic(info):
    """With panic_on_oops the task stands before the panic message, and nothing after it."""
    panic = Said(b"Kernel panic - not syncing: Fatal exception", 6 * SECOND, caller_id=33)
    found = labels(info(kernel_with_log(log_of([*OOPS, panic])).dump()).out)
    assert found["panic message"] == "Fatal exception"
    assert found["last oops"] == "BUG: kernel NULL pointer dereference, address: 0000000000000000"
    assert (found["panicking cpu"], found["pid"], found["comm"]) == ("3", "33", "modprobe")


def test_oops_that_led_into_the_crash_kernel_without_a_panic(info):
    found = labels(info(kernel_with_log(log_of(OOPS)).dump()).out)
    assert found["panic message"].startswith("BUG: kernel NULL pointer dereference")
    assert found["pid"] == "33"
    survived = labels(info(kernel_with_log(log_of(OOPS), CRASHTIME=None).dump()).out)
    assert survived["panic message"] == "none in the log"
    assert survived["last oops"].startswith("BUG: ")
    assert "pid" not in survived


def test_task_of_another_cpu_is_not_taken(info):
    """The message was logged by task 50, and no line describes that one: its pid is all there is."""
    panic = Said(b"Kernel panic - not syncing: softlockup: hung tasks", 6 * SECOND, caller_id=50)
    found = labels(info(kernel_with_log(log_of([*OOPS, panic])).dump()).out)
    assert found["pid"] == "50"
    assert not {"panicking cpu", "comm"} & set(found)
    interrupt = Said(b"Kernel panic - not syncing: NMI: Not continuing", 6 * SECOND, caller_id=CPU | 2)
    found = labels(info(kernel_with_log(log_of([interrupt])).dump()).out)
    assert found["panicking cpu"] == "2"
    assert "pid" not in found


def test_programs_cannot_forge_a_panic(info):
    forged = Said(b"Kernel panic - not syncing: forged", SECOND, facility=1)
    found = labels(info(kernel_with_log(log_of([forged])).dump()).out)
    assert found["panic message"] == "none in the log"


def test_terminal_escapes(info):
    panic = [
        Said(b"Kernel panic - not syncing: \x1b[31mred\x1b[0m\nsecond line", SECOND, caller_id=9),
        Said(b"CPU: 0 PID: 9 Comm: \x1b]0;x\x07 Not tainted 6", SECOND, caller_id=9),
    ]
    kernel = kernel_with_log(log_of(panic), OSRELEASE="6.1\x1b[2J")
    found = labels(info(kernel.dump()).out)
    assert found["panic message"] == r"\x1b[31mred\x1b[0m"
    assert found["comm"] == r"\x1b]0;x\x07"
    assert found["release"] == r"6.1\x1b[2J"


def test_no_vmcoreinfo(info):
    """What the ELF file alone says: format, architecture, CPUs, memory."""
    kernel = kernel_with_log(log_of(PANIC))
    keys = dict.fromkeys(line.partition("=")[0] for line in kernel.vmcoreinfo_text().splitlines())
    result = info(kernel_with_log(log_of(PANIC), **keys).dump())
    assert result.code == 0
    assert "no VMCOREINFO note" in result.lines("warning")[0]
    found = labels(result.out)
    assert list(found) == [
        "file", "format", "arch", "panic message", "cpus", "memory", "vmcoreinfo", "coverage",
    ]  # fmt: skip
    assert found["vmcoreinfo"] == "none"
    assert found["panic message"] == "unknown: no log"
    assert info(kernel_with_log(log_of(PANIC), **keys).dump(), "--strict").code == 1


def test_other_architecture(info):
    image = bytearray(make_kernel(SMALL).dump())
    struct.pack_into("<H", image, 18, 50)
    result = info(bytes(image))
    assert result.code == 0
    assert "not supported" in result.lines("warning")[0]
    assert "50" in labels(result.out)["arch"]


def test_log_that_cannot_be_read(info):
    result = info(make_kernel(SMALL).dump())
    assert result.code == 0
    assert "the log cannot be read" in result.lines("warning")[0]
    assert labels(result.out)["release"] == "6.1.0-test-amd64"


def test_part_of_the_image_is_absent(info):
    """Two pages behind p_filesz: makedumpfile leaves pages out that way."""
    kernel = kernel_with_log(log_of(PANIC))
    parts = []
    for part in kernel.segments()[1:]:
        if part.paddr == 0x400000:
            head, tail = part.data[:0x100000], part.data[0x102000:]
            parts.append(replace(part, data=head, memsz=0x102000))
            part = replace(part, paddr=0x502000, vaddr=part.vaddr + 0x102000, data=tail)
        parts.append(part)
    result = info(build_core(replace(kernel.core_spec(), segments=parts)))
    assert any("2 pages of the kernel image are absent" in line for line in result.lines("warning"))
    found = labels(result.out)
    assert found["coverage"] == "99.9 % of 1374 pages; lost 1 range: 0x500000-0x502000 excluded or zero"
    assert found["memory"].startswith("5.4 MiB present, 1372 of 1374 pages")


def test_truncated(info):
    kernel = kernel_with_log(log_of(PANIC))
    image = kernel.dump()
    result = info(image[: len(image) - 0x81000])
    assert result.code == 0
    assert "truncated" in labels(result.out)["coverage"]
    assert info(image[: len(image) - 0x81000], "--strict").code == 1
    assert labels(result.out)["panic message"] == "sysrq triggered crash"


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"KDUMP   " + bytes(5000)], ids=["empty", "cut", "kdump"])
def test_no_dump(info, image):
    assert info(image).code == 1
