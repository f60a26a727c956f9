"""Dumps by an independent writer, the package kdumpling.

Of its kdump-compressed form only zlib and raw pages follow the format: for other codecs its descriptors
say zlib as well.  It counts the blocks of one bitmap, and leaves zero pages out.
"""

from __future__ import annotations

from dataclasses import replace

import kdumpling
import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, read_core
from tests.builders.kernel import SMALL, make_kernel


@pytest.mark.parametrize(
    ("form", "codec"),
    [("KDUMP_COMPRESSED", "ZLIB"), ("KDUMP_COMPRESSED", "NONE"), ("ELF", "NONE")],
)
def test_its_dumps(tmp_path, capfd, form, codec):
    kernel = make_kernel(replace(SMALL, zero_ranges=((0x700000, 0x708000),)))
    builder = kdumpling.KdumpBuilder(arch="x86_64")
    builder.set_vmcoreinfo(kernel.vmcoreinfo_text())
    for start, data in kernel.ram.ranges:
        builder.add_memory_segment(phys_addr=start, data=bytes(data))
    for cpu in kernel.cpus:
        registers = {
            name.upper(): value for name, value in kernel.registers(cpu).items() if name in ("rip", "rsp")
        }
        builder.add_cpu_context(cpu_id=cpu, registers=registers, pid=cpu + 1)
    dump, out = tmp_path / "dump", tmp_path / "out"
    builder.write(
        str(dump), format=kdumpling.OutputFormat[form], compression=kdumpling.CompressionType[codec]
    )
    assert main(["tovelf", "-l", "all", "--zero-excluded", "-i", str(dump), "-o", str(out)]) == 0
    assert "lost" not in capfd.readouterr().err
    check_pages(read_core(out), kernel)
